"""Clipping per privacy unit onto an integer grid, and exact sums.

A unit's gradient is scaled into the L2 ball of `l2_clip_norm`, then every coordinate is cut
towards zero to a whole number of grid steps. Cutting can only shorten a vector, and its length
is checked in whole numbers afterwards, so the integer sum has an L2 sensitivity of at most
`DpSgdParameters.clip_steps` under adding or removing one unit: no rounding error enters. Steps
are so fine that the sum times the step is the ordinary clipped sum for all practical purposes
(relative error of a unit at most sqrt(dimension) / clip_steps).

Nothing here asks a device for a value: which unit is broken or too long is decided where the
gradients are, so that a GPU never waits for the CPU in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.dpsgd.unit_gradients import places_by_device, side_by_side

# Float64 copies of so many bytes at a time: one of all gradients would be the peak of memory.
_BYTES_AT_ONCE: Final = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


class ClippedSum:
    """Running sum of clipped unit gradients over any number of physical batches.

    Parameters may lie on several devices; each holds the sum over its own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], privacy: DpSgdParameters) -> None:
        self._clip = privacy.l2_clip_norm
        self._clip_steps = privacy.clip_steps
        self._sizes = [one.numel() for one in parameters]
        self._places = places_by_device(parameters)
        self._totals = [
            torch.zeros(
                sum(self._sizes[at] for at in places),
                dtype=torch.int64,
                device=parameters[places[0]].device,
            )
            for places in self._places
        ]

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Clip and add a batch of units. Abadi et al. 2016, Alg. 1, "Clip gradient".

        Args: gradients: per parameter (units, *shape) float32; their memory is used up.

        | a unit's gradient | what is added |
        |---|---|
        | norm at most l2_clip_norm | the gradient, cut to the grid |
        | longer | scaled to l2_clip_norm, cut to the grid |
        | all zero | zero |
        | a NaN or infinity anywhere | zero |
        | still too long on the grid (not known to happen) | zero |

        So whatever a unit's gradient is, its part of the sum is at most one clip norm long, and
        nothing that it is stops the sum.
        """
        blocks = [side_by_side([gradients[at] for at in places]) for places in self._places]
        norms = _norms(blocks)
        # One that is not finite makes a factor of 0 or NaN, and is left out on the grid.
        factor = self._clip / norms.clamp(min=self._clip)
        parts = self._cut_to_grid(blocks, factor)
        # From here on nothing is allocated: a batch is added as a whole, or (out of memory) not at
        # all, so that trying it again in halves counts no unit twice.
        for total, part in zip(self._totals, parts, strict=True):
            total.add_(part)

    def _cut_to_grid(self, blocks: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
        """Sums over units of the gradients in whole steps, each unit's length checked."""
        # Float64 errors of norm and factor are far below this margin.
        scale = factor * (self._clip_steps / self._clip * (1.0 - 1e-9))
        lengths = torch.zeros_like(scale)
        for block in blocks:
            own_scale = scale.to(block.device).unsqueeze(1)
            for part in _columns(block):
                whole = part.double().mul_(own_scale).trunc_()
                lengths += torch.linalg.vecdot(whole, whole).to(lengths.device)
                # At most 2^26 steps, unless the unit is broken: what becomes of NaN is undefined
                # as a number, and multiplied by zero below.
                part.view(torch.int32).copy_(whole)
        # Not a number is not kept either.
        kept = lengths <= float(self._clip_steps) ** 2
        sums: list[Tensor] = []
        for block in blocks:
            factors = kept.to(block.device, torch.int32).unsqueeze(1)
            found = torch.empty(block.shape[1], dtype=torch.int64, device=block.device)
            rooms = torch.split(found, _columns_at_once(block))
            for part, room in zip(_columns(block), rooms, strict=True):
                torch.sum(part.view(torch.int32).mul_(factors), 0, dtype=torch.int64, out=room)
            sums.append(found)
        return sums

    def integers(self) -> Tensor:
        """The sum in grid steps, (d,) int64, a copy on the device of the first parameter."""
        if len(self._totals) == 1:
            return self._totals[0].clone()
        home = self._totals[0].device
        found: dict[int, Tensor] = {}
        for places, total in zip(self._places, self._totals, strict=True):
            parts = total.to(home).split_with_sizes([self._sizes[at] for at in places])
            found |= dict(zip(places, parts, strict=True))
        return torch.cat([found[at] for at in range(len(self._sizes))])


def _norms(blocks: Sequence[Tensor]) -> Tensor:
    """L2 norm of every unit over all devices, (units,) float64 on the first block's device."""
    squared = blocks[0].new_zeros(len(blocks[0]), dtype=torch.float64)
    for block in blocks:
        for part in _columns(block):
            squared += torch.linalg.vector_norm(part.double(), dim=1).square().to(squared.device)
    return squared.sqrt()


def _columns_at_once(block: Tensor) -> int:
    allowed = _BYTES_AT_ONCE.get(block.device.type, _BYTES_AT_ONCE["cpu"])
    return max(1, allowed // (8 * len(block)))


def _columns(block: Tensor) -> tuple[Tensor, ...]:
    """A (units, d) block in parts of few enough columns, sharing its memory."""
    return torch.split(block, _columns_at_once(block), dim=1)
