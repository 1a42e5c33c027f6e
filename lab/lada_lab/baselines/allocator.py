"""LaDa's choice for one site in one round, for any method that trains on pool samples.

How samples are scored is the caller's: `score` multiplies the site's cell utilities by the
coordinator's pool matrix, blindly over the network or in the clear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.gap import cell_means, probability
from lada_secure.allocation.reward_model import RewardHistory, observations
from lada_secure.allocation.selection import AllocationSettings, PoolMap, cell_view, choose
from lada_secure.allocation.strategies import CellView, cell_utilities
from lada_secure.arrays import FloatArray, float_vector
from lada_secure.errors import LocalProtocolError


@dataclass(slots=True, kw_only=True)
class AllocationState:
    """What LaDa remembers of one site between rounds.

    picked: pool indices that were ever asked for. first_p: cell and p = exp(-loss) of every path
    that came, before the site was trained on it: how its SLM does on others of that cell.
    history: what training on cells brought. view: the site's last view of the cells.
    """

    picked: set[int] = field(default_factory=set)
    first_p: dict[int, tuple[int, float]] = field(default_factory=dict)
    history: RewardHistory = field(default_factory=RewardHistory)
    view: CellView | None = None

    def note(self, pool_index: int, *, cell: int, loss: float) -> None:
        """Note a path that came, before it is trained on.

        Args: place: pool index. cell: of the sample. loss: of the SLM, nats per token, >= 0.
        """
        self.first_p[pool_index] = (cell, float(probability([loss])[0]))

    def learn(self, round_id: int, rewards: Mapping[int, float]) -> None:
        """Remember what a round's training brought, for the reward model.

        Args: rewards: by pool index, in [-1, 1], of samples in `first_p`.
        Raises: LocalProtocolError: before any allocation, or of a path that never came.
        """
        unknown = [pool_index for pool_index in rewards if pool_index not in self.first_p]
        if self.view is None or unknown:
            raise LocalProtocolError("rewards came for samples that were never allocated")
        if not rewards:
            return
        means = cell_means(
            list(rewards.values()),
            [self.first_p[pool_index][0] for pool_index in rewards],
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
    state.view = cell_view(
        list(state.first_p.values()),
        state.history,
        estimates,
        pool.grid,
        settings,
        agreement=agreement,
    )
    utilities = cell_utilities(settings.strategy, state.view, alpha=settings.exploration_weight)
    scores = float_vector("scores", score(utilities), length=len(pool.clusters))
    fresh = np.ones(len(pool.clusters), dtype=np.bool_)
    fresh[sorted(state.picked)] = False
    chosen = choose(pool, estimates, utilities, scores, (fresh,), settings, round_id=round_id)
    pool_indices = tuple(int(one) for one in np.flatnonzero(chosen))
    state.picked.update(pool_indices)
    return pool_indices
