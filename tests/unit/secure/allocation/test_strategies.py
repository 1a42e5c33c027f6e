"""Strategies, picks, quotas, the path screen, and the explanation of a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.explanation import explain_cells
from lada_secure.allocation.gap import cell_rewards
from lada_secure.allocation.reward_model import CellBeliefs, Forecast
from lada_secure.allocation.selection import (
    cluster_quotas,
    pick,
    pick_by_cluster,
    read_scores,
)
from lada_secure.allocation.strategies import (
    STRATEGIES,
    CellView,
    cell_utilities,
    rationale_screen,
    strategy,
)
from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError

GRID = CellGrid(clusters=2, bins=2)


def view(
    *,
    mass: tuple[float, float] = (0.8, 0.2),
    p: tuple[float, ...] = (0.5, 0.9, 0.5, 0.1),
    exploitation: tuple[float, ...] = (0.1, 0.2, 0.1, 0.3),
    exploration: tuple[float, ...] = (0.0, 0.0, 0.1, 0.0),
    lacking: tuple[float, float] = (0.25, 0.75),
) -> CellView:
    zeros = np.zeros(4)
    return CellView(
        beliefs=CellBeliefs(
            grid=GRID,
            mass_share=GRID.spread(mass),
            mean_loss=zeros,
            probability=np.array(p),
            last_reward=zeros,
            picks=zeros,
        ),
        forecast=Forecast(exploitation=np.array(exploitation), exploration=np.array(exploration)),
        lacking=GRID.spread(lacking),
    )


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_utilities_lie_within_one_and_reach_it(name: str) -> None:
    utilities = cell_utilities(name, view(), alpha=1.0)
    assert utilities.dtype == np.float64
    assert utilities.shape == (4,)
    assert np.abs(utilities).max() == 1.0


def test_lada_multiplies_band_mass_and_promise() -> None:
    utility = np.array([1.0 * 0.8 * 0.1, 0.36 * 0.8 * 0.2, 1.0 * 0.2 * 0.2, 0.36 * 0.2 * 0.3])
    np.testing.assert_allclose(cell_utilities("lada", view(), alpha=1.0), utility / utility.max())


def test_alpha_zero_switches_exploration_off() -> None:
    worth = cell_utilities("band", view(), alpha=0.0)
    with_it = worth * [0.1, 0.2, 0.2, 0.3]
    without = worth * [0.1, 0.2, 0.1, 0.3]
    np.testing.assert_allclose(cell_utilities("lada", view(), alpha=1.0), with_it / with_it.max())
    np.testing.assert_allclose(cell_utilities("lada", view(), alpha=0.0), without / without.max())


def test_lada_gives_harmful_cells_nothing() -> None:
    harmful = view(exploitation=(0.1, -0.2, 0.1, 0.3))
    assert cell_utilities("lada", harmful, alpha=0.0)[1] == 0.0


def test_lada_falls_back_to_band_and_mass_where_no_cell_promises_a_gain() -> None:
    gloomy = view(exploitation=(-0.1, -0.2, -0.1, -0.3), exploration=(0.0,) * 4)
    np.testing.assert_allclose(
        cell_utilities("lada", gloomy, alpha=1.0), cell_utilities("band", gloomy, alpha=1.0)
    )


def test_mastered_and_hopeless_cells_are_worth_nothing_to_lada() -> None:
    utilities = cell_utilities("lada", view(p=(1.0, 0.0, 1.0, 0.0)), alpha=1.0)
    np.testing.assert_array_equal(utilities, 0.0)


def test_domain_follows_the_mass_alone() -> None:
    np.testing.assert_allclose(cell_utilities("domain", view(), alpha=1.0), [1.0, 1.0, 0.25, 0.25])


def test_gain_is_mass_times_what_the_slm_lacks_of_the_topic() -> None:
    # 0.8 of the records where 1/4 is lacking, and 0.2 where 3/4 is, whatever the rationales' p.
    expected = [1.0, 1.0, 0.75, 0.75]
    np.testing.assert_allclose(cell_utilities("gain", view(), alpha=1.0), expected)
    np.testing.assert_allclose(cell_utilities("gain", view(p=(0.0,) * 4), alpha=1.0), expected)
    known = cell_utilities("gain", view(lacking=(0.0, 0.5)), alpha=1.0)
    np.testing.assert_array_equal(known, [0.0, 0.0, 1.0, 1.0])


def test_gain_without_what_the_slm_lacks_is_refused() -> None:
    with pytest.raises(ParameterError, match="gain: expected what the SLM lacks"):
        cell_utilities("gain", replace(view(), lacking=None), alpha=1.0)


def test_valued_gain_is_gain_times_agreement() -> None:
    judged = replace(view(), agreement=np.array([0.5, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(
        cell_utilities("valued_gain", judged, alpha=1.0), np.array([0.5, 0.0, 0.75, 0.75]) / 0.75
    )
    np.testing.assert_allclose(
        cell_utilities("gain", judged, alpha=1.0), cell_utilities("gain", view(), alpha=1.0)
    )


@pytest.mark.parametrize("alpha", [-0.1, np.nan, np.inf])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ParameterError, match="alpha"):
        cell_utilities("lada", view(), alpha=alpha)


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="random, valuation, valued_gain, got 'best'"):
        strategy("best")


def test_a_forecast_that_is_no_number_is_refused() -> None:
    with pytest.raises(ParameterError, match="worth of cells"):
        cell_utilities("lada", view(exploitation=(np.nan, 0.0, 0.0, 0.0)), alpha=0.0)


ALL = np.ones(5, dtype=np.bool_)


def test_picks_are_the_best_of_the_candidates() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.3, 0.7])
    best = pick(scores, ALL, quota=2, seed=0)
    assert best.tolist() == [False, True, False, False, True]
    passing = pick(scores, scores >= 0.5, quota=9, seed=0)
    assert passing.tolist() == [False, True, True, False, True]
    left = pick(scores, np.array([True, False, True, False, False]), quota=1, seed=0)
    assert left.tolist() == [False, False, True, False, False]
    assert pick(scores, ALL, quota=0, seed=0).sum() == 0
    assert pick(np.zeros(0), ALL[:0], quota=3, seed=0).shape == (0,)


def test_ties_are_broken_the_same_way_every_time_and_not_by_position() -> None:
    scores, every = np.full(1000, 0.5), np.ones(1000, dtype=np.bool_)
    first = pick(scores, every, quota=100, seed=1)
    np.testing.assert_array_equal(first, pick(scores, every, quota=100, seed=1))
    assert first.sum() == 100
    # By position all 100 would lie in the first half; the chance of that here is below 1e-30.
    assert 20 < first[:500].sum() < 80
    assert (first != pick(scores, every, quota=100, seed=2)).any()


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ParameterError, match="scores"):
        read_scores([0.1, np.nan])


@pytest.mark.parametrize(
    ("shares", "quota", "available", "expected"),
    [
        pytest.param([3, 1], 8, [50, 50], [6, 2], id="proportional"),
        pytest.param([1, 1, 1], 10, [50] * 3, [4, 3, 3], id="remainders go to the first"),
        pytest.param([9, 1], 10, [4, 50], [4, 6], id="a full cluster passes its part on"),
        pytest.param([1, 0], 10, [4, 50], [4, 6], id="beyond all shares any cluster serves"),
        pytest.param([0, 0], 4, [50, 50], [2, 2], id="no mass anywhere means equal parts"),
        pytest.param([1, 1], 100, [3, 4], [3, 4], id="the pool is smaller than the quota"),
        pytest.param([1.0], 5, [9], [5], id="one cluster takes all"),
        pytest.param([1, 1], 0, [3, 4], [0, 0], id="no quota"),
    ],
)
def test_quotas_follow_the_masses(
    shares: list[float], quota: int, available: list[int], expected: list[int]
) -> None:
    assert cluster_quotas(shares, quota, available=available).tolist() == expected


def test_picks_by_cluster_keep_every_quota() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.1, 1.0, 300)
    clusters = generator.integers(0, 3, 300)
    picked = pick_by_cluster(scores, scores >= 0.0, clusters, np.array([20, 5, 0]), seed=0)
    assert np.bincount(clusters[picked], minlength=3).tolist() == [20, 5, 0]
    for cluster in (0, 1):
        mine = clusters == cluster
        assert scores[picked & mine].min() > scores[~picked & mine].max()


def test_the_screen_keeps_the_band_with_its_ends() -> None:
    kept = rationale_screen([0.1, 0.2, 0.5, 0.9, 0.95], 0.2, 0.9)
    assert kept.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.9, 0.1)])
def test_a_screen_that_is_no_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ParameterError, match="path screen"):
        rationale_screen([0.5], low, high)


def test_explanations_hold_every_cell_and_are_json() -> None:
    seen = view()
    utilities = cell_utilities("lada", seen, alpha=1.0)
    rewards = cell_rewards([np.log(4.0)], [np.log(2.0)], [2], cells=4)
    explained = explain_cells(seen, utilities, picked_cells=[2, 2, 0], rewards=rewards)
    assert [one["cell"] for one in explained] == [0, 1, 2, 3]
    assert [one["picked"] for one in explained] == [1, 0, 2, 0]
    assert explained[2]["reward"] == pytest.approx(0.25)
    assert explained[2]["trained"] == 1
    assert explained[0]["reward"] is None
    assert (explained[3]["cluster"], explained[3]["difficulty"]) == (1, 1)
    assert explained[0]["mass"] == pytest.approx(0.8)
    assert [one["lacking"] for one in explained] == [0.25, 0.25, 0.75, 0.75]
    assert b'"exploitation":0.1' in canonical_json(explained)
    assert explained[0]["agreement"] is None
    judged = replace(seen, agreement=np.array([0.5, 0.25, 1.0, 0.0]))
    told = explain_cells(judged, utilities, picked_cells=[], rewards=rewards)
    assert [one["agreement"] for one in told] == [0.5, 0.25, 1.0, 0.0]
