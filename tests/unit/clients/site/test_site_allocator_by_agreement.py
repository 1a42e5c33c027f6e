"""A site's quotas in later rounds: by cluster, and fewer where paths contradict its guide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from protocol_world import GUIDE, make_plan

from lada_clients.site.allocator import SiteAllocator
from lada_clients.site.memory import JudgedRationale, SiteMemory
from lada_protocol.plan import ValuationPlan
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.statistics_parameters import StatisticsParameters

CLUSTERS = np.repeat(np.arange(2, dtype=np.int64), 20)
PARAMETERS = StatisticsParameters(
    clusters=2, loss_clip=4.0, noise_multiplier=8.0, max_units=5_000, scale=16
)
# Equal masses, and the same loss in both clusters.
EQUAL = NoisedStatistics(
    vector=np.array([8_000, 8_000, 1_400, 1_400], dtype=np.int64), parameters=PARAMETERS
)


LOPSIDED = NoisedStatistics(
    vector=np.array([15_000, 1_000, 2_600, 200], dtype=np.int64), parameters=PARAMETERS
)


def counts(
    folder: Path,
    *,
    strategy: str,
    gains: dict[int, float],
    round_id: int = 1,
    noised: NoisedStatistics = EQUAL,
    trials: dict[int, float] | None = None,
    least_gain: float = -1.0,
) -> list[int]:
    """Samples per cluster that a site picks in a round, with so much gain of 8 paths per cell.

    Args: trials: gain by cluster, in clips; None for a study without data valuations.
    """
    base = make_plan()
    allocation = base.allocation.model_copy(
        update={"strategy": strategy, "clusters": 2, "difficulty_bins": 1, "quota": 12}
    )
    tried = ValuationPlan(noise_multiplier=8.0, gain_clip=0.5, least_gain=least_gain)
    guide = GUIDE.model_copy(update={"trials": None if trials is None else tried})
    memory = SiteMemory(folder=folder)
    memory.keep_judged_paths(
        [
            JudgedRationale(sample=20 * cell + at, cell=cell, path="9", own_paths=["3"], gain=gain)
            for cell, gain in gains.items()
            for at in range(8)
        ]
    )
    if trials is not None:
        memory.keep_trials(
            0,
            [
                ClusterValuation(cluster=cluster, paths=8, gain=gain, std=0.1)
                for cluster, gain in trials.items()
            ],
        )
    allocator = SiteAllocator(
        plan=base.model_copy(update={"allocation": allocation, "guide": guide}),
        grid=CellGrid(clusters=2, bins=1),
        pool_clusters=CLUSTERS,
        memory=memory,
    )
    places = allocator.picks(round_id, noised, np.full(len(CLUSTERS), 0.5))
    return np.bincount(CLUSTERS[places], minlength=2).tolist()


def test_without_judged_paths_equal_masses_share_the_quota(tmp_path: Path) -> None:
    assert counts(tmp_path, strategy="guided", gains={}) == [6, 6]


@pytest.mark.parametrize("good", [0, 1])
def test_a_cluster_whose_paths_contradict_the_guide_gets_next_to_nothing(
    tmp_path: Path, good: int
) -> None:
    found = counts(tmp_path, strategy="guided", gains={good: 1.0, 1 - good: -1.0})
    assert found[good] >= 11


@pytest.mark.parametrize("good", [0, 1])
def test_trials_overrule_the_guide(tmp_path: Path, good: int) -> None:
    wrong = {good: -1.0, 1 - good: 1.0}
    found = counts(tmp_path, strategy="guided", gains=wrong, trials={good: 0.5, 1 - good: -1.0})
    assert found[good] >= 11


@pytest.mark.parametrize("least_gain", [-1.0, 0.0])
def test_a_cluster_below_the_least_gain_is_not_asked_for_though_no_other_was_tried(
    tmp_path: Path, least_gain: float
) -> None:
    found = counts(tmp_path, strategy="guided", gains={}, trials={0: -0.6}, least_gain=least_gain)
    assert found[1] > 0
    assert (found[0] > found[1]) is (least_gain == -1.0)
    assert found[0] < 2 or least_gain == -1.0


def test_agreement_counts_for_the_strategies_that_read_it_alone(tmp_path: Path) -> None:
    assert counts(tmp_path, strategy="domain", gains={0: 1.0, 1: -1.0}) == [6, 6]


def test_the_first_round_follows_the_masses_but_not_where_samples_are_drawn_at_random(
    tmp_path: Path,
) -> None:
    by_masses = counts(tmp_path / "a", strategy="lada", gains={}, round_id=0, noised=LOPSIDED)
    assert by_masses == [11, 1]
    at_random = counts(tmp_path / "b", strategy="random", gains={}, round_id=0, noised=LOPSIDED)
    assert sum(at_random) == 12
    assert min(at_random) >= 2
