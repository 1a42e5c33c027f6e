"""A noised sum of gradient directions: what a site's records would change of its model.

Every privacy unit adds one vector: the sketch of its gradient, scaled to norm 1, in whole-number
steps. Scaled and not clipped: only directions are compared, and a bound below every gradient wastes
nothing. Rounding is towards zero, so that under add/remove of one unit the sum changes by at most
one unit's scale in L2 norm; noise, ledger and bytes are those of every noised vector
(`lada_secure.privacy.release.noised_vectors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from lada_secure.arrays import FloatArray, IntArray
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import MIN_STD_STEPS, ReleaseSpec, Reservation
from lada_secure.privacy.release.noised_vectors import release_vector, vector_spec
from lada_secure.privacy.released import Released, post_process
from lada_secure.ranges import above_zero, at_least

PURPOSE: Final = "gradients"
# Steps of a vector of norm 1: fine enough for hundreds of entries, most of them far below 1.
_SCALE: Final = 2**14
_LARGEST_ENTRY: Final = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionParameters:
    """Public parameters of the sum; one object fixes its bound, its noise and its event.

    length: entries of a sketch. noise_multiplier: noise std / L2 sensitivity.
    """

    length: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Raises: ParameterError: a value out of range, or noise of fewer than 16 steps."""
        at_least(1, length=self.length)
        above_zero(noise_multiplier=self.noise_multiplier)
        if self.std < MIN_STD_STEPS:
            raise ParameterError(
                f"gradient noise: expected a std of at least {MIN_STD_STEPS:g} steps, got "
                f"{self.std:.2f}; use more noise"
            )

    @property
    def l2_sensitivity(self) -> float:
        """Under add/remove of one unit, in steps, never rounded down."""
        return math.nextafter(float(_SCALE), math.inf)

    @property
    def std(self) -> float:
        """Standard deviation of the noise per entry, in steps."""
        return math.nextafter(self.noise_multiplier * self.l2_sensitivity, math.inf)


# The ledger's description of one round's release.
directions_spec = partial(vector_spec, PURPOSE)


def sum_of_directions(rows: Sequence[FloatArray], parameters: DirectionParameters) -> IntArray:
    """Add up what every unit contributes. Exact: the result never leaves the site.

    Args: rows: (length,) per unit, of any norm. Not finite, or zero, adds zero.
    Returns: (length,) int64 in steps.
    Raises: ParameterError: a row of another length.
    """
    total = np.zeros(parameters.length, dtype=np.int64)
    for row in rows:
        if row.shape != (parameters.length,):
            raise ParameterError(
                f"gradients: expected {parameters.length} entries, got shape {row.shape}"
            )
        norm = float(np.linalg.norm(row))
        if math.isfinite(norm) and norm > 0.0:
            steps = np.trunc(_SCALE * (row / norm)).astype(np.int64)
            # In whole numbers, so that no rounding above can pass the bound of the noise.
            while int(np.dot(steps, steps)) > _SCALE**2:
                steps -= np.sign(steps)
            total += steps
    return total


def release_directions(
    measure: Callable[[Reservation], Sequence[FloatArray]],
    *,
    parameters: DirectionParameters,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[FloatArray]:
    """Pay, measure, add discrete Gaussian noise, commit: the only way out for gradients.

    Args: measure: one sketch per unit; called only once the ledger has the reservation. spec: from
        `directions_spec` with the same parameters.
    Returns: (length,) float64, the noised sum of unit vectors.
    Raises: as `release_vector`.
    """
    noised = release_vector(
        lambda paid: sum_of_directions(measure(paid), parameters),
        purpose=PURPOSE,
        noise=parameters,
        bound=_LARGEST_ENTRY,
        book=book,
        spec=spec,
    )
    return post_process(noised, lambda vector: vector / _SCALE)
