"""Reward, band and means per cell against hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lada_secure.allocation.gap import (
    CellMeans,
    cell_means,
    cell_rewards,
    probability,
    smoothed,
)
from lada_secure.errors import ParameterError


def test_probability_of_special_losses() -> None:
    np.testing.assert_allclose(probability([0.0, np.log(2.0), np.inf]), [1.0, 0.5, 0.0])


@pytest.mark.parametrize("losses", [[np.nan], [-0.1], [[1.0]]])
def test_losses_that_cannot_be_are_refused(losses: list[float]) -> None:
    with pytest.raises(ParameterError, match="losses"):
        probability(losses)


def test_rewards_of_cells_are_means_over_their_samples() -> None:
    means = cell_rewards([np.inf] * 3, [0.0, np.log(2.0), np.log(4.0)], [2, 2, 0], cells=4)
    np.testing.assert_allclose(means.mean, [0.25, 0.0, 0.75, 0.0])
    assert means.count.tolist() == [1, 0, 2, 0]
    assert means.seen.tolist() == [0, 2]


def test_no_samples_give_no_rewards() -> None:
    means = cell_rewards([], [], [], cells=3)
    assert means.mean.tolist() == [0.0] * 3
    assert means.seen.tolist() == []


def test_smoothing_gives_the_prior_for_nothing_and_the_mean_for_plenty() -> None:
    nothing = CellMeans(mean=np.zeros(4), count=np.zeros(4, dtype=np.int64))
    np.testing.assert_allclose(smoothed(nothing, [0, 0, 1, 1], prior=0.3), 0.3)
    plenty = cell_means(np.full(10_000, 0.9), np.zeros(10_000, dtype=np.int64), cells=4)
    estimate = smoothed(plenty, [0, 0, 1, 1], prior=0.3)
    assert estimate[0] == pytest.approx(0.9, abs=1e-3)


def test_an_unseen_cell_leans_on_its_own_cluster() -> None:
    seen = cell_means([0.9] * 40 + [0.1] * 40, [0] * 40 + [2] * 40, cells=4)
    estimate = smoothed(seen, [0, 0, 1, 1], prior=0.5)
    assert estimate[1] > 0.8
    assert estimate[3] < 0.2
