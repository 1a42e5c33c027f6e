"""Public parameters of a site's statistics: scale, sensitivity, noise and the bounds they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lada_secure.allocation.cells import MAX_CLUSTERS
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.terms import MIN_STD_STEPS
from lada_secure.ranges import above_zero, within

# Exact shares for units of 1 to 6 records: 120 is a multiple of all of them.
_FINEST_SCALE = 120
# Noise beyond this many standard deviations has a probability below 1e-22.
_CLAMP_STDS = 10
_MAX_UNITS = 10**7
_MAX_SCALE = 10**6


def l2_sensitivity(scale: int) -> float:
    """Largest L2 change of the vector by one unit, scale x sqrt(2), never rounded down."""
    return math.nextafter(scale * math.sqrt(2.0), math.inf)


def noise_std(*, scale: int, noise_multiplier: float) -> float:
    """Noise per entry in whole-number steps, noise_multiplier x sensitivity, never rounded down."""
    return math.nextafter(noise_multiplier * l2_sensitivity(scale), math.inf)


def statistics_scale(noise_multiplier: float) -> int:
    """Smallest multiple of 120 at which the noise has at least 16 steps.

    Raises: ParameterError: noise_multiplier <= 0 or so small that no allowed scale will do.
    """
    above_zero(noise_multiplier=noise_multiplier)
    needed = MIN_STD_STEPS / (noise_multiplier * math.sqrt(2.0))
    scale = _FINEST_SCALE * max(math.ceil(needed / _FINEST_SCALE), 1)
    if scale > _MAX_SCALE:
        raise ParameterError(
            f"noise_multiplier {noise_multiplier}: no scale up to {_MAX_SCALE} gives the noise "
            f"{MIN_STD_STEPS} steps; use more noise"
        )
    return scale


def site_bound(*, scale: int, max_units: int, noise_multiplier: float) -> int:
    """Public bound on the magnitude of every entry that one site sends.

    The masses of `max_units` units plus ten standard deviations of noise. Entries beyond it are
    clamped, which is post-processing; a site with more units than the plan allows loses accuracy,
    not privacy.
    """
    std = noise_std(scale=scale, noise_multiplier=noise_multiplier)
    return scale * max_units + math.ceil(_CLAMP_STDS * std)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsParameters:
    """Public parameters of the statistics; one object fixes clipping, noise, bound and event.

    clusters: C. loss_clip: > 0, nats per token. noise_multiplier: noise std / L2 sensitivity.
    max_units: most units that a site is expected to have. scale: whole-number steps per unit of
    weight; `statistics_scale` gives it.
    """

    clusters: int
    loss_clip: float
    noise_multiplier: float
    max_units: int
    scale: int

    def __post_init__(self) -> None:
        """Raises: ParameterError: a value out of range, or noise of fewer than 16 steps."""
        within(1, MAX_CLUSTERS, clusters=self.clusters)
        within(1, _MAX_UNITS, max_units=self.max_units)
        within(1, _MAX_SCALE, scale=self.scale)
        above_zero(loss_clip=self.loss_clip, noise_multiplier=self.noise_multiplier)
        if self.std < MIN_STD_STEPS:
            raise ParameterError(
                f"statistics noise: expected a std of at least {MIN_STD_STEPS} steps, got "
                f"{self.std:.2f}; raise the scale from {self.scale} to "
                f"{statistics_scale(self.noise_multiplier)}"
            )

    @property
    def length(self) -> int:
        """Entries of the vector: C masses, then C loss masses."""
        return 2 * self.clusters

    @property
    def l2_sensitivity(self) -> float:
        """Under add/remove of one unit, in steps."""
        return l2_sensitivity(self.scale)

    @property
    def std(self) -> float:
        """Standard deviation of the noise per entry, in steps."""
        return noise_std(scale=self.scale, noise_multiplier=self.noise_multiplier)

    @property
    def site_bound(self) -> int:
        """Bound on every entry of one site; see `site_bound`."""
        return site_bound(
            scale=self.scale, max_units=self.max_units, noise_multiplier=self.noise_multiplier
        )
