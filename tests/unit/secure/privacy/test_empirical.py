"""The one-run audit bound against its reference values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from alpha import ALPHA
from scipy import stats

from lada_secure.errors import ParameterError
from lada_secure.privacy.empirical import (
    GuessCounts,
    commitment_of,
    count_confident,
    count_correct,
    epsilon_lower_bound,
    guesses_to_refute,
    largest_bound,
    p_value,
    seal_coins,
)


def counts(canaries: int, guesses: int, correct: int) -> GuessCounts:
    return GuessCounts(canaries=canaries, guesses=guesses, correct=correct)


@pytest.mark.parametrize(
    ("outcome", "delta", "expected"),
    [
        # Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), App. D; jax_privacy agrees to 1e-6.
        pytest.param(counts(1000, 100, 100), 0.0, 3.49297, id="all of 100 right, pure"),
        pytest.param(counts(1000, 100, 95), 1e-5, 2.16518, id="95 of 100 right"),
        pytest.param(counts(1000, 200, 120), 1e-5, 0.15788, id="120 of 200 right"),
    ],
)
def test_the_bound_is_the_references(outcome: GuessCounts, delta: float, expected: float) -> None:
    assert epsilon_lower_bound(outcome, delta=delta) == pytest.approx(expected, abs=6e-6)


def test_all_right_without_delta_has_a_closed_form() -> None:
    # P[all r right] = (e^eps / (1 + e^eps))^r = .05.
    truth = 0.05 ** (1 / 37)
    bound = epsilon_lower_bound(counts(50, 37, 37), delta=0.0)
    assert bound == pytest.approx(math.log(truth / (1 - truth)), abs=1e-9)


def test_the_p_value_is_the_theorems_sum() -> None:
    outcome, epsilon, delta = counts(300, 40, 30), 0.7, 1e-3
    law = stats.binom(40, 1 / (1 + math.exp(-epsilon)))
    slack = max(sum(law.pmf(w) for w in range(30 - i, 30)) / i for i in range(1, 31))
    expected = sum(law.pmf(w) for w in range(30, 41)) + 2 * 300 * delta * slack
    assert p_value(outcome, epsilon=epsilon, delta=delta) == pytest.approx(expected, rel=1e-9)


def test_more_right_guesses_never_lower_the_bound_and_more_delta_never_raises_it() -> None:
    bounds = [epsilon_lower_bound(counts(500, 80, v), delta=1e-5) for v in range(81)]
    assert bounds == sorted(bounds)
    assert bounds[40] == 0.0 < bounds[80]
    by_delta = [
        epsilon_lower_bound(counts(500, 80, 75), delta=delta) for delta in (0.0, 1e-6, 1e-4, 0.1)
    ]
    assert by_delta == sorted(by_delta, reverse=True)
    assert by_delta[-1] == 0.0


def test_confidence_is_respected() -> None:
    outcome = counts(1000, 100, 95)
    high = epsilon_lower_bound(outcome, delta=1e-5, confidence=0.99)
    assert high < epsilon_lower_bound(outcome, delta=1e-5)
    assert p_value(outcome, epsilon=high, delta=1e-5) <= 0.01


def test_guesses_go_to_the_extremes_and_ties_do_not_ask_the_coins() -> None:
    scores = np.array([5.0, -3.0, 4.0, 0.0, -9.0, 0.5])
    joined = np.array([True, True, False, True, False, False])
    # In: 0 and 2, of which 0 did. Out: 1 and 4, of which 4 was.
    assert count_correct(scores, joined, guesses=4) == counts(6, 4, 2)
    # An odd guess goes to the highest scores: in 0, 2 and 5; out 1 and 4.
    assert count_correct(scores, joined, guesses=5) == counts(6, 5, 2)
    flat = np.zeros(6)
    assert count_correct(flat, joined, guesses=2) == counts(6, 2, 2)
    assert count_correct(flat, ~joined, guesses=2) == counts(6, 2, 0)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "field"),
    [(10, 11, 1, "guesses"), (10, 0, 0, "guesses"), (10, 5, 6, "correct"), (10, 5, -1, "correct")],
)
def test_impossible_counts_are_refused(
    canaries: int, guesses: int, correct: int, field: str
) -> None:
    with pytest.raises(ParameterError, match=rf"^{field}: "):
        counts(canaries, guesses, correct)


def test_other_bad_input_is_refused() -> None:
    outcome = counts(10, 5, 5)
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(ParameterError, match=r"^delta: "):
            epsilon_lower_bound(outcome, delta=delta)
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ParameterError, match=r"^confidence: "):
            epsilon_lower_bound(outcome, delta=0.0, confidence=confidence)
    for epsilon in (-1.0, math.inf, math.nan):
        with pytest.raises(ParameterError, match=r"^epsilon: "):
            p_value(outcome, epsilon=epsilon, delta=0.0)
    joined = np.zeros(3, dtype=np.bool_)
    with pytest.raises(ParameterError, match=r"^scores, joined: "):
        count_correct(np.zeros(4), joined, guesses=1)
    with pytest.raises(ParameterError, match="NaN"):
        count_correct(np.array([0.0, math.nan, 1.0]), joined, guesses=1)
    with pytest.raises(ParameterError, match=r"^guesses: "):
        count_correct(np.zeros(3), joined, guesses=4)


def test_the_surest_guesses_count_whatever_side_they_are_on() -> None:
    log_odds = np.array([0.1, -7.0, 9.0, 3.0, -0.2, -8.0])
    joined = np.array([False, False, True, False, True, True])
    # By certainty: 2 joined (right), 5 not (wrong), 1 not (right), 3 joined (wrong).
    assert count_confident(log_odds, joined, guesses=1) == counts(6, 1, 1)
    assert count_confident(log_odds, joined, guesses=3) == counts(6, 3, 2)
    assert count_confident(log_odds, joined, guesses=6) == counts(6, 6, 2)


@pytest.mark.parametrize(
    ("log_odds", "guesses", "message"),
    [
        pytest.param([1.0, np.nan, 0.0], 2, "finite", id="NaN"),
        pytest.param([1.0, 0.0], 2, "shape|numbers", id="another length"),
        pytest.param([1.0, 0.0, 1.0], 4, "guesses", id="more guesses than canaries"),
        pytest.param([1.0, 0.0, 1.0], 0, "guesses", id="no guess"),
    ],
)
def test_certainties_of_the_wrong_form_are_refused(
    log_odds: list[float], guesses: int, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        count_confident(np.array(log_odds), np.array([True, False, True]), guesses=guesses)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 6.5])
def test_the_guesses_that_refute_an_epsilon_are_the_fewest(epsilon: float) -> None:
    found = guesses_to_refute(epsilon, delta=1e-6, canaries_per_guess=2.5)
    assert found is not None

    def reach(guesses: int) -> float:
        return largest_bound(
            canaries=math.ceil(2.5 * guesses), guesses=guesses, delta=1e-6, wrong=2
        )

    assert reach(found) > epsilon >= reach(found - 1)


def test_an_epsilon_that_a_million_canaries_cannot_refute_has_no_number_of_guesses() -> None:
    assert guesses_to_refute(14.0, delta=1e-9, canaries_per_guess=2.0) is None


def test_sealed_coins_are_fair_and_differ() -> None:
    n = 100_000
    first, second = (seal_coins(n, statement="x").joined for _ in range(2))
    # |heads - n/2| <= 4.9 sqrt(n)/2 at 1e-6: catches a coin of .508.
    bound = stats.norm.isf(ALPHA / 4) * math.sqrt(n) / 2
    assert abs(int(first.sum()) - n / 2) < bound
    assert abs(int((first ^ second).sum()) - n / 2) < bound


def test_the_commitment_fixes_every_coin_and_the_statement() -> None:
    sealed = seal_coins(21, statement={"guesses": 5})
    coins, salt = str(sealed.opening["coins"]), str(sealed.opening["salt"])
    assert commitment_of(coins, salt, statement={"guesses": 5}) == sealed.commitment
    assert commitment_of(coins, salt, statement={"guesses": 6}) != sealed.commitment
    raw = bytes.fromhex(coins)
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8))[:21]
    assert bits.astype(bool).tolist() == sealed.joined.tolist()
    for at in range(21):
        turned = bytearray(raw)
        turned[at // 8] ^= 0x80 >> at % 8
        assert commitment_of(turned.hex(), salt, statement={"guesses": 5}) != sealed.commitment
    assert coins not in repr(sealed)
    assert salt not in repr(sealed)


@pytest.mark.parametrize("count", [0, -1, 10**6 + 1])
def test_no_coins_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(ParameterError, match="canaries"):
        seal_coins(count, statement=None)
