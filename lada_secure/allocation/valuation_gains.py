"""Noised gains of data valuation: how much each group of public paths helps a site's records.

A *valuation student* is the reference model after some training on the received paths of one public
cluster alone. Its *gain* on a private record is by how much likelier it makes the record's own
reasons than the reference does, in nats per token: below 0, the cluster's paths contradict the
record. Summed over all records, gains say which clusters to learn from, and to which no path is
worth a place in training (`lada_secure.allocation.data_valuation`).

Models and paths are released or public, so that a gain depends on one record beside them. Every
privacy unit adds one vector: a mean gain per cluster, clipped to one clip and then divided by it,
and a weight of 1. A unit whose records have no reasons adds zeros: who has reasons is private.

Sensitivity under add/remove of one unit: its vector is scaled down to an L2 norm of at most 2 and
rounded towards zero in whole-number steps, so that no unit changes the sum by more than 2 steps'
scale. A clip on the norm, not sqrt(C + 1): few clusters of a site have paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lada_secure.allocation.cells import MAX_CLUSTERS
from lada_secure.allocation.statistics_parameters import statistics_scale
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import ReleaseSpec, Reservation
from lada_secure.privacy.release.noised_vectors import release_vector, vector_spec
from lada_secure.privacy.released import Released, post_process
from lada_secure.ranges import above_zero, within

PURPOSE = "trials"
# Most L2 norm of a unit's vector, in clips. Beside the weight of 1, three clusters may be full.
MOST_NORM = 2.0
# Far beyond any sum of clipped vectors and noise; floats hold every whole number up to here.
_LARGEST_ENTRY = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuationParameters:
    """Public parameters of the gains; one object fixes clipping, noise and event.

    clusters: C. gain_clip: > 0, nats per token. noise_multiplier: noise std / L2 sensitivity.
    """

    clusters: int
    gain_clip: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Raises: ParameterError: a value out of range, or too little noise for any scale."""
        within(1, MAX_CLUSTERS, clusters=self.clusters)
        above_zero(gain_clip=self.gain_clip)
        _ = self.scale

    @property
    def scale(self) -> int:
        """Whole-number steps per clip; the noise has at least as many steps as it must have."""
        return statistics_scale(self.noise_multiplier)

    @property
    def length(self) -> int:
        """Entries of the vector: C gains, then the weight."""
        return self.clusters + 1

    @property
    def l2_sensitivity(self) -> float:
        """Under add/remove of one unit, in steps, never rounded down."""
        return math.nextafter(MOST_NORM * self.scale, math.inf)

    @property
    def std(self) -> float:
        """Standard deviation of the noise per entry, in steps."""
        return math.nextafter(self.noise_multiplier * self.l2_sensitivity, math.inf)


def unit_gains(gains: Sequence[FloatArray], parameters: ValuationParameters) -> IntArray:
    """Add up what every privacy unit says of each cluster's valuation student.

    Exact: the result never leaves the site.

    Args: gains: per unit of `bound_units` (records with reasons, C), nats per token, 0 for clusters
        without a valuation. A unit without rows adds zero: none of its records has reasons, or it
        could not be measured. NaN counts as 0: refusing it would let one record stop a release.
    Returns: (C + 1,) int64 in steps, all zeros for no units.
    Raises: ParameterError: rows of another length.
    """
    total = np.zeros(parameters.length, dtype=np.int64)
    for rows in gains:
        if len(rows):
            total += _contribution(rows, parameters)
    return total


def _contribution(rows: FloatArray, parameters: ValuationParameters) -> IntArray:
    if rows.shape[1:] != (parameters.clusters,):
        raise ParameterError(
            f"trials: expected {parameters.clusters} gains per record, got shape {rows.shape[1:]}"
        )
    clip = parameters.gain_clip
    clipped = np.clip(np.nan_to_num(rows, nan=0.0), -clip, clip) / clip
    says = np.append(clipped.mean(axis=0), 1.0)
    shrunk = says * min(1.0, MOST_NORM / float(np.linalg.norm(says)))
    steps: IntArray = np.trunc(parameters.scale * shrunk).astype(np.int64)
    # In whole numbers, so that no rounding above can pass the bound that the noise is sized for.
    while int(np.dot(steps, steps)) > (MOST_NORM * parameters.scale) ** 2:
        steps -= np.sign(steps)
    return steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedGains:
    """Gains after noise: free to use. vector: (C + 1,) int64."""

    vector: IntArray
    parameters: ValuationParameters

    @property
    def counts(self) -> bool:
        """Whether the weight is beyond one standard deviation of its noise; else gains are noise.

        So is a mass of the statistics, see `NoisedStatistics.masses`.
        """
        return float(self.vector[-1]) > self.parameters.std

    @property
    def weight(self) -> float:
        """About how many units have reasons; at least the noise's standard deviation."""
        return max(float(self.vector[-1]), self.parameters.std) / self.parameters.scale

    @property
    def means(self) -> FloatArray:
        """Mean gain per cluster over units with reasons, (C,), in clips: about -1 to 1."""
        sums: FloatArray = self.vector[:-1] / self.parameters.scale
        return sums / self.weight

    @property
    def std(self) -> float:
        """Standard deviation of the noise in each of `means`, as if the weight were exact."""
        return self.parameters.std / self.parameters.scale / self.weight


# The ledger's description of one round's gains, built from their parameters.
valuation_spec = partial(vector_spec, PURPOSE)


def release_gains(
    measure: Callable[[Reservation], Sequence[FloatArray]],
    *,
    parameters: ValuationParameters,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[NoisedGains]:
    """Pay, measure, add discrete Gaussian noise, commit: the only way out for gains.

    What is measured is clipped and added up here, by the parameters that the noise is sized for.

    Args: measure: the gains of every unit, as `unit_gains` takes them; called only once the ledger
        has the reservation, and not at all where this round's output is stored already. spec: from
        `valuation_spec` with the same parameters.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` belongs to other parameters. LedgerError: see `LedgerBook.reserve`, or stored bytes
        that do not fit the parameters.
    """
    noised = release_vector(
        lambda paid: unit_gains(measure(paid), parameters),
        purpose=PURPOSE,
        noise=parameters,
        bound=_LARGEST_ENTRY,
        book=book,
        spec=spec,
    )
    return post_process(noised, lambda vector: NoisedGains(vector=vector, parameters=parameters))
