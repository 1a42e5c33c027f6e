"""What a site wants from the pool: its view of the cells, their worth, and its picks.

Reads released statistics, the filter's history and losses of the released model on public paths;
no private record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lada_clients.site.memory import SiteMemory
from lada_protocol.plan import StudyPlan
from lada_secure.learnability.agreement import cell_agreement
from lada_secure.learnability.allocation import (
    CellView,
    cell_utilities,
    cluster_quotas,
    cluster_worths,
    path_screen,
    pick_by_cluster,
    pick_in_turn,
    sample_priorities,
)
from lada_secure.learnability.arrays import BoolArray, FloatArray, IntArray
from lada_secure.learnability.cells import CellGrid
from lada_secure.learnability.data_filter import (
    CellBeliefs,
    FilterSettings,
    feature_count,
    fit_filter,
)
from lada_secure.learnability.gap import cell_means, probability, smoothed
from lada_secure.learnability.hosts.allocator import BY_CLUSTER
from lada_secure.learnability.statistics import NoisedStatistics


@dataclass(slots=True, kw_only=True)
class SiteAllocator:
    """One site's allocation during one study. `pool_clusters`: (n,) public cluster per sample."""

    plan: StudyPlan
    grid: CellGrid
    pool_clusters: IntArray
    memory: SiteMemory
    _views: dict[int, tuple[CellView, FloatArray]] = field(default_factory=dict)

    def utilities(self, round_id: int, noised: NoisedStatistics) -> FloatArray:
        """Fit the data filter and value every cell, (d,) in [-1, 1].

        Reads released statistics and losses of the released model on public paths, nothing else.
        """
        return self.view(round_id, noised)[1]

    def view(self, round_id: int, noised: NoisedStatistics) -> tuple[CellView, FloatArray]:
        """What the site believes of every cell in a round, and what each is worth to it, (d,)."""
        if round_id not in self._views:
            estimates = noised.estimates()
            history = self.memory.history()
            prior = probability(estimates.mean_losses)
            paths = self.memory.known_paths()
            known = smoothed(
                cell_means(
                    [one.p for one in paths], [one.cell for one in paths], cells=self.grid.cells
                ),
                self.grid.clusters_of_cells(),
                prior=float(np.dot(estimates.shares, prior)),
            )
            beliefs = CellBeliefs(
                grid=self.grid,
                mass_share=self.grid.spread(estimates.shares),
                mean_loss=self.grid.spread(estimates.mean_losses / noised.parameters.loss_clip),
                probability=known if paths else self.grid.spread(prior),
                last_reward=history.last_rewards(self.grid.cells),
                picks=history.picks(self.grid.cells),
            )
            fitted = fit_filter(
                history, FilterSettings(seed=self.plan.seed), width=feature_count(self.grid)
            )
            view = CellView(
                beliefs=beliefs,
                forecast=fitted.forecast(beliefs.features()),
                agreement=self._agreement(),
            )
            allocation = self.plan.allocation
            worth = cell_utilities(allocation.strategy, view, alpha=allocation.exploration_weight)
            self._views[round_id] = (view, worth)
        return self._views[round_id]

    def picks(self, round_id: int, noised: NoisedStatistics, scores: FloatArray) -> list[int]:
        """Pool indices that this site wants, at most the quota; round 0 by noised masses."""
        kept = self.memory.picks(round_id)
        if kept is not None:
            return kept
        allocation = self.plan.allocation
        fresh, again = self._available(round_id)
        priorities = sample_priorities(allocation.strategy, scores, seed=self.plan.seed + round_id)
        # Picks at random that followed the masses would be the strategy "domain".
        start = round_id == 0 and allocation.strategy != "random"
        if start or allocation.strategy in BY_CLUSTER:
            shares = (
                noised.estimates().shares
                if start
                else cluster_worths(self.utilities(round_id, noised), self.grid)
            )
            good = fresh & (scores >= allocation.threshold)
            rooms = np.bincount(self.pool_clusters[good], minlength=allocation.clusters)
            chosen = pick_by_cluster(
                scores,
                self.pool_clusters,
                cluster_quotas(shares, allocation.quota, available=rooms),
                threshold=allocation.threshold,
                available=fresh,
                priorities=priorities,
                seed=self.plan.seed,
            )
        else:
            chosen = pick_in_turn(
                scores,
                (fresh, again),
                quota=allocation.quota,
                threshold=allocation.threshold,
                priorities=priorities,
                seed=self.plan.seed + round_id,
            )
        picked = [int(one) for one in np.flatnonzero(chosen)]
        self.memory.keep_picks(round_id, picked)
        return picked

    def _agreement(self) -> FloatArray | None:
        """How surely each cell's paths agree with the guide; None where none was judged yet."""
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
        inside = path_screen(probabilities, allocation.screen_low, allocation.screen_high)
        return [int(one) for one in np.flatnonzero(inside)]
