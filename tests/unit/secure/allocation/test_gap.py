"""Values of samples, rewards and means per cell against hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lada_secure.allocation.gap import (
    CellMeans,
    SampleValue,
    SlmKnowledge,
    cell_means,
    cell_rewards,
    probability,
    sample_values,
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


SCORES = [1.0, 0.5, 0.5, 0.25, -0.5]
SLM = SlmKnowledge(
    right=np.array([False, True, False, True, False]),
    confidence=np.array([0.0, 0.5, 0.25, 1.0, 0.0]),
)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("score", [1.0, 0.5, 0.5, 0.25, 0.0]),
        ("gap", [1.0, 0.0, 0.5, 0.0, 0.0]),
        ("gain", [1.0, 0.25, 0.375, 0.0, 0.0]),
    ],
)
def test_what_a_sample_is_worth(form: SampleValue, expected: list[float]) -> None:
    np.testing.assert_array_equal(sample_values(form, SCORES, SLM), expected)


def test_the_score_alone_needs_no_answers_and_all_other_forms_do() -> None:
    np.testing.assert_array_equal(sample_values("score", [0.5, -1.0]), [0.5, 0.0])
    for form in ("gap", "gain"):
        with pytest.raises(ParameterError, match=f"{form}.*got nothing"):
            sample_values(form, SCORES)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="to 2 samples, got 5"):
            sample_values(form, SCORES[:2], SLM)  # type: ignore[arg-type]


def test_rounding_of_another_batch_decides_nothing_between_two_samples() -> None:
    noise = np.array([1e-7, -1e-7, 3e-6])
    exact = SlmKnowledge(right=np.ones(3, dtype=np.bool_), confidence=np.array([0.5, 0.5, 0.25]))
    off = SlmKnowledge(right=np.ones(3, dtype=np.bool_), confidence=exact.confidence + noise)
    np.testing.assert_array_equal(exact.confidence, off.confidence)
    # 0.25 and 0.5 are whole steps.
    np.testing.assert_array_equal(exact.confidence, [0.5, 0.5, 0.25])


@pytest.mark.parametrize("confidence", [[0.5], [0.5, np.nan], [0.5, 1.5], [-0.1, 0.5]])
def test_confidences_that_cannot_be_are_refused(confidence: list[float]) -> None:
    with pytest.raises(ParameterError, match="confidence"):
        SlmKnowledge(right=np.ones(2, dtype=np.bool_), confidence=np.array(confidence))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.booleans()), max_size=30)
)
def test_no_form_is_worth_more_than_the_score_or_less_than_nothing(
    rows: list[tuple[float, float, bool]],
) -> None:
    scores, confidence, right = (np.array([row[at] for row in rows]) for at in range(3))
    slm = SlmKnowledge(right=right.astype(np.bool_), confidence=confidence)
    plain = sample_values("score", scores)
    for form in ("gap", "gain"):
        values = sample_values(form, scores, slm)  # type: ignore[arg-type]
        assert ((values >= 0.0) & (values <= plain)).all()
