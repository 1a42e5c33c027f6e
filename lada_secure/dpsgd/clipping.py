"""Clipping per privacy unit onto an integer grid, and exact sums.

A unit's gradient is scaled into the L2 ball of `l2_clip_norm`, then every coordinate is cut
towards zero to a whole number of grid steps. Cutting can only shorten a vector, and its length
is checked in whole numbers afterwards, so the integer sum has an L2 sensitivity of at most
`DpSgdParameters.clip_steps` under adding or removing one unit: no rounding error enters. Steps
are so fine that the sum times the step is the ordinary clipped sum for all practical purposes
(relative error of a unit at most sqrt(dimension) / clip_steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lada_secure.dpsgd.parameters import DpSgdParameters


class ClippedSum:
    """Running sum of clipped unit gradients over any number of physical batches."""

    def __init__(self, parameters: Sequence[nn.Parameter], privacy: DpSgdParameters) -> None:
        self._clip = privacy.l2_clip_norm
        self._clip_steps = privacy.clip_steps
        self._totals = [
            torch.zeros(one.numel(), dtype=torch.float64, device=one.device) for one in parameters
        ]

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Clip and add a batch of units. Abadi et al. 2016, Alg. 1, "Clip gradient".

        Args: gradients: per parameter (units, *shape) float32; changed in place.

        | a unit's gradient | what is added |
        |---|---|
        | norm at most l2_clip_norm | the gradient, cut to the grid |
        | longer | scaled to l2_clip_norm, cut to the grid |
        | all zero | zero |
        | a NaN or infinity anywhere | zero |
        | still too long after all roundings (not known to happen) | zero |

        So whatever a unit's gradient is, its part of the sum is at most one clip norm long, and
        nothing that it is stops the sum.
        """
        flat = [one.flatten(1) for one in gradients]
        squared = torch.stack(
            [torch.linalg.vector_norm(one, dim=1, dtype=torch.float64) for one in flat]
        ).square()
        norms = squared.sum(0).sqrt()
        broken = ~torch.isfinite(norms)
        if bool(broken.any()):
            for one in flat:
                one[broken] = 0.0
            norms = torch.where(broken, torch.zeros_like(norms), norms)
        factor = (self._clip / norms.clamp(min=self._clip)).unsqueeze(1)
        parts = self._cut_to_grid(flat, factor)
        # From here on nothing is allocated: a batch is added as a whole, or (out of memory) not at
        # all, so that trying it again in halves counts no unit twice.
        for total, part in zip(self._totals, parts, strict=True):
            total.add_(part)

    def _cut_to_grid(self, flat: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
        """Sums over units of the gradients in whole steps, each unit's length checked."""
        # Float64 errors of norm and factor are below 1e-12; the margin makes a second pass rare.
        scale = factor * (self._clip_steps / self._clip * (1.0 - 1e-10))
        bound = float(self._clip_steps) ** 2
        for shrink in (1.0 - 1e-6, 1.0 - 1e-6, 1.0 - 1e-6, 0.0, 0.0):
            lengths = torch.zeros_like(scale[:, 0])
            sums: list[Tensor] = []
            # One parameter at a time: float64 copies of all gradients would be the peak of memory.
            for one in flat:
                whole = one.double().mul_(scale).trunc_()
                lengths += torch.linalg.vecdot(whole, whole)
                sums.append(whole.sum(0))
            too_long = lengths > bound
            if not bool(too_long.any()):
                break
            scale = torch.where(too_long.unsqueeze(1), scale * shrink, scale)
        return sums

    def integers(self) -> Tensor:
        """The sum in grid steps, (d,) int64."""
        return torch.cat(self._totals).to(torch.int64)
