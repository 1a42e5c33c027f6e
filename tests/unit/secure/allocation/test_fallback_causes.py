"""What speaks against topics, an LLM or a pool, on hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.fallback_causes import (
    LlmOutcomes,
    nothing_to_learn,
    outcomes_by_score,
    unfounded_choice,
    weak_llm,
)
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.statistics_parameters import StatisticsParameters, statistics_scale
from lada_secure.errors import ParameterError


def noised(masses: list[float], *, noise_multiplier: float = 5.0) -> NoisedStatistics:
    """Noised masses in units of privacy; the noise has a deviation of about 7 of them."""
    parameters = StatisticsParameters(
        clusters=len(masses),
        loss_clip=4.0,
        noise_multiplier=noise_multiplier,
        max_units=5_000,
        scale=statistics_scale(noise_multiplier),
    )
    steps = np.rint(np.array(masses) * parameters.scale).astype(np.int64)
    return NoisedStatistics(vector=np.concatenate([steps, 0 * steps]), parameters=parameters)


def test_the_signal_is_one_where_the_masses_are_as_large_as_their_noise() -> None:
    std = 5.0 * np.sqrt(2.0)
    assert noised([std, -std, std, -std]).signal == pytest.approx(1.0, abs=0.01)
    assert noised([0.0] * 4).signal == 0.0


@pytest.mark.parametrize(
    ("masses", "cause"),
    [
        ([500.0], "one_topic"),
        ([5.0, 3.0, 10.0, -4.0, 2.0, 0.0, -9.0, 6.0], "few_records"),
        # Twenty records in one topic, beside noise of 7 in each of eight.
        ([20.0, 7.0, -7.0, 7.0, -7.0, 7.0, -7.0, 7.0], "few_records"),
        ([100.0, 7.0, -7.0, 7.0, -7.0, 7.0, -7.0, 7.0], None),
        ([60.0] * 8, None),
    ],
)
def test_topics_decide_where_their_masses_stand_out_of_the_noise(
    masses: list[float], cause: str | None
) -> None:
    found = unfounded_choice(noised(masses))
    assert (found and found.cause) == cause
    assert found is None or (found.action == "any_topic" and found.because)


@pytest.mark.parametrize("topics", [2, 4, 8, 64])
def test_noise_alone_lets_no_topic_decide(topics: int) -> None:
    std = 5.0 * np.sqrt(2.0)
    rng = np.random.default_rng(topics)
    draws = (noised(row) for row in rng.normal(0.0, std, (2_000, topics)).tolist())
    # One in ten thousand may; five of 2,000 would be as rare as one in ten thousand again.
    assert sum(unfounded_choice(one) is None for one in draws) < 5


GRID = CellGrid(clusters=2, bins=2)
PLACES = np.array([0, 0, 1, 1])
ALL = np.ones(4, dtype=np.bool_)


def test_a_score_of_nothing_where_every_cell_is_worth_something_is_a_wrong_llm() -> None:
    found = outcomes_by_score(
        [0.4, 1e-5, -1e-5, 0.02], [1.0, 0.5, 0.5, 0.1], GRID, pool_clusters=PLACES, confident=ALL
    )
    assert found.right.tolist() == [True, False, False, True]
    assert found.wrong.tolist() == [False, True, True, False]
    assert found.told == 4


@pytest.mark.parametrize(
    ("utilities", "told"),
    [
        # A topic with a bin that is worth nothing, or hardly anything, says nothing.
        ([1.0, 0.0, 1.0, 1.0], [False, False, True, True]),
        ([1.0, 0.005, 1.0, 1.0], [False, False, True, True]),
        # What is taken off by another topic may make any score nothing.
        ([1.0, -0.9, 0.5, 0.5], [False] * 4),
        ([0.0] * 4, [False] * 4),
    ],
)
def test_where_a_right_llm_might_score_nothing_a_score_tells_nothing(
    utilities: list[float], told: list[bool]
) -> None:
    found = outcomes_by_score([0.0] * 4, utilities, GRID, pool_clusters=PLACES, confident=ALL)
    assert found.wrong.tolist() == told
    assert not found.right.any()


def test_a_confidence_that_says_nothing_of_the_answer_tells_nothing() -> None:
    found = outcomes_by_score(
        [0.0, 0.5, 0.0, 0.5], [1.0] * 4, GRID, pool_clusters=PLACES, confident=~ALL
    )
    assert found.told == 0


def pairs(both: int, llm: int, slm: int, neither: int) -> tuple[LlmOutcomes, np.ndarray]:
    """Samples on which both are right, one alone, and neither."""
    right = np.repeat([True, True, False, False], [both, llm, slm, neither])
    return LlmOutcomes(right=right, wrong=~right), np.repeat(
        [True, False, True, False], [both, llm, slm, neither]
    )


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ((0, 0, 0, 0), None),
        ((0, 0, 0, 1), None),
        ((0, 0, 0, 10), "llm_mostly_wrong"),
        ((0, 30, 0, 70), "llm_mostly_wrong"),
        # 48 of 100 may be half; 480 of 1,200 is not.
        ((0, 48, 0, 52), None),
        ((0, 480, 0, 720), "llm_mostly_wrong"),
        ((60, 0, 20, 20), "llm_weaker"),
        ((60, 10, 12, 18), None),
        ((60, 0, 3, 37), None),
        ((20, 60, 0, 20), None),
    ],
)
def test_an_llm_is_weak_by_more_than_sampling_noise(
    counts: tuple[int, int, int, int], cause: str | None
) -> None:
    found = weak_llm(*pairs(*counts))
    assert (found and found.cause) == cause
    assert found is None or found.action == "no_pool"


def test_a_plan_may_allow_for_an_llm_that_is_mostly_wrong_but_not_for_a_weaker_one() -> None:
    assert weak_llm(*pairs(0, 30, 0, 70), least_right=0.3) is None
    assert weak_llm(*pairs(0, 30, 0, 70), least_right=0.0) is None
    weaker = weak_llm(*pairs(0, 1, 30, 69), least_right=0.0)
    assert weaker is not None
    assert "the LLM alone is right on 1, the SLM alone on 30" in weaker.because
    with pytest.raises(ParameterError, match="least_right"):
        weak_llm(*pairs(0, 1, 1, 0), least_right=1.5)


def knowing(known: int, unsure: int, unknown: int) -> SlmKnowledge:
    sizes = [known, unsure, unknown]
    return SlmKnowledge(
        right=np.repeat([True, True, False], sizes),
        confidence=np.repeat([0.9, 0.3, 0.0], sizes),
    )


@pytest.mark.parametrize(
    ("slm", "known"),
    [
        (knowing(95, 0, 5), True),
        (knowing(90, 0, 10), True),
        (knowing(89, 0, 11), False),
        # Hit upon is not known.
        (knowing(80, 20, 0), False),
    ],
)
def test_nothing_is_to_be_learned_of_what_is_known_surely(slm: SlmKnowledge, known: bool) -> None:
    nobody = np.zeros(100, dtype=np.bool_)
    found = nothing_to_learn(
        LlmOutcomes(right=nobody, wrong=nobody),
        slm,
        pool_clusters=np.zeros(100, dtype=np.int64),
        shares=None,
    )
    assert (found is not None) is known
    assert found is None or found.cause == "known_already"


def test_what_the_llm_gets_wrong_could_not_be_taught_and_does_not_count() -> None:
    slm = knowing(45, 0, 55)
    wrong = ~slm.right & (np.arange(100) >= 50)
    outcomes = LlmOutcomes(right=~wrong, wrong=wrong)
    places = np.zeros(100, dtype=np.int64)
    assert nothing_to_learn(outcomes, slm, pool_clusters=places, shares=None) is not None
    nothing = LlmOutcomes(right=~wrong & wrong, wrong=wrong | ~wrong)
    assert nothing_to_learn(nothing, slm, pool_clusters=places, shares=None) is None


def test_a_topic_counts_by_how_much_of_the_site_lies_in_it() -> None:
    # 190 of 200 are known, and the site's records lie where the other ten are.
    slm = SlmKnowledge(right=np.arange(200) >= 10, confidence=np.where(np.arange(200) >= 10, 1, 0))
    places = np.where(np.arange(200) < 20, 1, 0)
    nobody = np.zeros(200, dtype=np.bool_)
    outcomes = LlmOutcomes(right=nobody, wrong=nobody)

    def found(shares: list[float] | None) -> bool:
        given = None if shares is None else np.array(shares)
        return nothing_to_learn(outcomes, slm, pool_clusters=places, shares=given) is not None

    assert found(None)
    assert found([1.0, 0.0])
    assert not found([0.2, 0.8])
