"""Recognising that a batch did not fit into memory, whoever says so.

On a GPU torch raises `OutOfMemoryError`, and its libraries a `RuntimeError` that only the text
tells apart; on a CPU torch's allocator raises a `RuntimeError`, Python and numpy a `MemoryError`.
(Where Linux promises more memory than there is, it kills the process instead: nothing can be
caught then, and the ledger covers the steps.)
"""

from __future__ import annotations

from typing import Final

import torch

# Torch's words on a CPU, and those of CUDA's own libraries when they cannot get their workspace.
_SIGNS: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of CPU or GPU, was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def release_cached_memory() -> None:
    """Give unused blocks of torch's CUDA cache back, so that smaller batches find room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
