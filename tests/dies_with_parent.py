"""Starts a program that dies with the process that started it, as another user if wished.

`subprocess` could do both between fork and exec. In a process whose threads are inside gRPC that
code sometimes crashes before the program starts, so it runs in a fresh interpreter instead.
"""

import ctypes
import os
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def command(arguments, *, how, account=None):
    """Arguments that run a program this way.

    Args: how: the signal that it gets when the caller is gone. account: (user, group) numbers.
    """
    user, group = account or (-1, -1)
    launcher = [sys.executable, "-I", "-S", Path(__file__).resolve()]
    return [*launcher, str(int(how)), str(user), str(group), str(os.getpid()), *arguments]


def main():
    """Take the account, ask for the signal, and become the program."""
    how, user, group, parent = (int(one) for one in sys.argv[1:5])
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    # After the change of account, which would undo it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        sys.exit("the process that wanted this program is gone")
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606


if __name__ == "__main__":
    main()
