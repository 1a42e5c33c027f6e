"""How the gradients of units lie in memory: side by side, so that clipping takes few kernels.

A model has a gradient per trainable matrix, hundreds of small ones. On a GPU a step that small
waits for the launch of its kernels, so whatever is done to every gradient is done to all of a
device at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

# Parameters of one device, by their places in the model's order.
Places: TypeAlias = list[int]


def places_by_device(parameters: Sequence[Tensor]) -> list[Places]:
    """The places of all parameters, those of one device together, in the model's order."""
    found: dict[torch.device, Places] = {}
    for at, one in enumerate(parameters):
        found.setdefault(one.device, []).append(at)
    return list(found.values())


def zero_gradients(units: int, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Room for the gradients of units: per parameter (units, *shape) float32, zero.

    Those of one device are parts of one (units, d) block.
    """
    found: dict[int, Tensor] = {}
    for places in places_by_device(parameters):
        sizes = [parameters[at].numel() for at in places]
        block = torch.zeros(
            (units, sum(sizes)), dtype=torch.float32, device=parameters[places[0]].device
        )
        parts = torch.split_with_sizes(block, sizes, dim=1)
        for at, part in zip(places, parts, strict=True):
            found[at] = part.view(units, *parameters[at].shape)
    return [found[at] for at in range(len(parameters))]


def side_by_side(gradients: Sequence[Tensor]) -> Tensor:
    """All gradients of one device as (units, d) float32.

    The memory of `zero_gradients` where the gradients lie in it whole, and else a copy.
    """
    first = gradients[0]
    units, start = len(first), int(first.storage_offset())
    sizes = [prod(one.shape[1:]) for one in gradients]
    width, at = sum(sizes), start
    for one, size in zip(gradients, sizes, strict=True):
        if not _lies_at(one, first, at, width):
            return torch.cat([each.flatten(1).float() for each in gradients], dim=1)
        at += size
    return first.as_strided((units, width), (width, 1), start)


def _lies_at(one: Tensor, first: Tensor, offset: int, width: int) -> bool:
    """Whether a gradient is a part of the (units, width) block that `first` begins."""
    inner = [prod(one.shape[at + 1 :]) for at in range(1, one.dim())]
    return (
        one.dtype == torch.float32
        and one.untyped_storage()._cdata == first.untyped_storage()._cdata
        and one.storage_offset() == offset
        and (len(one) == 1 or one.stride(0) == width)
        and list(one.stride())[1:] == inner
    )
