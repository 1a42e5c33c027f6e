"""LaDa's choice for one site: within the quota, by mass at first, by rewards later."""

from __future__ import annotations

import numpy as np
import pytest

from lada_lab.baselines.allocator import AllocationState, allocate
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.selection import AllocationSettings, PoolMap
from lada_secure.arrays import FloatArray
from lada_secure.errors import LocalProtocolError, ParameterError

GRID = CellGrid(clusters=3, bins=1)
POOL = PoolMap(grid=GRID, clusters=np.repeat(np.arange(3, dtype=np.int64), 20))


def estimates(*masses: float) -> ClusterEstimates:
    return ClusterEstimates(
        masses=np.array(masses), mean_losses=np.full(len(masses), 0.7), mass_std=1.0
    )


def score(utilities: FloatArray) -> FloatArray:
    """Each sample belongs to its cluster alone, and the LLM solves all of them."""
    return utilities[POOL.clusters]


def settings(**changes: object) -> AllocationSettings:
    return AllocationSettings(**{"quota": 12, **changes})  # type: ignore[arg-type]


def counts(places: tuple[int, ...]) -> list[int]:
    return np.bincount(POOL.clusters[list(places)], minlength=3).tolist()


def test_the_first_quota_follows_the_noised_masses() -> None:
    places = allocate(AllocationState(), POOL, estimates(60, 30, 0), score, settings(), round_id=0)
    assert counts(places) == [8, 4, 0]


def test_without_the_clustering_start_the_best_cell_takes_all() -> None:
    places = allocate(
        AllocationState(),
        POOL,
        estimates(60, 30, 0),
        score,
        settings(clustering_start=False),
        round_id=0,
    )
    assert counts(places) == [12, 0, 0]


def test_nothing_is_asked_for_twice_and_the_pool_can_run_out() -> None:
    state = AllocationState()
    seen: set[int] = set()
    for round_id in range(4):
        places = allocate(
            state, POOL, estimates(1, 1, 1), score, settings(quota=25), round_id=round_id
        )
        assert not seen & set(places)
        seen |= set(places)
    assert len(seen) == 60
    assert state.picked == seen
    assert allocate(state, POOL, estimates(1, 1, 1), score, settings(), round_id=5) == ()


def test_cells_that_brought_something_are_preferred_later() -> None:
    state = AllocationState()
    for round_id in range(3):
        places = allocate(
            state,
            POOL,
            estimates(30, 30, 30),
            score,
            settings(strategy="paper", quota=6, exploration_weight=0.0),
            round_id=round_id,
        )
        for place in places:
            state.first_p[place] = (int(POOL.clusters[place]), 0.5)
        # Only cluster 1 teaches anything.
        state.learn(
            round_id, {place: 0.4 if POOL.clusters[place] == 1 else -0.1 for place in places}
        )
    assert counts(places) == [0, 6, 0]
    assert len(state.history.rounds) == 3


@pytest.mark.parametrize("name", ["lada", "guided", "domain", "band", "paper", "random"])
@pytest.mark.parametrize("masses", [(50.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_records_in_one_cluster_or_in_none_still_give_picks(
    name: str, masses: tuple[float, ...]
) -> None:
    """No mass anywhere counts as equal masses; all of it in one cluster leaves the others out.

    That cluster has 20 samples, so that 8 are left for the second round.
    """
    by_mass = any(masses) and name in ("lada", "guided", "domain", "band")
    state = AllocationState()
    for round_id in range(2):
        places = allocate(
            state, POOL, estimates(*masses), score, settings(strategy=name), round_id=round_id
        )
        assert len(places) == (8 if by_mass and round_id else 12)
        assert counts(places)[0] == len(places) or not by_mass


def test_a_pool_of_one_cluster_works() -> None:
    pool = PoolMap(grid=CellGrid(clusters=1, bins=2), clusters=np.zeros(30, dtype=np.int64))
    places = allocate(
        AllocationState(),
        pool,
        ClusterEstimates(masses=np.array([5.0]), mean_losses=np.array([0.7]), mass_std=1.0),
        lambda utilities: np.full(30, utilities.max()),
        settings(),
        round_id=0,
    )
    assert len(places) == 12


def test_random_picks_do_not_depend_on_the_statistics_but_on_the_seed() -> None:
    found = [
        allocate(
            AllocationState(),
            POOL,
            estimates(*masses),
            score,
            settings(strategy="random", seed=seed),
            round_id=0,
        )
        for masses, seed in (((9, 1, 1), 1), ((1, 1, 9), 1), ((9, 1, 1), 2))
    ]
    assert found[0] == found[1] != found[2]


def test_scores_of_another_pool_are_refused() -> None:
    with pytest.raises(ParameterError, match="scores"):
        allocate(
            AllocationState(),
            POOL,
            estimates(1, 1, 1),
            lambda _: np.ones(5),
            settings(),
            round_id=0,
        )


def test_rewards_of_what_never_came_are_refused() -> None:
    state = AllocationState()
    with pytest.raises(LocalProtocolError):
        state.learn(0, {})
    allocate(state, POOL, estimates(1, 1, 1), score, settings(), round_id=0)
    with pytest.raises(LocalProtocolError):
        state.learn(0, {3: 0.1})


@pytest.mark.parametrize(
    "change",
    [
        {"quota": 0},
        {"threshold": 1.5},
        {"exploration_weight": -1.0},
        {"loss_clip": 0.0},
        {"strategy": "best"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        settings(**change)
