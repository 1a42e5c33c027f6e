"""The C library's allocator, told to give freed memory back."""

from __future__ import annotations

import ctypes
import logging
from typing import Final

LOG = logging.getLogger(__name__)

# mallopt(3) of glibc: from this size on a block is mapped for itself and unmapped when it is freed.
_MMAP_THRESHOLD: Final = -3
_BLOCK_BYTES: Final = 128 * 1024


def give_blocks_back() -> bool:
    """From now on, let this process give large freed blocks back to the system at once.

    Left to itself glibc keeps them, between others that are in use. Gradient checkpointing frees
    and takes a layer's tensors again and again, and what it saves would be lost: at 8 x 128 tokens
    SmolLM2-135M then took 540 MB for a step where 150 MB are alive. It costs time, for fresh memory
    has to be cleared; see docs/models.md.

    Returns: whether the C library could be told.
    """
    try:
        told = bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BLOCK_BYTES) == 1)
    except (OSError, AttributeError, TypeError):
        # Another C library than glibc, or another system.
        told = False
    LOG.debug("allocator gives blocks back: %s", told)
    return told
