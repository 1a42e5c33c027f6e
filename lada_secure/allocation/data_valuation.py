"""What data valuations say of public clusters: how useful their paths are to a site's records.

Reads released gains (`lada_secure.allocation.valuation_gains`) and nothing private. A gain of -1
clip is the worst there is: to be trained on these paths makes every record less likely.
*Usefulness* is how far a gain lies above that, and counts against that of the best cluster: few
paths teach too little to raise any record, but they do not contradict all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.valuation_gains import NoisedGains
from lada_secure.arrays import BoolArray, FloatArray, index_vector
from lada_secure.ranges import within

# Fewer paths say more of themselves than of their cluster.
LEAST_RATIONALES = 3
# A valuation student is not the student: how far a gain may be off, beside the noise, in clips.
_VALUATION_STD = 0.1
_UNSURE = 0.5
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterValuation:
    """One cluster's valuation in one round.

    paths: how many the valuation student was trained on, >= 1. gain: noised mean over units, in
    clips. std: of the noise in it.
    """

    cluster: int
    paths: int
    gain: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterUsefulness:
    """What all valuations so far say.

    value: (C,) about 0 to 1, NaN where no valuation was. std: (C,) of the noise in it. least: in
    [0, 1], what is less is useful to nobody, however bad the other clusters are.
    """

    value: FloatArray
    std: FloatArray
    least: float = 0.0

    @property
    def tried(self) -> BoolArray:
        """Which clusters had a valuation, (C,)."""
        return ~np.isnan(self.value)

    @property
    def best(self) -> float:
        """The largest value, at most 1: noise may carry it beyond what can be."""
        return min(float(np.max(self.value, initial=0.0, where=self.tried)), 1.0)

    def bound(self, least_share: float) -> float:
        """Usefulness that is `least_share` of the best cluster's, and at least `least`."""
        within(0.0, 1.0, least_share=least_share)
        return max(least_share * self.best, self.least)


def groups_to_value(
    clusters_of_rationales: npt.ArrayLike, *, clusters: int
) -> dict[int, list[int]]:
    """Places of the paths of every cluster that has enough for a valuation, by cluster."""
    places = index_vector("clusters of paths", clusters_of_rationales, below=clusters)
    groups = {cluster: np.flatnonzero(places == cluster).tolist() for cluster in range(clusters)}
    return {cluster: found for cluster, found in groups.items() if len(found) >= LEAST_RATIONALES}


def cluster_valuations(
    noised: NoisedGains, rationales_of_cluster: dict[int, int]
) -> list[ClusterValuation]:
    """One round's release by cluster; empty where hardly a record has reasons.

    Args: rationales_of_cluster: how many paths each cluster had that got a valuation.
    """
    if not noised.counts:
        return []
    means, std = noised.means, noised.std
    return [
        ClusterValuation(cluster=cluster, paths=paths, gain=float(means[cluster]), std=std)
        for cluster, paths in sorted(rationales_of_cluster.items())
    ]


def usefulness(
    trials: Sequence[ClusterValuation], *, clusters: int, least_gain: float = -1.0
) -> ClusterUsefulness:
    """Average the valuations of each cluster over rounds, every one by how many paths it had.

    Rounds have noise of their own, and valuations on more paths resemble the student more.

    Args: least_gain: in clips, -1 to 1; a cluster that gains less contradicts the records. -1 where
        few paths lower every record, whatever they say.
    Raises: ParameterError: a cluster or least_gain out of range.
    """
    within(-1.0, 1.0, least_gain=least_gain)
    places = index_vector("clusters of trials", [one.cluster for one in trials], below=clusters)
    weights = np.array([one.paths for one in trials], dtype=np.float64)
    gains = np.array([one.gain for one in trials], dtype=np.float64)
    stds = np.array([one.std for one in trials], dtype=np.float64)
    weight = np.bincount(places, weights=weights, minlength=clusters)
    tried = weight > 0.0
    divisor = np.where(tried, weight, 1.0)
    mean = np.bincount(places, weights=weights * gains, minlength=clusters) / divisor
    variance = np.bincount(places, weights=(weights * stds) ** 2, minlength=clusters) / divisor**2
    return ClusterUsefulness(
        value=np.where(tried, (1.0 + mean) / 2.0, np.nan),
        std=np.sqrt(variance) / 2.0,
        least=(1.0 + least_gain) / 2.0,
    )


def cell_usefulness(found: ClusterUsefulness, grid: CellGrid) -> FloatArray:
    """How sure it is that a cell's cluster is useful enough, (d,) in [0, 1]; 1/2 if not tried.

    The normal probability that its usefulness reaches half of the best, `ClusterUsefulness.bound`.
    """
    from scipy.special import ndtr

    spread = np.hypot(found.std, _VALUATION_STD / 2.0)
    sure = ndtr((found.value - found.bound(_LEAST_SHARE)) / spread)
    return grid.spread(np.where(found.tried, sure, _UNSURE))


def useful_rationales(
    found: ClusterUsefulness,
    clusters_of_rationales: npt.ArrayLike,
    otherwise: BoolArray,
    *,
    least_share: float,
) -> BoolArray:
    """Which paths to train on, (m,): all of a tried cluster or none; the rest as `otherwise` says.

    Args: otherwise: (m,), a verdict on single paths for clusters without a valuation.
        least_share: in [0, 1].
    """
    within(0.0, 1.0, least_share=least_share)
    places = index_vector(
        "clusters of paths", clusters_of_rationales, below=len(found.value), length=len(otherwise)
    )
    value = np.nan_to_num(found.value)
    # Against a bound that other clusters do not move, noise alone must not throw one away: one
    # standard deviation of it is allowed for.
    useful = found.tried & (value >= least_share * found.best) & (value + found.std >= found.least)
    return np.where(found.tried[places], useful[places], otherwise)
