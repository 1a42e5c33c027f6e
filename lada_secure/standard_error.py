"""Standard error of a process whose log is JSON: what others write there becomes JSON as well.

Libraries, native code and child processes write text to descriptor 2, and so does the interpreter
when it ends. Descriptor 2 becomes a pipe to a small process of our own, which puts every line into
an object. It is a process and no thread, so that the last words of a crash are not lost.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Final, TextIO

_RELAY: Final = Path(__file__).with_name("standard_error_relay.py")


@cache
def take_over_standard_error() -> TextIO:
    """Have text on descriptor 2 become JSON; once in a process.

    Returns: the standard error that was there, for lines that are JSON already.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.posix_spawn(
        sys.executable,
        # Isolated and without site packages: it starts in a blink, and runs nobody else's code.
        [sys.executable, "-I", "-S", str(_RELAY)],
        # What the interpreter itself may need, and no passphrase.
        {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, reading, 0),
            (os.POSIX_SPAWN_DUP2, kept, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
    return os.fdopen(kept, "w", encoding="utf-8", buffering=1)
