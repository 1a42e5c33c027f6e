"""The worker's side: limits, then one request after the other until the pipe closes.

Imported by the entry modules only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lada_secure.encryption.workers.frames import Part, read_frame, write_frame

Operation = Callable[[list[bytes]], Sequence[Part]]

_MAX_FILE_BYTES: Final = 1 << 28
# Exit status of a worker that ran out of memory; its state cannot be relied on afterwards.
_OUT_OF_MEMORY: Final = 3


def run(operations: Mapping[str, Operation]) -> None:
    """Entry point of a worker module: answer requests on standard input until it closes.

    Args: operations: by name. The last entry of the command line is the address space in bytes
        that may be used beyond what is used now.
    """
    # The pipes are taken away from standard input and output: whatever a library prints goes to
    # the void instead of into a frame.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as void:
        os.dup2(void.fileno(), 0)
        os.dup2(void.fileno(), 1)
    # Ctrl-C reaches the whole group; the parent decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(int(sys.argv[-1]))
    # The parent is gone once a pipe is closed, and the worker with it.
    with contextlib.suppress(EOFError, BrokenPipeError):
        write_frame(sink, [b"ready"])
        while True:
            name, *parts = read_frame(source)
            write_frame(sink, _answer(operations, name.decode("ascii"), parts))


def _answer(operations: Mapping[str, Operation], name: str, parts: list[bytes]) -> Sequence[Part]:
    if name == "cpu":
        return [b"ok", time.process_time_ns().to_bytes(8, "little")]
    try:
        return [b"ok", *operations[name](parts)]
    except MemoryError:
        # Whatever is left cannot be relied on.
        os._exit(_OUT_OF_MEMORY)
    # The binding turns C++ exceptions into these; anything else is our defect and ends the
    # worker, which the parent reports.
    except (RuntimeError, ValueError, IndexError) as error:
        return [b"error", f"{type(error).__name__}: {error}".encode()]


def _limit(extra_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, used + extra_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    # No core file: it would hold keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
