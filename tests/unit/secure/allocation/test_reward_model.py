"""The reward model: exact gradients, prior without history, learning from tiny histories."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.gap import CellMeans
from lada_secure.allocation.reward_model import (
    PRIOR_REWARD,
    CellBeliefs,
    RewardHistory,
    RoundObservations,
    forecast,
    observations,
    parse_history,
)
from lada_secure.allocation.reward_networks import ZeroStartNetwork, pooled_unit_rows
from lada_secure.arrays import FloatArray
from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError

GRID = CellGrid(clusters=4, bins=4)
WIDTH = 8 + GRID.clusters


def beliefs(seed: int, history: RewardHistory | None = None) -> CellBeliefs:
    generator = np.random.default_rng(seed)
    past = history or RewardHistory()
    return CellBeliefs(
        grid=GRID,
        mass_share=GRID.spread([0.6, 0.3, 0.1, 0.0]),
        mean_loss=GRID.spread([0.2, 0.5, 0.9, 0.5]),
        probability=generator.uniform(0, 1, GRID.cells),
        last_reward=past.last_rewards(GRID.cells),
        picks=past.picks(GRID.cells),
    )


def play(rounds: int, truth: FloatArray, *, cells_per_round: int, noise: float) -> RewardHistory:
    """A history of rewards `truth` per cluster times the band, each from 10 samples."""
    generator = np.random.default_rng(17)
    history = RewardHistory()
    for round_id in range(rounds):
        now = beliefs(100 + round_id, history)
        count = np.zeros(GRID.cells, dtype=np.int64)
        count[generator.choice(GRID.cells, cells_per_round, replace=False)] = 10
        gained = GRID.spread(truth) * now.band + noise * generator.standard_normal(GRID.cells)
        rewards = CellMeans(mean=np.where(count > 0, gained, 0.0), count=count)
        history = history.with_round(observations(now, rewards, round_id=round_id))
    return history


def test_gradients_match_automatic_differentiation() -> None:
    generator = np.random.default_rng(0)
    network = ZeroStartNetwork(5, 3, generator)
    inputs = generator.standard_normal((7, 5))
    network.fit(inputs, generator.standard_normal(7), np.ones(7))
    weight, offset, out, shift = (
        torch.tensor(part, requires_grad=True) for part in network._parts(network._now)
    )
    ours = network.gradients(inputs)
    for row, entry in zip(ours, torch.tensor(inputs), strict=True):
        value = torch.tanh(weight @ entry + offset) @ out + shift.squeeze()
        theirs = torch.autograd.grad(value, (weight, offset, out, shift))
        flat = torch.cat([part.flatten() for part in theirs]).numpy()
        np.testing.assert_allclose(row, flat, rtol=1e-10, atol=1e-12)


def test_summed_gradients_equal_the_sum_of_gradients() -> None:
    generator = np.random.default_rng(3)
    network = ZeroStartNetwork(6, 4, generator)
    inputs, slopes = generator.standard_normal((9, 6)), generator.standard_normal(9)
    np.testing.assert_allclose(
        network._back(network._now, inputs, slopes), slopes @ network.gradients(inputs)
    )


def test_pooling_averages_blocks_pads_with_zeros_and_normalises() -> None:
    rows = np.array([[3.0, 5.0, 2.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    pooled = pooled_unit_rows(rows, 3)
    expected = np.array([4.0, 4.0, 3.0])
    np.testing.assert_allclose(pooled[0], expected / np.linalg.norm(expected))
    np.testing.assert_array_equal(pooled[1], 0.0)
    assert pooled_unit_rows(np.ones((2, 3)), 8).shape == (2, 8)


def test_no_history_gives_the_prior_for_every_cell_and_no_exploration() -> None:
    found = forecast(RewardHistory(), beliefs(1).features(), seed=0)
    np.testing.assert_allclose(found.exploitation, PRIOR_REWARD)
    np.testing.assert_array_equal(found.exploration, 0.0)


def test_the_same_history_and_seed_give_the_same_forecast() -> None:
    history = play(3, np.array([0.2, 0.1, 0.0, -0.1]), cells_per_round=8, noise=0.02)
    features = beliefs(1).features()
    first = forecast(history, features, seed=4)
    second = forecast(history, features, seed=4)
    np.testing.assert_array_equal(first.exploitation, second.exploitation)
    np.testing.assert_array_equal(first.exploration, second.exploration)


@pytest.mark.parametrize("seed", range(5))
def test_forecasts_rank_cells_once_some_rounds_are_seen(seed: int) -> None:
    truth = np.array([0.3, 0.15, 0.02, -0.1])
    history = play(4, truth, cells_per_round=10, noise=0.01)
    now = beliefs(999, history)
    found = forecast(history, now.features(), seed=seed)
    wanted = GRID.spread(truth) * now.band
    assert np.corrcoef(found.exploitation, wanted)[0, 1] > 0.8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_observations_move_forecasts_but_not_far(count: int, seed: int) -> None:
    history = play(1, np.full(4, 0.2), cells_per_round=count, noise=0.0)
    features = beliefs(1).features()
    found = forecast(history, features, seed=seed)
    assert np.isfinite(found.exploitation).all()
    assert np.abs(found.exploitation).max() < 0.5
    assert np.abs(found.exploration).max() < 0.3


def test_exploration_learns_what_exploitation_missed() -> None:
    """Rewards jump between rounds in one cluster: residuals of the earlier f1 are positive."""
    low, high = np.array([0.0, 0.0, 0.0, 0.0]), np.array([0.3, 0.0, 0.0, 0.0])
    history = RewardHistory()
    for round_id, truth in enumerate((low, high)):
        now = beliefs(50)
        rewards = CellMeans(mean=GRID.spread(truth), count=np.full(GRID.cells, 20))
        history = history.with_round(observations(now, rewards, round_id=round_id))
    found = forecast(history, beliefs(50).features(), seed=0)
    changed = GRID.clusters_of_cells() == 0
    assert found.exploration[changed].mean() > found.exploration[~changed].mean() + 0.02


def test_equal_rewards_everywhere_are_no_division_by_zero() -> None:
    history = play(2, np.zeros(4), cells_per_round=5, noise=0.0)
    found = forecast(history, beliefs(1).features(), seed=0)
    assert np.isfinite(found.exploitation).all()
    assert np.abs(found.exploitation).max() < 0.05


def test_a_round_that_trained_on_nothing_changes_nothing() -> None:
    history = play(2, np.array([0.2, 0.1, 0.0, 0.0]), cells_per_round=5, noise=0.01)
    empty = CellMeans(mean=np.zeros(GRID.cells), count=np.zeros(GRID.cells, dtype=np.int64))
    longer = history.with_round(observations(beliefs(5), empty, round_id=7))
    features = beliefs(1).features()
    np.testing.assert_array_equal(
        forecast(history, features, seed=0).exploitation,
        forecast(longer, features, seed=0).exploitation,
    )


def test_a_long_history_is_fitted_in_bounded_time() -> None:
    history = play(30, np.array([0.2, 0.1, 0.0, -0.1]), cells_per_round=12, noise=0.02)
    started = time.process_time()
    forecast(history, beliefs(1).features(), seed=0)
    assert time.process_time() - started < 5.0


def test_history_survives_the_sites_disk() -> None:
    history = play(3, np.array([0.2, 0.1, 0.0, -0.1]), cells_per_round=6, noise=0.02)
    empty = CellMeans(mean=np.zeros(GRID.cells), count=np.zeros(GRID.cells, dtype=np.int64))
    history = history.with_round(observations(beliefs(5), empty, round_id=3))
    again = parse_history(json.loads(canonical_json(history.to_json())))
    assert canonical_json(again.to_json()) == canonical_json(history.to_json())
    np.testing.assert_array_equal(again.picks(GRID.cells), history.picks(GRID.cells))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([], id="a list"),
        pytest.param({"version": 1}, id="no rounds"),
        pytest.param({"version": 2, "rounds": []}, id="another version"),
        pytest.param({"version": 1, "rounds": [{}]}, id="an empty round"),
        pytest.param(
            {
                "version": 1,
                "rounds": [
                    {
                        "round_id": 0,
                        "cells": [0],
                        "features": [["x"]],
                        "rewards": [0.1],
                        "samples": [1.0],
                    }
                ],
            },
            id="text for a feature",
        ),
    ],
)
def test_a_damaged_history_is_refused(value: Json) -> None:
    with pytest.raises(ParameterError):
        parse_history(value)


def test_rounds_must_come_in_order() -> None:
    history = play(2, np.zeros(4), cells_per_round=2, noise=0.0)
    with pytest.raises(ParameterError, match="once and in order"):
        history.with_round(history.rounds[0])


def test_last_rewards_and_picks_follow_the_history() -> None:
    def seen(round_id: int, cells: list[int], rewards: list[float]) -> RoundObservations:
        return RoundObservations(
            round_id=round_id,
            cells=np.array(cells),
            features=np.zeros((len(cells), WIDTH)),
            rewards=np.array(rewards),
            samples=np.full(len(cells), 3.0),
        )

    history = RewardHistory(rounds=(seen(0, [1, 2], [0.1, 0.2]), seen(1, [2, 3], [0.3, 0.4])))
    assert history.last_rewards(5).tolist() == [0.0, 0.1, 0.3, 0.4, 0.0]
    assert history.picks(5).tolist() == [0.0, 3.0, 6.0, 3.0, 0.0]


def test_another_grid_needs_a_new_history() -> None:
    history = play(1, np.zeros(4), cells_per_round=2, noise=0.0)
    with pytest.raises(ParameterError, match="the cell grid changed"):
        forecast(history, np.zeros((GRID.cells, WIDTH + 1)), seed=0)


def test_features_lie_within_one_of_zero() -> None:
    history = play(5, np.array([0.9, 0.5, 0.0, -0.9]), cells_per_round=16, noise=0.0)
    features = beliefs(3, history).features()
    assert features.shape == (GRID.cells, WIDTH)
    assert np.abs(features).max() <= 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mass_share", 1.5),
        ("probability", -0.1),
        ("last_reward", 2.0),
        ("picks", -1.0),
    ],
)
def test_beliefs_out_of_range_are_refused(name: str, value: float) -> None:
    fields = {
        key: np.zeros(GRID.cells)
        for key in ("mass_share", "mean_loss", "probability", "last_reward", "picks")
    }
    fields[name] = np.full(GRID.cells, value)
    with pytest.raises(ParameterError, match=name):
        CellBeliefs(grid=GRID, **fields)
