"""Small tensors from the CPU to a device, without waiting for what the device does."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the CPU goes on at once.

    From ordinary memory a copy to a GPU waits until the GPU has done everything before it; from
    page-locked memory it takes its turn. That memory is torch's to free, not before it is read.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    pinned = values if values.is_pinned() else values.pin_memory()
    return pinned.to(device, non_blocking=True)
