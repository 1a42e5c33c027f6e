"""Clipping per privacy unit onto an integer grid, and exact sums.

A unit's gradient is scaled into the L2 ball of `l2_clip_norm`, then every coordinate is cut
towards zero to a whole number of grid steps. Cutting can only shorten a vector, and its length
is checked in whole numbers afterwards, so the integer sum has an L2 sensitivity of at most
`IntegerGrid.clip_steps` steps under adding or removing one unit: no rounding error enters. Steps
are so fine that the sum times the step is the ordinary clipped sum for all practical purposes
(relative error of a unit at most sqrt(dimension) / clip_steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch
from torch import Tensor, nn

from lada_secure.dpsgd.noise import MIN_STD_STEPS
from lada_secure.errors import LocalProtocolError, ParameterError

DEFAULT_STD_STEPS: Final = 2**20
# Squared lengths up to 2^52 are exact in float64.
_MAX_CLIP_STEPS: Final = 2**26
_MIN_CLIP_STEPS: Final = 2**8


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerGrid:
    """The clip norm in whole grid steps; one step is l2_clip_norm / clip_steps."""

    clip_steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.clip_steps <= _MAX_CLIP_STEPS:
            raise ParameterError(
                f"clip_steps: expected 1 to {_MAX_CLIP_STEPS}, got {self.clip_steps}"
            )

    @classmethod
    def for_noise(cls, *, noise_multiplier: float, std_steps: int) -> IntegerGrid:
        """The grid on which noise of exactly `std_steps` steps has the multiplier or more.

        clip_steps is std_steps / noise_multiplier rounded down, so std_steps / clip_steps is never
        below noise_multiplier.
        Raises: ParameterError: std_steps below 16, or a noise multiplier so large or small that
        the clip norm would be under 2^8 or over 2^26 steps.
        """
        if std_steps < MIN_STD_STEPS:
            raise ParameterError(
                f"grid of {std_steps} steps per standard deviation, expected at least "
                f"{MIN_STD_STEPS}: below that the noise may not be accounted as Gaussian"
            )
        if not 0.0 < noise_multiplier < float("inf"):
            raise ParameterError(
                f"noise_multiplier: expected a finite number above 0, got {noise_multiplier}"
            )
        clip_steps = int(Fraction(std_steps) / Fraction(noise_multiplier))
        if not _MIN_CLIP_STEPS <= clip_steps <= _MAX_CLIP_STEPS:
            low, high = std_steps / _MAX_CLIP_STEPS, std_steps / _MIN_CLIP_STEPS
            raise ParameterError(
                f"noise_multiplier {noise_multiplier} does not fit a grid of {std_steps} steps "
                f"per standard deviation; expected {low:.4g} to {high:.4g}"
            )
        return cls(clip_steps=clip_steps)


class ClippedSum:
    """Running sum of clipped unit gradients over any number of physical batches."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        l2_clip_norm: float,
        grid: IntegerGrid | None,
    ) -> None:
        """Start at zero. `grid` None keeps float64 sums (for the float Gaussian)."""
        if not 0.0 < l2_clip_norm < float("inf"):
            raise ParameterError(
                f"l2_clip_norm: expected a finite number above 0, got {l2_clip_norm}"
            )
        self._clip = l2_clip_norm
        self._grid = grid
        self._totals = [
            torch.zeros(one.numel(), dtype=torch.float64, device=one.device) for one in parameters
        ]
        self.units = 0
        self.non_finite = 0
        self.left_out = 0

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Clip and add a batch of units. Abadi et al. 2016, Alg. 1, "Clip gradient".

        Args: gradients: per parameter (units, *shape) float32; changed in place.

        | a unit's gradient | what is added |
        |---|---|
        | norm at most l2_clip_norm | the gradient (cut to the grid) |
        | longer | scaled to l2_clip_norm (cut to the grid) |
        | all zero | zero |
        | a NaN or infinity anywhere | zero, counted in `non_finite` |
        | still too long after all roundings (not known to happen) | zero, counted likewise |

        So whatever a unit's gradient is, its part of the sum is at most one clip norm long, and
        nothing that it is stops the sum. `non_finite` depends on private data: it may be shown at
        the site, never sent.
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
        if self._grid is None:
            parts = [one.double().mul_(factor).sum(0) for one in flat]
        else:
            parts, zeroed = self._cut_to_grid(flat, factor, self._grid)
            broken |= zeroed
        non_finite = int(broken.sum())
        # From here on nothing is allocated: a batch is added as a whole, or (out of memory) not at
        # all, so that trying it again in halves counts no unit twice.
        for total, part in zip(self._totals, parts, strict=True):
            total.add_(part)
        self.units += norms.numel()
        self.non_finite += non_finite

    def leave_out(self) -> None:
        """Count a unit whose gradient could not be computed: it adds exactly zero."""
        self.units += 1
        self.left_out += 1

    def _cut_to_grid(
        self, flat: Sequence[Tensor], factor: Tensor, grid: IntegerGrid
    ) -> tuple[list[Tensor], Tensor]:
        """Sums over units of the gradients in whole steps, each unit's length checked.

        Returns: the sums, and which units were zeroed: those that stayed too long.
        """
        # Float64 errors of norm and factor are below 1e-12; the margin makes a second pass rare.
        scale = factor * (grid.clip_steps / self._clip * (1.0 - 1e-10))
        bound = float(grid.clip_steps) ** 2
        zeroed = torch.zeros_like(scale[:, 0], dtype=torch.bool)
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
            if shrink == 0.0:
                zeroed |= too_long
        return sums, zeroed

    def values(self) -> Tensor:
        """The sum as one vector (d,) float64: whole grid steps with a grid, else plain units."""
        return torch.cat(self._totals)

    def integers(self) -> Tensor:
        """The sum in grid steps, (d,) int64. Raises: LocalProtocolError: summed without a grid."""
        if self._grid is None:
            raise LocalProtocolError("a float sum has no grid steps")
        return self.values().to(torch.int64)
