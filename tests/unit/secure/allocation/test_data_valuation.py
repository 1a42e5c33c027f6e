"""From released gains to clusters that are useful, and paths to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.data_valuation import (
    ClusterValuation,
    cell_usefulness,
    cluster_valuations,
    groups_to_value,
    useful_rationales,
    usefulness,
)
from lada_secure.allocation.valuation_gains import NoisedGains, ValuationParameters
from lada_secure.errors import ParameterError

PUBLIC = ValuationParameters(clusters=3, gain_clip=0.5, noise_multiplier=4.0)


def trial(cluster: int, gain: float, *, paths: int = 10, std: float = 0.1) -> ClusterValuation:
    return ClusterValuation(cluster=cluster, paths=paths, gain=gain, std=std)


def test_a_cluster_with_fewer_than_three_paths_is_not_tried() -> None:
    assert groups_to_value([2, 0, 2, 1, 2, 1], clusters=3) == {2: [0, 2, 4]}
    assert groups_to_value([], clusters=3) == {}


def test_one_rounds_release_is_read_by_cluster() -> None:
    noised = NoisedGains(
        vector=np.array([6_000, 77, -12_000, 12_000], dtype=np.int64), parameters=PUBLIC
    )
    found = cluster_valuations(noised, {2: 9, 0: 4})
    assert [(one.cluster, one.paths, one.gain) for one in found] == [(0, 4, 0.5), (2, 9, -1.0)]
    assert {one.std for one in found} == {noised.std}
    nobody = NoisedGains(vector=np.array([5, 5, 5, 0], dtype=np.int64), parameters=PUBLIC)
    assert cluster_valuations(nobody, {0: 9}) == []


def test_trials_count_by_their_paths_and_noise_averages_out() -> None:
    found = usefulness([trial(0, -1.0, paths=10), trial(0, 0.5, paths=30)], clusters=2)
    # (10 x -1 + 30 x 0.5) / 40 = 0.125, and usefulness is (1 + gain) / 2.
    assert found.value[0] == pytest.approx(0.5625)
    assert found.std[0] == pytest.approx(0.5 * 0.1 * np.sqrt(10**2 + 30**2) / 40)
    assert found.tried.tolist() == [True, False]
    assert np.isnan(found.value[1])
    with pytest.raises(ParameterError, match="clusters of trials"):
        usefulness([trial(2, 0.0)], clusters=2)


def test_a_harmful_cluster_is_told_from_useful_ones_and_unseen_ones_stay_open() -> None:
    found = usefulness([trial(0, 0.4), trial(1, -1.0), trial(2, 0.1)], clusters=4)
    sure = cell_usefulness(found, CellGrid(clusters=4, bins=2))
    assert sure.shape == (8,)
    assert sure[:2] == pytest.approx(sure[0])
    assert sure[0] > 0.99
    assert sure[2] < 0.01
    assert 0.9 < sure[4] < sure[0]
    assert sure[6] == 0.5


def test_paths_of_tried_clusters_pass_or_fail_as_one_and_the_rest_by_the_other_judge() -> None:
    found = usefulness([trial(0, 0.4), trial(1, -0.9)], clusters=3)
    otherwise = np.array([False, False, True, True, True, False])
    passed = useful_rationales(found, [0, 0, 1, 1, 2, 2], otherwise, least_share=0.25)
    assert passed.tolist() == [True, True, False, False, True, False]


def test_where_all_clusters_lower_every_record_the_least_bad_stays() -> None:
    """A few paths of a good cluster teach too little, and must not be thrown away for it."""
    found = usefulness([trial(0, -0.7), trial(1, -1.0)], clusters=2)
    passed = useful_rationales(found, [0, 1], np.array([True, True]), least_share=0.25)
    assert passed.tolist() == [True, False]


def test_noise_beyond_what_can_be_does_not_raise_the_bar() -> None:
    found = usefulness([trial(0, 5.0), trial(1, 0.2)], clusters=2)
    assert found.bound(0.25) == 0.25
    assert usefulness([], clusters=2).bound(0.5) == 0.0
    with pytest.raises(ParameterError, match="least_share"):
        found.bound(1.5)


def test_where_gains_below_a_bound_mean_contradiction_the_least_bad_goes_too() -> None:
    trials = [trial(0, -0.7), trial(1, -1.0)]
    found = usefulness(trials, clusters=3, least_gain=0.0)
    assert found.bound(0.25) == 0.5
    passed = useful_rationales(found, [0, 1, 2], np.array([True, True, True]), least_share=0.25)
    assert passed.tolist() == [False, False, True]
    # Nothing is asked of them again, and what was never tried stays open.
    sure = cell_usefulness(found, CellGrid(clusters=3, bins=1))
    assert max(sure[:2]) < 0.01
    assert sure[2] == 0.5
    # A cluster far above the bound raises it, as it does without one.
    better = usefulness([*trials, trial(2, 0.9)], clusters=3, least_gain=-0.8)
    assert better.bound(0.25) == pytest.approx(0.25 * 0.95)
    for least in (-1.1, 1.1, float("nan")):
        with pytest.raises(ParameterError, match="least_gain"):
            usefulness(trials, clusters=3, least_gain=least)


def test_as_much_as_noise_may_have_taken_is_allowed_for() -> None:
    for std, kept in ((0.05, False), (0.3, True)):
        noisy = replace(trial(0, -0.2), std=std)
        found = usefulness([noisy, trial(1, 0.4)], clusters=2, least_gain=0.0)
        passed = useful_rationales(found, [0, 1], np.array([False, False]), least_share=0.25)
        assert passed.tolist() == [kept, True]


def test_before_any_trial_the_other_judge_decides_alone() -> None:
    none = usefulness([], clusters=2)
    verdict = np.array([True, False])
    assert useful_rationales(none, [0, 1], verdict, least_share=0.25).tolist() == [True, False]
