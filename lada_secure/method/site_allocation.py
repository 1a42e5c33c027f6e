"""What a site wants from the pool: what it believes of the cells, their utility, and its picks.

Reads released statistics, the reward model's history and losses of released models on public
rationales; no private record. So all of it is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lada_secure.allocation.agreement import cell_agreement
from lada_secure.allocation.data_valuation import ClusterUsefulness, cell_usefulness, usefulness
from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.fallback_causes import unfounded_choice
from lada_secure.allocation.gap import SlmKnowledge, cell_means, sample_values, smoothed
from lada_secure.allocation.reward_model import CellBeliefs, forecast
from lada_secure.allocation.selection import (
    SMALLEST_SCORE,
    cluster_quotas,
    cluster_utilities,
    pick_by_cluster,
    read_scores,
)
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import CellView, cell_utilities, strategy
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.method.mechanisms import cell_grid, sample_value
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_state import SiteState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellChoice:
    """A site's beliefs about every cell in a round, and their utility to it, (d,) in [-1, 1].

    fallback: why topics decide nothing; None where they do.
    """

    view: CellView
    utilities: FloatArray
    fallback: Fallback | None = None


def valued_clusters(plan: MethodPlan, state: SiteState) -> ClusterUsefulness:
    """What data valuation says so far; no cluster is valued where the plan has none."""
    trials = None if plan.guide is None else plan.guide.trials
    clusters = plan.allocation.clusters
    if trials is None:
        return usefulness((), clusters=clusters)
    return usefulness(state.valuations, clusters=clusters, least_gain=trials.least_gain)


def topics_fall_back(plan: MethodPlan, noised: NoisedStatistics) -> Fallback | None:
    """Why this round's choice must not follow topics; None where it may, or never does."""
    at_random = strategy(plan.allocation.strategy).sample_order == "random"
    if plan.allocation.fallback == "off" or at_random:
        return None
    return unfounded_choice(noised)


def choose_cells(
    plan: MethodPlan,
    state: SiteState,
    noised: NoisedStatistics,
    *,
    lacking: FloatArray | None = None,
) -> CellChoice:
    """Fit the reward model and value every cell.

    Before any rationale came, the noised losses stand in for the SLM's losses on rationales. Where
    topics must decide nothing, every cell is worth the same, but for what data valuation says.

    Args: noised: the site's own released statistics. lacking: (C,) in [0, 1], how much of each
        topic the SLM lacks; None where the plan does not read it.
    Raises: ParameterError: a strategy that reads what the SLM lacks, and nothing of it.
    """
    grid, allocation, known = cell_grid(plan), plan.allocation, state.rationales
    prior = noised.probabilities
    seen = cell_means([one.p for one in known], [one.cell for one in known], cells=grid.cells)
    by_cell = smoothed(seen, grid.clusters_of_cells(), prior=float(np.dot(noised.shares, prior)))
    beliefs = CellBeliefs(
        grid=grid,
        mass_share=grid.spread(noised.shares),
        mean_loss=grid.spread(np.clip(noised.mean_losses / noised.parameters.loss_clip, 0.0, 1.0)),
        probability=by_cell if known else grid.spread(prior),
        last_reward=state.history.last_rewards(grid.cells),
        picks=state.history.picks(grid.cells),
    )
    view = CellView(
        beliefs=beliefs,
        forecast=forecast(state.history, beliefs.features(), seed=plan.seed),
        agreement=_agreement(plan, state),
        lacking=None if lacking is None else grid.spread(lacking),
    )
    fallback = topics_fall_back(plan, noised)
    if fallback is None:
        utilities = cell_utilities(allocation.strategy, view, alpha=allocation.exploration_weight)
    else:
        utilities = _even(plan, state, view)
    return CellChoice(view=view, utilities=utilities, fallback=fallback)


def _even(plan: MethodPlan, state: SiteState, view: CellView) -> FloatArray:
    """Equal utilities, (d,); of clusters that were valued, by how surely they agree.

    Valuation was paid for and weighs its own noise. The DP reference model of few records is noise.
    """
    even: FloatArray = np.ones(plan.allocation.cells)
    if view.agreement is None or not valued_clusters(plan, state).tried.any():
        return even
    largest = float(view.agreement.max())
    return even if largest <= 0.0 else view.agreement / largest


def pick_samples(
    plan: MethodPlan,
    state: SiteState,
    noised: NoisedStatistics,
    utilities: FloatArray,
    scores: FloatArray,
    *,
    pool_clusters: IntArray,
    round_id: int,
    slm: SlmKnowledge | None = None,
) -> tuple[int, ...]:
    """Pool indices to ask for, ascending, at most the quota, none that was asked for before.

    Round 0 splits the quota over clusters by noised mass, but for strategies that know their
    utilities by then, and for picks at random, which that would make the strategy "domain"; some
    strategies split it by utility in every round; the others pick over the whole pool. So do all
    where topics must decide nothing, and then at random, unless what the SLM lacks decides. What is
    worth nothing by what the SLM lacks is not asked for; by "score" every passing sample may be.

    All randomness is public: fixed by the plan's seed and the round, the same for all sites, and a
    site that is started again picks the same.

    Args: utilities: (d,) that were encrypted. scores: (n,) that came back.
        pool_clusters: (n,) public cluster per pool sample. slm: what the SLM makes of the pool,
        where the plan's rule reads it.
    """
    allocation, grid, exact = plan.allocation, cell_grid(plan), read_scores(scores)
    rule, value = strategy(allocation.strategy), sample_value(plan)
    no_topics = topics_fall_back(plan, noised) is not None
    at_random = rule.sample_order == "random" or (no_topics and value == "score")
    available = np.ones(len(pool_clusters), dtype=np.bool_)
    available[sorted(state.picked_before(round_id))] = False
    start = round_id == 0 and rule.mass_first and not at_random
    by_cluster = (start or rule.by_cluster) and not no_topics
    # A share of the best score that is left: the cell that it was set by may be used up.
    best = float(exact[available].max(initial=0.0))
    passing = exact >= max(allocation.threshold * best, SMALLEST_SCORE)
    if by_cluster:
        groups, ties = pool_clusters, plan.seed
        shares = noised.shares if start else cluster_utilities(utilities, grid)
    else:
        groups, ties, shares = np.zeros_like(pool_clusters), plan.seed + round_id, np.ones(1)
    if at_random:
        values = np.random.default_rng(plan.seed + round_id).random(len(exact))
    else:
        values = sample_values(value, exact, slm)
    candidates = available & passing
    if value != "score":
        candidates &= values > 0.0
    rooms = np.bincount(groups[candidates], minlength=len(shares))
    quotas = cluster_quotas(shares, allocation.quota, available=rooms)
    chosen = pick_by_cluster(values, candidates, groups, quotas, seed=ties)
    return tuple(int(index) for index in np.flatnonzero(chosen))


def _agreement(plan: MethodPlan, state: SiteState) -> FloatArray | None:
    """How surely each cell's rationales agree with the records; None where nothing was judged yet.

    By data valuation where the study has any, else by the DP reference model.
    """
    if not strategy(plan.allocation.strategy).judged:
        return None
    grid = cell_grid(plan)
    valued = valued_clusters(plan, state)
    if valued.tried.any():
        return cell_usefulness(valued, grid)
    judged = [(known.gain, known.cell) for known in state.rationales if known.gain is not None]
    if not judged:
        return None
    gains, cells = zip(*judged, strict=True)
    return cell_agreement(gains, cells, cells=grid.cells)
