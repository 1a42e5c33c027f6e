"""Messages between a process and its worker: byte strings over one pipe.

Nothing is ever unpickled: of the standard library's connections only what moves bare bytes is used.
Both ends are our own code, but the parent trusts a worker less than itself: the worker has run
native code on foreign bytes, so counts and sizes are bounded on reading, whichever side reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

Part = bytes | memoryview

MAX_PARTS: Final = 4096
MAX_FRAME_BYTES: Final = 1 << 28

_COUNT_BYTES: Final = 4


def write_frame(pipe: Connection, parts: Sequence[Part]) -> None:
    """Write one frame: the number of its parts, then the parts uncopied."""
    pipe.send_bytes(len(parts).to_bytes(_COUNT_BYTES, "little"))
    for part in parts:
        pipe.send_bytes(part)


def read_frame(pipe: Connection) -> list[bytes]:
    """Read one frame.

    Raises: OSError: a frame that breaks its limits or ends in its middle; the pipe is unusable
        afterwards. EOFError: the other end is closed.
    """
    count = int.from_bytes(pipe.recv_bytes(_COUNT_BYTES), "little")
    if not 1 <= count <= MAX_PARTS:
        raise OSError(f"frame with {count} parts")
    parts, left = [], MAX_FRAME_BYTES
    for _ in range(count):
        parts.append(pipe.recv_bytes(left))
        left -= len(parts[-1])
    return parts


def numbers(values: Sequence[int]) -> bytes:
    """A short list of non-negative integers as 64-bit little-endian words."""
    return np.asarray(values, dtype="<u8").tobytes()


def read_numbers(raw: Part) -> list[int]:
    """The inverse of `numbers`."""
    return [int(value) for value in np.frombuffer(raw, dtype="<u8")]
