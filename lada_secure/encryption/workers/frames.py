"""Messages between a process and its worker: byte strings with their lengths in front.

Nothing is ever unpickled. Both ends are our own code, but the parent trusts a worker less than
itself: the worker has run native code on foreign bytes, so counts and sizes are bounded on
reading, whichever side reads.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import IO, Final

import numpy as np

Part = bytes | memoryview

MAX_PARTS: Final = 4096
MAX_FRAME_BYTES: Final = 1 << 28

_COUNT: Final = struct.Struct("<I")
_LENGTH: Final = struct.Struct("<Q")


class FrameError(Exception):
    """A frame that breaks its own limits; the pipe is unusable afterwards."""


def write_frame(pipe: IO[bytes], parts: Sequence[Part]) -> None:
    """Write one frame: its head, then the parts uncopied."""
    sizes = [memoryview(part).nbytes for part in parts]
    pipe.write(_COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(size) for size in sizes))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> list[bytes]:
    """Read one frame. Raises: FrameError. EOFError: the pipe ends before the frame does."""
    (count,) = _COUNT.unpack(_exactly(pipe, _COUNT.size))
    if not 1 <= count <= MAX_PARTS:
        raise FrameError(f"frame with {count} parts")
    sizes = [size for (size,) in _LENGTH.iter_unpack(_exactly(pipe, _LENGTH.size * count))]
    if sum(sizes) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {sum(sizes)} bytes")
    return [_exactly(pipe, size) for size in sizes]


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    found = pipe.read(size)
    if len(found) < size:
        raise EOFError("the other end closed its output")
    return found


def numbers(values: Sequence[int]) -> bytes:
    """A short list of non-negative integers as 64-bit little-endian words."""
    return np.asarray(values, dtype="<u8").tobytes()


def read_numbers(raw: Part) -> list[int]:
    """The inverse of `numbers`."""
    return [int(value) for value in np.frombuffer(raw, dtype="<u8")]
