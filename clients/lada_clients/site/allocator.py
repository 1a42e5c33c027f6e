"""What a site wants from the pool: its view of the cells, their worth, and its picks.

Reads released statistics, the filter's history and losses of the released model on public paths;
no private record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lada_clients.site.memory import SiteMemory
from lada_protocol.plan import StudyPlan
from lada_secure.allocation.agreement import cell_agreement
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.data_valuation import ClusterUsefulness, cell_usefulness, usefulness
from lada_secure.allocation.selection import AllocationSettings, PoolMap, cell_view, choose
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import CellView, cell_utilities, rationale_screen
from lada_secure.arrays import BoolArray, FloatArray, IntArray


def tried_clusters(plan: StudyPlan, memory: SiteMemory, grid: CellGrid) -> ClusterUsefulness:
    """What the site's data valuations so far say; nothing where the plan has none."""
    trials = None if plan.guide is None else plan.guide.trials
    if trials is None:
        return usefulness((), clusters=grid.clusters)
    return usefulness(memory.trials(), clusters=grid.clusters, least_gain=trials.least_gain)


@dataclass(slots=True, kw_only=True)
class SiteAllocator:
    """One site's allocation during one study. `pool_clusters`: (n,) public cluster per sample."""

    plan: StudyPlan
    grid: CellGrid
    pool_clusters: IntArray
    memory: SiteMemory
    _views: dict[int, tuple[CellView, FloatArray]] = field(default_factory=dict)

    def utilities(self, round_id: int, noised: NoisedStatistics) -> FloatArray:
        """Fit the reward model and value every cell, (d,) in [-1, 1].

        Reads released statistics and losses of the released model on public paths, nothing else.
        """
        return self.view(round_id, noised)[1]

    def view(self, round_id: int, noised: NoisedStatistics) -> tuple[CellView, FloatArray]:
        """What the site believes of every cell in a round, and what each is worth to it, (d,)."""
        if round_id not in self._views:
            settings = self._settings(noised)
            view = cell_view(
                [(one.cell, one.p) for one in self.memory.known_paths()],
                self.memory.history(),
                noised.estimates(),
                self.grid,
                settings,
                agreement=self._agreement(),
            )
            utility = cell_utilities(settings.strategy, view, alpha=settings.exploration_weight)
            self._views[round_id] = (view, utility)
        return self._views[round_id]

    def picks(self, round_id: int, noised: NoisedStatistics, scores: FloatArray) -> list[int]:
        """Pool indices that this site wants, at most the quota; round 0 by noised masses."""
        kept = self.memory.picks(round_id)
        if kept is not None:
            return kept
        chosen = choose(
            PoolMap(grid=self.grid, clusters=self.pool_clusters),
            noised.estimates(),
            self.utilities(round_id, noised),
            scores,
            self._available(round_id),
            self._settings(noised),
            round_id=round_id,
        )
        picked = [int(one) for one in np.flatnonzero(chosen)]
        self.memory.keep_picks(round_id, picked)
        return picked

    def _settings(self, noised: NoisedStatistics) -> AllocationSettings:
        allocation = self.plan.allocation
        return AllocationSettings(
            strategy=allocation.strategy,
            quota=allocation.quota,
            threshold=allocation.threshold,
            exploration_weight=allocation.exploration_weight,
            loss_clip=noised.parameters.loss_clip,
            seed=self.plan.seed,
        )

    def _agreement(self) -> FloatArray | None:
        """How surely each cell's paths agree with the records; None where none was judged yet.

        By data valuations where the study has them, else by the guide.
        """
        tried = tried_clusters(self.plan, self.memory, self.grid)
        if tried.tried.any():
            return cell_usefulness(tried, self.grid)
        judged = self.memory.judged_paths()
        if not judged:
            return None
        return cell_agreement(
            [one.gain for one in judged], [one.cell for one in judged], cells=self.grid.cells
        )

    def _available(self, round_id: int) -> tuple[BoolArray, BoolArray]:
        """Samples never picked before, and those picked before that the SLM can still learn."""
        fresh = np.ones(len(self.pool_clusters), dtype=np.bool_)
        fresh[sorted(self.memory.picked_before(round_id))] = False
        again = np.zeros(len(self.pool_clusters), dtype=np.bool_)
        paths = self.memory.known_paths()
        learnable = self.screen(np.array([one.p for one in paths], dtype=np.float64))
        again[[paths[number].sample for number in learnable]] = True
        return fresh, again & ~fresh

    def screen(self, probabilities: FloatArray) -> list[int]:
        """Places of the paths that this model can follow and does not know by heart yet."""
        allocation = self.plan.allocation
        inside = rationale_screen(probabilities, allocation.screen_low, allocation.screen_high)
        return [int(one) for one in np.flatnonzero(inside)]
