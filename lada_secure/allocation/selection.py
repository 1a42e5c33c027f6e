"""One site's choice in one round: what it believes of every cell, and which samples follow.

The same two steps in the whole protocol, where the scores between them come back encrypted, and in
front of any baseline in one process. Both read released statistics and released models' losses on
public paths, and nothing else, so that the choice is post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.gap import cell_means, probability, smoothed
from lada_secure.allocation.reward_model import (
    CellBeliefs,
    RewardHistory,
    RewardModelSettings,
    feature_count,
    fit_reward_model,
)
from lada_secure.allocation.strategies import (
    CellView,
    cluster_quotas,
    cluster_utilities,
    pick_by_cluster,
    pick_in_turn,
    strategy,
    utilities_of_samples,
)
from lada_secure.arrays import BoolArray, FloatArray, IntArray
from lada_secure.errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSettings:
    """How a site chooses.

    strategy: a key of `strategies.STRATEGIES`. quota: most picks in a round, >= 1.
    threshold: least score of a pick, in [0, 1]. exploration_weight: >= 0, 0 switches it off.
    clustering_start: quotas by noised mass in round 0, but for picks at random, which that would
    make the strategy "domain". loss_clip: of the statistics, nats per token. seed: breaks ties and
    starts the filter's networks.
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


def cell_view(
    paths: Sequence[tuple[int, float]],
    history: RewardHistory,
    estimates: ClusterEstimates,
    grid: CellGrid,
    settings: AllocationSettings,
    *,
    agreement: FloatArray | None = None,
) -> CellView:
    """What the site believes of every cell, and what its reward model forecasts.

    Args: paths: cell and p = exp(-loss) under the site's SLM of the paths that came so far; before
        any came, the noised losses stand in. history: what training on cells brought. estimates:
        the site's own released statistics. agreement: (d,) of `allocation.agreement`.
    """
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
        last_reward=history.last_rewards(grid.cells),
        picks=history.picks(grid.cells),
    )
    fitted = fit_reward_model(
        history, RewardModelSettings(seed=settings.seed), width=feature_count(grid)
    )
    return CellView(
        beliefs=beliefs, forecast=fitted.forecast(beliefs.features()), agreement=agreement
    )


def choose(
    pool: PoolMap,
    estimates: ClusterEstimates,
    utilities: FloatArray,
    scores: FloatArray,
    groups: Sequence[BoolArray],
    settings: AllocationSettings,
    *,
    round_id: int,
) -> BoolArray:
    """Pick within the quota.

    Round 0 splits the quota over clusters by noised mass, and some strategies do so by worth in
    every round; the others pick by score over the whole pool.

    Args: utilities: (d,) of `cell_utilities`. scores: (n,) that came back for them. groups: of (n,)
        bool, disjoint, the samples that were never picked first; what these leave of the quota may
        go to the later groups, but a quota by cluster is for the first alone.
    Returns: (n,) bool with at most quota True.
    """
    start = round_id == 0 and settings.clustering_start and settings.strategy != "random"
    sample_utilities = utilities_of_samples(
        settings.strategy, scores, seed=settings.seed + round_id
    )
    if start or strategy(settings.strategy).by_cluster:
        shares = estimates.shares if start else cluster_utilities(utilities, pool.grid)
        good = groups[0] & (scores >= settings.threshold)
        rooms = np.bincount(pool.clusters[good], minlength=pool.grid.clusters)
        return pick_by_cluster(
            scores,
            pool.clusters,
            cluster_quotas(shares, settings.quota, available=rooms),
            threshold=settings.threshold,
            available=groups[0],
            sample_utilities=sample_utilities,
            seed=settings.seed,
        )
    return pick_in_turn(
        scores,
        groups,
        quota=settings.quota,
        threshold=settings.threshold,
        sample_utilities=sample_utilities,
        seed=settings.seed + round_id,
    )
