"""The discrete Gaussian's distribution, and the audit bound's coverage, at one ALPHA.

Fresh randomness of the operating system on every run: no seed makes these repeatable, and a
sound sampler fails one in a million times per check.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from alpha import ALPHA
from scipy import stats

from lada_secure.privacy.empirical import GuessCounts, epsilon_lower_bound
from lada_secure.privacy.release.noised_vectors import discrete_gaussian_vector

DRAWS = 20_000


def draw(sigma: float) -> np.ndarray:
    return discrete_gaussian_vector(np.zeros(DRAWS, dtype=np.int64), sigma=sigma)


def exact_probabilities(sigma: float, reach: int) -> np.ndarray:
    """P[noise = z] for z = -reach .. reach, by summing the definition."""
    z = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(z**2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("sigma", [16.0, 33.7, 1000.0])
def test_the_noises_std_and_mean_are_right(sigma: float) -> None:
    # n = 20,000 draws catch a 5% error of the std and a mean off by 0.05 std.
    noise = draw(sigma)
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], DRAWS - 1)
    # At sigma >= 16 the discrete law's variance is sigma^2 to 1e-100, and the sum of squares is
    # chi-squared up to rounding.
    statistic = float(np.var(noise, ddof=1)) * (DRAWS - 1) / sigma**2
    assert low <= statistic <= high
    assert high / (DRAWS - 1) < 1.05**2
    bound = stats.norm.ppf(1 - ALPHA / 2) * sigma / math.sqrt(DRAWS)
    assert abs(float(np.mean(noise))) <= bound < 0.05 * sigma


@pytest.mark.parametrize("sigma", [16.0, 19.5])
def test_every_integer_has_its_probability(sigma: float) -> None:
    # Chi-squared over single integers: n = 20,000 catch a sampler that leaves out odd numbers,
    # rounds a continuous draw with the wrong offset of half a step, or cuts off at 2 sigma.
    reach = int(12 * sigma)
    probabilities = exact_probabilities(sigma, reach)
    noise = draw(sigma)
    assert np.max(np.abs(noise)) <= reach
    observed = np.bincount(noise + reach, minlength=2 * reach + 1)
    inside = probabilities * DRAWS >= 20
    counts = np.append(observed[inside], observed[~inside].sum())
    expected = np.append(probabilities[inside], probabilities[~inside].sum()) * DRAWS
    assert stats.chisquare(counts, expected).pvalue >= ALPHA


def test_the_chi_squared_test_catches_half_a_step_and_a_cut_tail() -> None:
    # The same check on two wrong samplers must fail, else it would show nothing.
    sigma, reach = 16.0, 192
    probabilities = exact_probabilities(sigma, reach)
    generator = np.random.default_rng(7)
    wrong = {
        "cut at 2 sigma": np.round(np.clip(generator.normal(0, sigma, DRAWS), -32, 32)),
        "even numbers only": 2 * np.round(generator.normal(0, sigma / 2, DRAWS)),
        "10% too little noise": np.round(generator.normal(0, 0.9 * sigma, DRAWS)),
    }
    for name, noise in wrong.items():
        observed = np.bincount(noise.astype(np.int64) + reach, minlength=2 * reach + 1)
        inside = probabilities * DRAWS >= 20
        counts = np.append(observed[inside], observed[~inside].sum())
        expected = np.append(probabilities[inside], probabilities[~inside].sum()) * DRAWS
        assert stats.chisquare(counts, expected).pvalue < ALPHA, name


def test_neighbouring_draws_are_not_correlated() -> None:
    # n = 20,000 catch a correlation of 0.05 between entries of one vector.
    noise = draw(16.0).astype(np.float64)
    correlation = float(np.corrcoef(noise[:-1], noise[1:])[0, 1])
    bound = stats.norm.ppf(1 - ALPHA / 2) / math.sqrt(DRAWS - 1)
    assert abs(correlation) <= bound < 0.05


def test_the_audit_bound_is_above_the_truth_at_most_as_often_as_it_says() -> None:
    # 3,000 audits of randomised response of epsilon 1, where the theorem is tight without delta.
    # They catch an error rate of 8% in place of 5%.
    epsilon, canaries, audits = 1.0, 200, 3000
    seed = 20230508
    print(f"seed {seed}")
    right = np.random.default_rng(seed).binomial(
        canaries, math.exp(epsilon) / (1 + math.exp(epsilon)), size=audits
    )
    outcomes, times = np.unique(right, return_counts=True)
    wrong = 0
    for correct, often in zip(outcomes, times, strict=True):
        counts = GuessCounts(canaries=canaries, guesses=canaries, correct=int(correct))
        wrong += int(often) * (epsilon_lower_bound(counts, delta=0.0) > epsilon)
    allowed = int(stats.binom.ppf(1 - ALPHA, audits, 0.05))
    assert wrong <= allowed < 0.08 * audits
    assert wrong > 0, "a bound that is never wrong would be far too low"
