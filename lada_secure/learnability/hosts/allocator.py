"""LaDa's choice for one site in one round, for any method that trains on pool samples.

Reads released statistics, released models' losses on public paths, and nothing else; so the
choice is post-processing. How samples are scored is the caller's: `score` multiplies the site's
cell utilities by the coordinator's pool matrix, blindly over the network or in the clear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lada_secure.errors import LocalProtocolError, ParameterError
from lada_secure.learnability.allocation import (
    CellView,
    cell_utilities,
    cluster_quotas,
    cluster_worths,
    pick_by_cluster,
    pick_in_turn,
    sample_priorities,
    strategy,
)
from lada_secure.learnability.arrays import BoolArray, FloatArray, IntArray, float_vector
from lada_secure.learnability.cells import CellGrid
from lada_secure.learnability.data_filter import (
    CellBeliefs,
    FilterHistory,
    FilterSettings,
    feature_count,
    fit_filter,
    observations,
)
from lada_secure.learnability.gap import cell_means, probability, smoothed
from lada_secure.learnability.statistics import ClusterEstimates

# These split the quota over clusters in every round, not only in the first.
BY_CLUSTER = ("guided", "domain")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSettings:
    """How a site chooses.

    strategy: a key of `learnability.allocation.STRATEGIES`. quota: most picks in a round, >= 1.
    threshold: least score of a pick, in [0, 1]. exploration_weight: >= 0, 0 switches it off.
    clustering_start: quotas by noised mass in round 0. loss_clip: of the statistics, nats per
    token. seed: breaks ties and starts the filter's networks.
    """

    strategy: str = "lada"
    quota: int = 30
    threshold: float = 0.1
    exploration_weight: float = 0.1
    clustering_start: bool = True
    loss_clip: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: unknown strategy, or a value out of range."""
        strategy(self.strategy)
        checks = {
            "quota": self.quota >= 1,
            "threshold": 0.0 <= self.threshold <= 1.0,
            "exploration_weight": 0.0 <= self.exploration_weight < float("inf"),
            "loss_clip": 0.0 < self.loss_clip < float("inf"),
        }
        wrong = [name for name, good in checks.items() if not good]
        if wrong:
            raise ParameterError(f"allocation settings out of range: {', '.join(wrong)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolMap:
    """What is public about the pool: the cells' numbering, and each sample's cluster, (n,)."""

    grid: CellGrid
    clusters: IntArray


@dataclass(slots=True, kw_only=True)
class AllocationState:
    """What LaDa remembers of one site between rounds.

    picked: pool indices that were ever asked for. first_p: cell and p = exp(-loss) of every path
    that came, before the site was trained on it: how its SLM does on others of that cell.
    history: what training on cells brought. view: the site's last view of the cells.
    """

    picked: set[int] = field(default_factory=set)
    first_p: dict[int, tuple[int, float]] = field(default_factory=dict)
    history: FilterHistory = field(default_factory=FilterHistory)
    view: CellView | None = None

    def note(self, place: int, *, cell: int, loss: float) -> None:
        """Note a path that came, before it is trained on.

        Args: place: pool index. cell: of the sample. loss: of the SLM, nats per token, >= 0.
        """
        self.first_p[place] = (cell, float(probability([loss])[0]))

    def learn(self, round_id: int, rewards: Mapping[int, float]) -> None:
        """Remember what a round's training brought, for the data filter.

        Args: rewards: by pool index, in [-1, 1], of samples in `first_p`.
        Raises: LocalProtocolError: before any allocation, or of a path that never came.
        """
        unknown = [place for place in rewards if place not in self.first_p]
        if self.view is None or unknown:
            raise LocalProtocolError("rewards came for samples that were never allocated")
        if not rewards:
            return
        means = cell_means(
            list(rewards.values()),
            [self.first_p[place][0] for place in rewards],
            cells=self.view.beliefs.grid.cells,
        )
        self.history = self.history.with_round(
            observations(self.view.beliefs, means, round_id=round_id)
        )


def allocate(
    state: AllocationState,
    pool: PoolMap,
    estimates: ClusterEstimates,
    score: Callable[[FloatArray], npt.ArrayLike],
    settings: AllocationSettings,
    *,
    round_id: int,
    agreement: FloatArray | None = None,
) -> tuple[int, ...]:
    """Choose the pool samples that a site asks for, and remember that it did.

    Args: estimates: the site's own released statistics. score: from cell utilities (d,) in
        [-1, 1] to scores of all samples, (n,). agreement: (d,) of `learnability.agreement`.
    Returns: pool indices, ascending, none that was picked before; fewer than the quota where
        fewer pass the threshold or are left.
    Raises: ParameterError: shapes that differ.
    """
    alpha = settings.exploration_weight
    state.view = look(state, pool.grid, estimates, settings, agreement=agreement)
    utilities = cell_utilities(settings.strategy, state.view, alpha=alpha)
    scores = float_vector("scores", score(utilities), length=len(pool.clusters))
    fresh = np.ones(len(pool.clusters), dtype=np.bool_)
    fresh[sorted(state.picked)] = False
    chosen = _picks(pool, estimates, utilities, scores, fresh, settings, round_id=round_id)
    places = tuple(int(one) for one in np.flatnonzero(chosen))
    state.picked.update(places)
    return places


def look(
    state: AllocationState,
    grid: CellGrid,
    estimates: ClusterEstimates,
    settings: AllocationSettings,
    *,
    agreement: FloatArray | None = None,
) -> CellView:
    """What the site believes of every cell now, and what its data filter forecasts."""
    paths = list(state.first_p.values())
    prior = probability(estimates.mean_losses)
    known = smoothed(
        cell_means([p for _, p in paths], [cell for cell, _ in paths], cells=grid.cells),
        grid.clusters_of_cells(),
        prior=float(np.dot(estimates.shares, prior)),
    )
    beliefs = CellBeliefs(
        grid=grid,
        mass_share=grid.spread(estimates.shares),
        mean_loss=grid.spread(np.clip(estimates.mean_losses / settings.loss_clip, 0.0, 1.0)),
        probability=known if paths else grid.spread(prior),
        last_reward=state.history.last_rewards(grid.cells),
        picks=state.history.picks(grid.cells),
    )
    fitted = fit_filter(
        state.history, FilterSettings(seed=settings.seed), width=feature_count(grid)
    )
    return CellView(
        beliefs=beliefs, forecast=fitted.forecast(beliefs.features()), agreement=agreement
    )


def _picks(
    pool: PoolMap,
    estimates: ClusterEstimates,
    utilities: FloatArray,
    scores: FloatArray,
    fresh: BoolArray,
    settings: AllocationSettings,
    *,
    round_id: int,
) -> BoolArray:
    start = round_id == 0 and settings.clustering_start and settings.strategy != "random"
    priorities = sample_priorities(settings.strategy, scores, seed=settings.seed + round_id)
    if start or settings.strategy in BY_CLUSTER:
        shares = estimates.shares if start else cluster_worths(utilities, pool.grid)
        good = fresh & (scores >= settings.threshold)
        rooms = np.bincount(pool.clusters[good], minlength=pool.grid.clusters)
        return pick_by_cluster(
            scores,
            pool.clusters,
            cluster_quotas(shares, settings.quota, available=rooms),
            threshold=settings.threshold,
            available=fresh,
            priorities=priorities,
            seed=settings.seed,
        )
    return pick_in_turn(
        scores,
        (fresh,),
        quota=settings.quota,
        threshold=settings.threshold,
        priorities=priorities,
        seed=settings.seed + round_id,
    )
