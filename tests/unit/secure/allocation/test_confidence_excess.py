"""Confidence excesses: exact whole numbers, and the samples that follow from their sum."""

from __future__ import annotations

import numpy as np
import pytest

from lada_secure.allocation.confidence_excess import (
    excess_over_threshold,
    samples_to_ask,
    scaled_confidence,
)
from lada_secure.errors import ParameterError


def test_an_advantage_is_the_clipped_excess_over_the_bar_rounded_down() -> None:
    found = excess_over_threshold(
        [0.2, 0.5, 0.5625, 0.7499, 1.0, 0.99], [1, 2, 3, 5, 6, 7],
        pool_size=8, threshold=0.5, clip=0.25, scale=8,
    )  # fmt: skip
    assert found.tolist() == [0, 0, 0, 0, 0, 1, 2, 2]
    assert found.dtype == np.int64


def test_samples_that_are_no_candidates_stay_zero() -> None:
    found = excess_over_threshold([1.0], [3], pool_size=5, threshold=0.0, clip=1.0, scale=10)
    assert found.tolist() == [0, 0, 0, 10, 0]
    assert excess_over_threshold(
        [], [], pool_size=3, threshold=0.0, clip=1.0, scale=1
    ).tolist() == [0, 0, 0]


def test_where_the_llm_is_below_the_bar_the_sum_never_overstates_what_sites_know_more() -> None:
    rng = np.random.default_rng(5)
    sites, llm = rng.random((4, 500)), rng.random(500)
    bar, scale = 0.4, 100
    places = range(500)
    total = sum(
        excess_over_threshold(one, places, pool_size=500, threshold=bar, clip=1.0, scale=scale)
        for one in sites
    )
    truth = np.maximum(sites - llm, 0.0).sum(axis=0) * scale
    below = llm <= bar
    assert below.any()
    assert (total[below] <= truth[below] + 1e-9).all()
    assert (total[~below] > truth[~below]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"clip": 0.0},
        {"clip": 1.5},
        {"scale": 0},
        {"places": [1, 1]},
        {"places": [1, 9]},
        {"places": [1]},
        {"certainty": [0.5, 1.5]},
        {"certainty": [0.5, float("nan")]},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changes: dict[str, object]) -> None:
    values: dict[str, object] = {
        "certainty": [0.5, 0.6], "places": [1, 2], "pool_size": 5,
        "threshold": 0.1, "clip": 0.5, "scale": 10,
    }  # fmt: skip
    values.update(changes)
    with pytest.raises(ParameterError):
        excess_over_threshold(values.pop("certainty"), values.pop("places"), **values)  # type: ignore[arg-type]


def test_the_largest_sums_are_asked_for_where_the_llm_does_not_know() -> None:
    opened = [0, 5, 9, 7, 9, 3]
    llm = [0.0, 0.1, 0.1, 0.9, 0.5, 0.2]
    candidates = [0, 1, 2, 3, 4]
    assert samples_to_ask(opened, llm, candidates, threshold=0.5, budget=9) == [1, 2, 4]
    assert samples_to_ask(opened, llm, candidates, threshold=0.5, budget=2) == [2, 4]
    assert samples_to_ask(opened, llm, candidates, threshold=0.4, budget=1) == [2]
    assert samples_to_ask(opened, llm, candidates, threshold=0.5, budget=0) == []


def test_a_negative_sum_or_budget_is_refused() -> None:
    with pytest.raises(ParameterError):
        samples_to_ask([-1], [0.0], [0], threshold=0.5, budget=1)
    with pytest.raises(ParameterError):
        samples_to_ask([1], [0.0], [0], threshold=0.5, budget=-1)


def test_certainty_is_scaled_down_to_whole_steps() -> None:
    assert scaled_confidence([0.0, 0.0999, 1.0], 10).tolist() == [0, 0, 10]
    with pytest.raises(ParameterError):
        scaled_confidence([0.5], 0)
