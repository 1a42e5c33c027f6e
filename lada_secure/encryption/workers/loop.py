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

from lada_secure.encryption.workers.frames import Part, decode, encode

Operation = Callable[[list[memoryview]], Sequence[Part]]

_MAX_FILE_BYTES: Final = 1 << 28
# Exit status of a worker that ran out of memory; its state cannot be relied on afterwards.
_OUT_OF_MEMORY: Final = 3


def serve(operations: Mapping[str, Operation], arguments: Sequence[str]) -> int:
    """Answer requests on standard input until it closes; return the exit status.

    Args: operations: by name. arguments: the command line; its last entry is the address space
        in bytes that may be used beyond what is used now.
    """
    # The pipes are taken away from standard input and output: whatever a library prints goes to
    # the void instead of into a frame.
    source, sink = os.dup(0), os.dup(1)
    with open(os.devnull, "r+b") as void:
        os.dup2(void.fileno(), 0)
        os.dup2(void.fileno(), 1)
    # Ctrl-C reaches the whole group; the parent decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(int(arguments[-1]))
    _write(sink, [b"ready"])
    while True:
        try:
            name, *parts = decode(lambda size: _read(source, size))
        except EOFError:
            return 0
        try:
            reply = _answer(operations, bytes(name).decode("ascii"), parts)
        except MemoryError:
            return _OUT_OF_MEMORY
        with contextlib.suppress(BrokenPipeError):
            _write(sink, reply)


def _answer(
    operations: Mapping[str, Operation], name: str, parts: list[memoryview]
) -> Sequence[Part]:
    if name == "cpu":
        return [b"ok", time.process_time_ns().to_bytes(8, "little")]
    try:
        return [b"ok", *operations[name](parts)]
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


def _read(source: int, size: int) -> memoryview:
    buffer = memoryview(bytearray(size))
    view = buffer
    while view.nbytes:
        got = os.readv(source, [view])
        if got == 0:
            raise EOFError
        view = view[got:]
    return buffer


def _write(sink: int, parts: Sequence[Part]) -> None:
    for part in encode(parts):
        view = memoryview(part).cast("B")
        while view.nbytes:
            view = view[os.write(sink, view) :]


def run(operations: Mapping[str, Operation]) -> None:
    """Entry point of a worker module."""
    sys.exit(serve(operations, sys.argv))
