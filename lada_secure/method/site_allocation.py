"""What a site wants from the pool: what it believes of the cells, their utility, and its picks.

Reads released statistics, the reward model's history and losses of released models on public
rationales; no private record. So all of it is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lada_secure.allocation.agreement import cell_agreement
from lada_secure.allocation.data_valuation import ClusterUsefulness, cell_usefulness, usefulness
from lada_secure.allocation.selection import PoolMap, cell_view, choose
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import CellView, cell_utilities, rationale_screen, strategy
from lada_secure.arrays import BoolArray, FloatArray, IntArray
from lada_secure.method.mechanisms import allocation_settings, cell_grid
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_state import SiteState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellChoice:
    """A site's beliefs about every cell in a round, and their utility to it, (d,) in [-1, 1]."""

    view: CellView
    utilities: FloatArray


def valued_clusters(plan: MethodPlan, state: SiteState) -> ClusterUsefulness:
    """What data valuation says so far; no cluster is valued where the plan has none."""
    trials = None if plan.guide is None else plan.guide.trials
    clusters = plan.allocation.clusters
    if trials is None:
        return usefulness((), clusters=clusters)
    return usefulness(state.valuations, clusters=clusters, least_gain=trials.least_gain)


def choose_cells(plan: MethodPlan, state: SiteState, noised: NoisedStatistics) -> CellChoice:
    """Fit the reward model and value every cell."""
    settings, grid = allocation_settings(plan), cell_grid(plan)
    view = cell_view(
        [(known.cell, known.p) for known in state.rationales],
        state.history,
        noised,
        grid,
        settings,
        agreement=_agreement(plan, state),
    )
    utilities = cell_utilities(settings.strategy, view, alpha=settings.exploration_weight)
    return CellChoice(view=view, utilities=utilities)


def pick_samples(
    plan: MethodPlan,
    state: SiteState,
    noised: NoisedStatistics,
    utilities: FloatArray,
    scores: FloatArray,
    *,
    pool_clusters: IntArray,
    round_id: int,
) -> tuple[int, ...]:
    """Pool indices to ask for, ascending, at most the quota, none that was asked for before.

    Args: utilities: (d,) that were encrypted. scores: (n,) that came back.
        pool_clusters: (n,) public cluster per pool sample.
    """
    available = np.ones(len(pool_clusters), dtype=np.bool_)
    available[sorted(state.picked_before(round_id))] = False
    chosen = choose(
        PoolMap(grid=cell_grid(plan), clusters=pool_clusters),
        noised,
        utilities,
        scores,
        available,
        allocation_settings(plan),
        round_id=round_id,
    )
    return tuple(int(index) for index in np.flatnonzero(chosen))


def screened(plan: MethodPlan, probabilities: FloatArray) -> BoolArray:
    """(m,) rationales that the SLM can follow and does not know by heart yet."""
    allocation = plan.allocation
    return rationale_screen(probabilities, allocation.screen_low, allocation.screen_high)


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
