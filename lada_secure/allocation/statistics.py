"""Noised statistics of a site: how much of its data lies where, and how hard it finds it.

Per public cluster c: the mass n_c and the clipped loss mass e_c, where every privacy unit (a
patient, a customer) spreads a weight of 1 over its records. In whole numbers at a public scale s,
because masks, encryption and discrete noise are exact only over whole numbers.

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
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from lada_secure.allocation.cluster_estimates import ClusterEstimates, cluster_estimates
from lada_secure.allocation.statistics_parameters import (
    StatisticsParameters,
    check_clip_and_scale,
    check_vector,
)
from lada_secure.arrays import IntArray, frozen
from lada_secure.errors import LocalProtocolError
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import ReleaseSpec, Reservation
from lada_secure.privacy.release.noised_vectors import release_vector, vector_spec
from lada_secure.privacy.released import Released, post_process

PURPOSE = "statistics"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitStatistics:
    """Exact statistics of private data, before noise. Never leaves the site; no repr of values.

    vector: (2C,) int64 >= 0, C masses then C loss masses, in steps.
    """

    vector: IntArray = field(repr=False)
    clusters: int
    loss_clip: float
    scale: int


class MeasuredRecord(NamedTuple):
    """Public cluster of a record, in [0, C), and the SLM's loss on it in nats per token."""

    cluster: int
    loss: float


def unit_statistics(
    measured: Sequence[Sequence[MeasuredRecord]],
    *,
    clusters: int,
    loss_clip: float,
    scale: int,
) -> UnitStatistics:
    """Add up what every privacy unit contributes.

    A unit with k records gives each of them weight 1/k. Its share of cluster c, in steps, is
    floor(s x its records there / k); its loss mass is floor(s x the sum of their clipped losses
    over the clip / k), and never above that share.

    Args: measured: per unit of `bound_units`, its records; may be empty. A unit without any adds
        zero: it could not be measured.
    Returns: all zeros for no units.
    Raises: ParameterError: clip or scale out of range.

    Values | count as
    ---|---
    loss below 0 | 0
    loss above the clip, +inf | the clip
    loss NaN | the clip: refusing the record would let one record stop a release
    cluster out of range | nothing, as if the record were not there, with its weight
    """
    check_clip_and_scale(loss_clip, scale)
    total = np.zeros(2 * clusters, dtype=np.int64)
    for unit in measured:
        if unit:
            total += _contribution(unit, clusters=clusters, loss_clip=loss_clip, scale=scale)
    return UnitStatistics(vector=frozen(total), clusters=clusters, loss_clip=loss_clip, scale=scale)


def _contribution(
    unit: Sequence[MeasuredRecord], *, clusters: int, loss_clip: float, scale: int
) -> IntArray:
    counts = np.zeros(clusters, dtype=np.int64)
    clipped = np.zeros(clusters, dtype=np.float64)
    for cluster, loss in unit:
        if 0 <= cluster < clusters:
            counts[cluster] += 1
            clipped[cluster] += 1.0 if math.isnan(loss) else min(max(loss / loss_clip, 0.0), 1.0)
    size = len(unit)
    mass = scale * counts // size
    # The minimum makes the bound exact whatever floating point does to the sum above.
    loss_mass = np.minimum(np.floor(scale * clipped / size).astype(np.int64), mass)
    return np.concatenate([mass, loss_mass])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedStatistics:
    """A site's statistics after noise and clamping: free to use and to send.

    vector: (2C,) int64, every entry within `parameters.site_bound` of 0.
    """

    vector: IntArray
    parameters: StatisticsParameters

    def __post_init__(self) -> None:
        """Check the proven bound.

        Raises: ParameterError: wrong length or an entry beyond the bound.
        """
        check_vector(self.vector, self.parameters.length, self.parameters.site_bound)
        object.__setattr__(self, "vector", frozen(self.vector))

    def estimates(self) -> ClusterEstimates:
        """What the site may believe of its own data."""
        return cluster_estimates(self.vector, self.parameters)


# The ledger's description of one round's statistics, built from their parameters.
statistics_spec = partial(vector_spec, PURPOSE)


def release_statistics(
    compute: Callable[[Reservation], UnitStatistics],
    *,
    parameters: StatisticsParameters,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[NoisedStatistics]:
    """Pay, compute, add discrete Gaussian noise, clamp, commit: the only way out for statistics.

    The noise is the site's own full guarantee; it depends on no other party.

    Args:
        compute: `unit_statistics` of the site's records; called only once the ledger has the
            reservation, and not at all where this round's output is stored already.
        spec: from `statistics_spec` with the same parameters.
    Returns: every entry within `parameters.site_bound` of 0.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` or the computed statistics belong to other parameters. LedgerError: see
        `LedgerBook.reserve`, or stored bytes that do not fit the parameters.
    """

    def exact(paid: Reservation) -> IntArray:
        found = compute(paid)
        _check_same(found, parameters)
        return found.vector

    noised = release_vector(
        exact,
        purpose=PURPOSE,
        noise=parameters,
        bound=parameters.site_bound,
        book=book,
        spec=spec,
    )
    return post_process(
        noised, lambda vector: NoisedStatistics(vector=vector, parameters=parameters)
    )


def _check_same(exact: UnitStatistics, parameters: StatisticsParameters) -> None:
    """Noise is sized for one scale, clip and length; statistics made with others void it."""
    got = (exact.clusters, exact.loss_clip, exact.scale, exact.vector.shape)
    expected = (
        parameters.clusters,
        parameters.loss_clip,
        parameters.scale,
        (parameters.length,),
    )
    if got != expected:
        raise LocalProtocolError(
            f"statistics: expected clusters, loss clip, scale and shape {expected}, got {got}"
        )
