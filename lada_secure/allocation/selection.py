"""One site's choice in one round: what it believes of every cell, and which samples follow.

The same two steps in the whole protocol, where the scores between them come back encrypted, and in
the laboratory in one process. Both read released statistics and released models' losses on
public paths, and nothing else, so that the choice is post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.gap import cell_means, probability, smoothed
from lada_secure.allocation.reward_model import (
    CellBeliefs,
    RewardHistory,
    feature_count,
    fit_reward_model,
)
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import (
    SMALLEST_SCORE,
    CellView,
    cluster_quotas,
    cluster_utilities,
    order_of_samples,
    pick,
    pick_by_cluster,
    strategy,
)
from lada_secure.arrays import BoolArray, FloatArray, IntArray
from lada_secure.ranges import above_zero, at_least, within, zero_or_more

# Scores are read in steps of this size: wider than the error that decryption leaves.
SCORE_STEP = 2.0**-10


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSettings:
    """How a site chooses.

    strategy: a key of `strategies.STRATEGIES`. quota: most picks in a round, >= 1.
    threshold: least score of a pick, in [0, 1]. exploration_weight: >= 0, 0 switches it off.
    loss_clip: of the statistics, nats per token. seed: breaks ties and starts the reward model's
    networks.
    """

    strategy: str = "lada"
    quota: int = 30
    threshold: float = 0.1
    exploration_weight: float = 0.1
    loss_clip: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: unknown strategy, or a value out of range."""
        strategy(self.strategy)
        at_least(1, quota=self.quota)
        within(0.0, 1.0, threshold=self.threshold)
        zero_or_more(exploration_weight=self.exploration_weight)
        above_zero(loss_clip=self.loss_clip)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolMap:
    """What is public about the pool: the cells' numbering, and each sample's cluster, (n,)."""

    grid: CellGrid
    clusters: IntArray


def cell_view(
    paths: Sequence[tuple[int, float]],
    history: RewardHistory,
    noised: NoisedStatistics,
    grid: CellGrid,
    settings: AllocationSettings,
    *,
    agreement: FloatArray | None = None,
) -> CellView:
    """What the site believes of every cell, and what its reward model forecasts.

    Args: paths: cell and p = exp(-loss) under the site's SLM of the paths that came so far; before
        any came, the noised losses stand in. history: what training on cells brought. noised:
        the site's own released statistics. agreement: (d,) of `allocation.agreement`.
    """
    prior = probability(noised.mean_losses)
    known = smoothed(
        cell_means([p for _, p in paths], [cell for cell, _ in paths], cells=grid.cells),
        grid.clusters_of_cells(),
        prior=float(np.dot(noised.shares, prior)),
    )
    beliefs = CellBeliefs(
        grid=grid,
        mass_share=grid.spread(noised.shares),
        mean_loss=grid.spread(np.clip(noised.mean_losses / settings.loss_clip, 0.0, 1.0)),
        probability=known if paths else grid.spread(prior),
        last_reward=history.last_rewards(grid.cells),
        picks=history.picks(grid.cells),
    )
    fitted = fit_reward_model(history, width=feature_count(grid), seed=settings.seed)
    return CellView(
        beliefs=beliefs, forecast=fitted.forecast(beliefs.features()), agreement=agreement
    )


def choose(
    pool: PoolMap,
    noised: NoisedStatistics,
    utilities: FloatArray,
    scores: FloatArray,
    available: BoolArray,
    settings: AllocationSettings,
    *,
    round_id: int,
) -> BoolArray:
    """Pick within the quota.

    Round 0 splits the quota over clusters by noised mass, but for picks at random, which that would
    make the strategy "domain"; some strategies split it by utility in every round; the others pick
    by score over the whole pool.

    Args: utilities: (d,) of `cell_utilities`. scores: (n,) that came back for them; rounded here to
        `SCORE_STEP`, so that decryption, which is off by less, decides no tie. available: (n,)
        samples that may be picked.
    Returns: (n,) bool with at most quota True.
    """
    rule = strategy(settings.strategy)
    exact = np.round(scores / SCORE_STEP) * SCORE_STEP
    start = round_id == 0 and rule.sample_order == "scores"
    order = order_of_samples(settings.strategy, exact, seed=settings.seed + round_id)
    if start or rule.by_cluster:
        candidates = available & (exact >= settings.threshold)
        shares = noised.shares if start else cluster_utilities(utilities, pool.grid)
        rooms = np.bincount(pool.clusters[candidates], minlength=pool.grid.clusters)
        quotas = cluster_quotas(shares, settings.quota, available=rooms)
        return pick_by_cluster(order, candidates, pool.clusters, quotas, seed=settings.seed)
    # A share of the best score that is left, because the cell that it was set by may be used up.
    best = float(exact[available].max(initial=0.0))
    candidates = available & (exact >= max(settings.threshold * best, SMALLEST_SCORE))
    return pick(order, candidates, quota=settings.quota, seed=settings.seed + round_id)
