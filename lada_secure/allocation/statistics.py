"""Noised statistics of a site: how much of its data lies where, and how hard it finds it.

Per public cluster c: the mass n_c and the clipped loss mass e_c, where every privacy unit (a
patient, a customer) spreads a weight of 1 over its records. In whole numbers at a public scale s,
because masks, encryption and discrete noise are exact only over whole numbers.

A record's loss is that of its stated answer, nats per token.

Sensitivity under add/remove of one unit, which changes the vector by what that unit adds:

| part | bound | reason |
|---|---|---|
| masses | L2 <= s | entries >= 0 that sum to at most s, so L2 <= L1 <= s |
| loss masses | L2 <= s | each is at most its cluster's mass: a clipped loss is at most 1 clip |
| whole vector | L2 <= s sqrt(2) | Pythagoras |

Rounding happens per unit and towards zero, so it cannot raise any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from lada_secure.allocation.gap import probability
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import ReleaseSpec, Reservation
from lada_secure.privacy.release.noised_vectors import release_vector, vector_spec
from lada_secure.privacy.released import Released, post_process

PURPOSE = "statistics"


class MeasuredRecord(NamedTuple):
    """Public cluster of a record, in [0, C), and the SLM's loss on it."""

    cluster: int
    loss: float


def unit_statistics(
    measured: Sequence[Sequence[MeasuredRecord]], parameters: StatisticsParameters
) -> IntArray:
    """Add up what every privacy unit contributes. Exact: the result never leaves the site.

    A unit with k records gives each of them weight 1/k. Its share of cluster c, in steps, is
    floor(s x its records there / k); its loss mass is floor(s x the sum of their clipped losses
    over the clip / k), and never above that share.

    Args: measured: per unit of `bound_units`, its records; may be empty. A unit without any adds
        zero: it could not be measured.
    Returns: (2C,) int64 >= 0, C masses then C loss masses, in steps; all zeros for no units.

    Values | count as
    ---|---
    loss below 0 | 0
    loss above the clip, +inf | the clip
    loss NaN | the clip: refusing the record would let one record stop a release
    cluster out of range | nothing, as if the record were not there, with its weight
    """
    total = np.zeros(parameters.length, dtype=np.int64)
    for unit in measured:
        if unit:
            total += _contribution(unit, parameters)
    return total


def _contribution(unit: Sequence[MeasuredRecord], parameters: StatisticsParameters) -> IntArray:
    clip, scale, size = parameters.loss_clip, parameters.scale, len(unit)
    counts = np.zeros(parameters.clusters, dtype=np.int64)
    clipped = np.zeros(parameters.clusters, dtype=np.float64)
    for cluster, loss in unit:
        if 0 <= cluster < parameters.clusters:
            counts[cluster] += 1
            clipped[cluster] += 1.0 if math.isnan(loss) else min(max(loss / clip, 0.0), 1.0)
    mass = scale * counts // size
    # The minimum makes the bound exact whatever floating point does to the sum above.
    loss_mass = np.minimum(np.floor(scale * clipped / size).astype(np.int64), mass)
    return np.concatenate([mass, loss_mass])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedStatistics:
    """A site's statistics after noise and clamping: free to use and to send.

    vector: (2C,) int64, every entry within `parameters.site_bound` of 0. What it says per cluster
    is (C,) float64, in units of privacy and nats per token.
    """

    vector: IntArray
    parameters: StatisticsParameters

    @property
    def _sums(self) -> tuple[FloatArray, FloatArray, float]:
        """Noised masses, loss masses and the noise's standard deviation, in units of privacy."""
        masses, loss_masses = np.split(self.vector / self.parameters.scale, 2)
        return masses, loss_masses, self.parameters.std / self.parameters.scale

    @property
    def masses(self) -> FloatArray:
        """Units of privacy per cluster, >= 0; 0 within one standard deviation of the noise."""
        masses, _, std = self._sums
        return np.where(masses > std, masses, 0.0)

    @property
    def signal(self) -> float:
        """Mean square of the noised masses over that of their noise; about 1 without records."""
        masses, _, std = self._sums
        return float(np.mean((masses / std) ** 2))

    @property
    def shares(self) -> FloatArray:
        """Masses as shares that sum to 1; equal shares where all masses are 0."""
        masses = self.masses
        if not masses.any():
            masses = np.ones_like(masses)
        shares: FloatArray = masses / masses.sum()
        return shares

    @property
    def mean_losses(self) -> FloatArray:
        """Nats per token, in [0, loss clip].

        A mean loss is a ratio of two noised numbers: below three standard deviations of mass it
        would be noise, and the mean over all clusters stands in for it.
        """
        masses, loss_masses, std = self._sums
        overall = 0.5
        if float(masses.sum()) > std * math.sqrt(len(masses)):
            overall = float(np.clip(loss_masses.sum() / masses.sum(), 0.0, 1.0))
        firm = masses > 3.0 * std
        ratios = np.where(firm, loss_masses / np.where(firm, masses, 1.0), overall)
        return self.parameters.loss_clip * np.clip(ratios, 0.0, 1.0)

    @property
    def probabilities(self) -> FloatArray:
        """How probable the SLM finds the records' own answers: exp(-mean loss), in [0, 1]."""
        return probability(self.mean_losses)


# The ledger's description of one round's statistics, built from their parameters.
statistics_spec = partial(vector_spec, PURPOSE)


def release_statistics(
    measure: Callable[[Reservation], Sequence[Sequence[MeasuredRecord]]],
    *,
    parameters: StatisticsParameters,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[NoisedStatistics]:
    """Pay, measure, add discrete Gaussian noise, clamp, commit: the only way out for statistics.

    The noise is the site's own full guarantee; it depends on no other party. What is measured is
    clipped and added up here, by the parameters that the noise is sized for.

    Args:
        measure: the records of every unit, as `unit_statistics` takes them; called only once the
            ledger has the reservation, and not at all where this round's output is stored already.
        spec: from `statistics_spec` with the same parameters.
    Returns: every entry within `parameters.site_bound` of 0.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` belongs to other parameters. LedgerError: see `LedgerBook.reserve`, or stored bytes
        that do not fit the parameters.
    """
    noised = release_vector(
        lambda paid: unit_statistics(measure(paid), parameters),
        purpose=PURPOSE,
        noise=parameters,
        bound=parameters.site_bound,
        book=book,
        spec=spec,
    )
    return post_process(
        noised, lambda vector: NoisedStatistics(vector=vector, parameters=parameters)
    )
