"""Allocation: strategies that value cells, and the picks that follow from decrypted scores.

All strategies stand behind one function, `cell_utilities`, so that an experiment changes one name.
The utilities leave the site only encrypted under its own key; the scores come back encrypted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.reward_model import CellBeliefs, Forecast
from lada_secure.arrays import BoolArray, FloatArray, IntArray, float_vector, index_vector
from lada_secure.errors import ParameterError
from lada_secure.ranges import at_least, zero_or_more

# Decryption leaves an error of about 1e-5, so that a score of exactly 0 comes back as either sign.
SMALLEST_SCORE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellView:
    """All that a strategy may look at: the site's beliefs and its filter's forecast.

    agreement: (d,) in [0, 1], how sure it is that a cell's paths agree with the private records
    (`lada_secure.allocation.agreement`); None where nothing was measured.
    """

    beliefs: CellBeliefs
    forecast: Forecast
    agreement: FloatArray | None = None

    def __post_init__(self) -> None:
        """Check that both speak of the same cells.

        Raises: ParameterError: lengths that differ, or a forecast that is not finite.
        """
        cells = self.beliefs.grid.cells
        float_vector("exploitation", self.forecast.exploitation, length=cells)
        float_vector("exploration", self.forecast.exploration, length=cells)
        if self.agreement is not None:
            float_vector("agreement", self.agreement, length=cells, low=0.0, high=1.0)

    def promise(self, alpha: float) -> FloatArray:
        """Exploitation + alpha x exploration, (d,), in units of reward."""
        return self.forecast.exploitation + alpha * self.forecast.exploration


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A named way to value cells.

    `utility` maps a view and alpha to (d,) float64 of any scale. `sample_order` says how samples
    rank that pass the threshold: by their scores, or at random. `by_cluster`: the quota is split
    over clusters by utility in every round, not only in the first by mass. `judged`: rationales are
    judged by the DP reference model and by data valuation, where the plan has them, and those that
    contradict the private records are not trained on; without it nothing is judged or paid for.
    """

    name: str
    summary: str
    utility: Callable[[CellView, float], FloatArray]
    sample_order: str = "scores"
    by_cluster: bool = False
    judged: bool = False


def _utility_lada(view: CellView, alpha: float) -> FloatArray:
    # A cell that is predicted to do harm is worth 0 however much mass lies on it; without the
    # floor, the least relevant of the harmful cells would rank highest among them.
    promise = np.maximum(view.promise(alpha), 0.0)
    if not promise.any():
        # Noisy training can lower every p at once. Then rewards tell no cells apart, and band and
        # mass still do.
        promise = np.ones_like(promise)
    return view.beliefs.band * view.beliefs.mass_share * promise


def _utility_guided(view: CellView, alpha: float) -> FloatArray:
    utility = _utility_lada(view, alpha)
    return utility if view.agreement is None else utility * view.agreement


def _utility_valuation(view: CellView, _alpha: float) -> FloatArray:
    mass = view.beliefs.mass_share
    return mass.copy() if view.agreement is None else mass * view.agreement


def _utility_band(view: CellView, _alpha: float) -> FloatArray:
    return view.beliefs.band * view.beliefs.mass_share


def _utility_paper(view: CellView, alpha: float) -> FloatArray:
    return view.promise(alpha)


def _utility_domain(view: CellView, _alpha: float) -> FloatArray:
    return view.beliefs.mass_share.copy()


def _utility_random(view: CellView, _alpha: float) -> FloatArray:
    return np.ones(view.beliefs.grid.cells, dtype=np.float64)


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            name="lada",
            summary="learnability band x noised mass x (exploitation + alpha exploration)",
            utility=_utility_lada,
        ),
        Strategy(
            name="paper",
            summary="largest change of exp(-loss): exploitation + alpha exploration alone",
            utility=_utility_paper,
        ),
        Strategy(
            name="band",
            summary="learnability band x noised mass, without the reward model",
            utility=_utility_band,
        ),
        Strategy(
            name="guided",
            summary="lada x how surely the cell's paths agree with the private records",
            utility=_utility_guided,
            by_cluster=True,
            judged=True,
        ),
        Strategy(
            name="valuation",
            summary="noised mass x how surely the cell's paths agree with the private records",
            utility=_utility_valuation,
            by_cluster=True,
            judged=True,
        ),
        Strategy(
            name="domain", summary="noised mass alone", utility=_utility_domain, by_cluster=True
        ),
        Strategy(
            name="random",
            summary="any sample whose path is right, at random",
            utility=_utility_random,
            sample_order="random",
        ),
    )
}


def strategy(name: str) -> Strategy:
    """Look a strategy up by name.

    Raises: ParameterError: unknown name.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ParameterError(
            f"allocation strategy: expected one of {', '.join(sorted(STRATEGIES))}, got {name!r}"
        ) from None


def cell_utilities(name: str, view: CellView, *, alpha: float) -> FloatArray:
    """Value every cell; this vector is what a site encrypts.

    Args: name: a key of `STRATEGIES`. alpha: weight of exploration, >= 0; 0 switches it off.
    Returns: (d,) float64 in [-1, 1]; the largest magnitude is 1, so a threshold on scores is
        relative to the best cell. All zeros where no cell is worth anything.
    Raises: ParameterError: unknown name, alpha < 0 or not finite.
    """
    zero_or_more(alpha=alpha)
    utility = float_vector("worth of cells", strategy(name).utility(view, alpha))
    largest = float(np.abs(utility).max())
    if largest == 0.0:
        return np.zeros_like(utility)
    return np.clip(utility / largest, -1.0, 1.0)


def order_of_samples(name: str, scores: npt.ArrayLike, *, seed: int) -> FloatArray:
    """In which order samples are picked: by score, or at random for a random strategy, (n,)."""
    values = float_vector("scores", scores)
    if strategy(name).sample_order == "random":
        return np.random.default_rng(seed).random(len(values))
    return values


def pick(order: FloatArray, candidates: BoolArray, *, quota: int, seed: int) -> BoolArray:
    """Pick up to `quota` candidates, the first in order.

    Args: order: (n,) finite, largest first; see `order_of_samples`. candidates: (n,) samples that
        may be picked. seed: breaks ties, by a fixed shuffle rather than by position: a pool is
        often sorted by topic.
    Returns: (n,) bool with at most quota True; fewer where there are fewer candidates.
    """
    shuffle = np.random.default_rng(seed).permutation(len(order))
    places = np.lexsort((shuffle, -order))
    picked = np.zeros(len(order), dtype=np.bool_)
    picked[places[candidates[places]][:quota]] = True
    return picked


def pick_by_cluster(
    order: FloatArray, candidates: BoolArray, clusters: IntArray, quotas: IntArray, *, seed: int
) -> BoolArray:
    """Pick within a quota per cluster.

    Args: clusters: (n,) of samples. quotas: (C,) from `cluster_quotas`. The rest as in `pick`.
    Returns: (n,) bool.
    """
    picked = np.zeros(len(order), dtype=np.bool_)
    for cluster, quota in enumerate(quotas.tolist()):
        picked |= pick(order, candidates & (clusters == cluster), quota=quota, seed=seed)
    return picked


def cluster_quotas(shares: npt.ArrayLike, quota: int, *, available: npt.ArrayLike) -> IntArray:
    """Split a quota over clusters in proportion to their shares (largest remainders).

    Args: shares: (C,) >= 0, any scale; all zero counts as equal. quota: samples to split, >= 0.
        available: (C,) samples that each cluster has.
    Returns: (C,) int64, at most `available` each; what a full cluster cannot take goes to the
        others with a share, then to any. Sums to min(quota, samples available).
    """
    at_least(0, quota=quota)
    weights = float_vector("cluster shares", shares, low=0.0)
    rooms = index_vector("available per cluster", available, below=2**31, length=len(weights))
    given = np.zeros(len(weights), dtype=np.int64)
    left = min(quota, int(rooms.sum()))
    while left > 0:
        room = rooms - given
        active = np.where(room > 0, weights, 0.0)
        if active.sum() <= 0.0:
            active = (room > 0).astype(np.float64)
        exact = left * active / active.sum()
        step = np.floor(exact).astype(np.int64)
        by_remainder = np.lexsort((np.arange(len(weights)), -(exact - step)))
        step[by_remainder[: left - int(step.sum())]] += 1
        step = np.minimum(step, room)
        given += step
        left -= int(step.sum())
    return given


def cluster_utilities(utilities: npt.ArrayLike, grid: CellGrid) -> FloatArray:
    """What each public cluster is worth, (C,) >= 0: the mean of its cells' positive utilities.

    Shares for `cluster_quotas`: a site that is not sure splits its quota, and one that is sure does
    not. Picking by score alone would give everything to whichever cell is ahead by a hair.
    """
    values = np.maximum(float_vector("utilities", utilities, length=grid.cells), 0.0)
    per_cluster: FloatArray = values.reshape(grid.clusters, grid.bins).mean(axis=1)
    return per_cluster


def rationale_screen(probabilities: npt.ArrayLike, low: float, high: float) -> BoolArray:
    """Which received paths to train on: those whose p under the SLM lies in [low, high], (n,).

    Below, the SLM cannot follow the path (or the path is bad); above, it knows it already.

    Raises: ParameterError: not 0 <= low < high <= 1.
    """
    values = float_vector("probabilities", probabilities)
    if not 0.0 <= low < high <= 1.0:
        raise ParameterError(f"path screen: expected 0 <= low < high <= 1, got {low} and {high}")
    return (values >= low) & (values <= high)
