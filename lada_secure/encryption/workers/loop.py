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
from multiprocessing.connection import Connection
from typing import Final

from lada_secure.encryption.workers.frames import Part, read_frame, read_numbers, write_frame

# From a request's numbers, and its further parts one by one, to the reply.
Operation = Callable[..., Sequence[Part]]

_MAX_FILE_BYTES: Final = 1 << 28
# Exit status of a worker that ran out of memory; its state cannot be relied on afterwards.
_OUT_OF_MEMORY: Final = 3


def run(operations: Mapping[str, Operation]) -> None:
    """Entry point of a worker module: answer requests until the parent closes the pipe.

    Args: operations: by name. The last two entries of the command line are the address space in
        bytes that may be used beyond what is used now, and the pipe's descriptor.
    """
    memory_bytes, descriptor = (int(word) for word in sys.argv[-2:])
    # Ctrl-C reaches the whole group; the parent decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(memory_bytes)
    # The parent is gone once the pipe is closed, and the worker with it.
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, ConnectionError):
        write_frame(pipe, [b"ready"])
        while True:
            name, which, *parts = read_frame(pipe)
            write_frame(pipe, _answer(operations, name.decode("ascii"), which, parts))


def _answer(
    operations: Mapping[str, Operation], name: str, which: bytes, parts: list[bytes]
) -> Sequence[Part]:
    if name == "cpu":
        return [b"ok", time.process_time_ns().to_bytes(8, "little")]
    try:
        return [b"ok", *operations[name](read_numbers(which), *parts)]
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
