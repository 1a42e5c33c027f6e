"""Messages between a process and its worker: byte strings with their lengths in front.

Nothing is ever unpickled. Both ends are our own code, but the parent trusts a worker less than
itself: the worker has run native code on foreign bytes, so counts and sizes are bounded on
reading, whichever side reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

Part = bytes | memoryview

MAX_PARTS: Final = 4096
MAX_FRAME_BYTES: Final = 1 << 28

_COUNT: Final = struct.Struct("<I")
_LENGTH: Final = struct.Struct("<Q")


class FrameError(Exception):
    """A frame that breaks its own limits; the pipe is unusable afterwards."""


def encode(parts: Sequence[Part]) -> Iterator[Part]:
    """The head of a frame, then its parts uncopied, in the order they must be written."""
    sizes = [memoryview(part).nbytes for part in parts]
    yield _COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(size) for size in sizes)
    yield from (part for part, size in zip(parts, sizes, strict=True) if size)


def decode(read_exactly: Callable[[int], memoryview]) -> list[memoryview]:
    """Read one frame by means of a function that returns exactly n bytes or raises."""
    (count,) = _COUNT.unpack(read_exactly(_COUNT.size))
    if not 1 <= count <= MAX_PARTS:
        raise FrameError(f"frame with {count} parts")
    head = read_exactly(_LENGTH.size * count)
    sizes = [size for (size,) in _LENGTH.iter_unpack(head)]
    if sum(sizes) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {sum(sizes)} bytes")
    return [read_exactly(size) for size in sizes]


def numbers(values: Sequence[int]) -> bytes:
    """A short list of non-negative integers as 64-bit little-endian words."""
    return np.asarray(values, dtype="<u8").tobytes()


def read_numbers(raw: Part) -> list[int]:
    """The inverse of `numbers`."""
    return [int(value) for value in np.frombuffer(raw, dtype="<u8")]
