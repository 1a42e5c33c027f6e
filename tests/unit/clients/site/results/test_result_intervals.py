"""Intervals by unit: by hand, at their edges, and in a simulation where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lada_clients.site.results.intervals import Interval, mean_interval
from lada_secure.errors import ParameterError

ALPHA = 1e-6
# With so many studies a coverage of 92.5% or less is told from 95% at ALPHA.
STUDIES = 2000
SEED = 20_261


def people(generator: np.random.Generator, number: int) -> tuple[np.ndarray, list[str]]:
    """Made-up records of so many people: each has 1 to 6, and an ability of their own."""
    sizes = generator.integers(1, 7, size=number)
    abilities = generator.beta(1.4, 0.6, size=number)
    right = generator.random(sizes.sum()) < np.repeat(abilities, sizes)
    return right.astype(float), [str(at) for at in np.repeat(np.arange(number), sizes)]


def covered(*, by_record: bool) -> int:
    generator, found = np.random.default_rng(SEED), 0
    for study in range(STUDIES):
        values, units = people(generator, 30)
        own = [str(at) for at in range(len(values))] if by_record else units
        interval = mean_interval(values, own, seed=study, resamples=300)
        found += interval.low <= 0.7 <= interval.high
    return found


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # Sizes and abilities are independent, so the accuracy of everybody is 1.4 / (1.4 + 0.6).
    found = covered(by_record=False)
    print(f"seed {SEED}: {found} of {STUDIES}")
    assert stats.binomtest(found, STUDIES, 0.95).pvalue > ALPHA


def test_records_drawn_one_by_one_would_cover_too_seldom() -> None:
    found = covered(by_record=True)
    assert stats.binomtest(found, STUDIES, 0.95).pvalue < ALPHA
    assert found < 0.92 * STUDIES


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly() -> None:
    values, units = people(np.random.default_rng(1), 50)
    one, same, other = (mean_interval(values, units, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one != other
    assert one.low == pytest.approx(other.low, abs=0.02)


def test_an_interval_of_two_units_by_hand() -> None:
    # Four equally probable draws of units: means 0, 1/2, 1/2 and 1. In half of them both units are
    # the same one and show no spread, a quarter on either side.
    found = mean_interval(np.array([0.0, 1.0]), ["a", "b"])
    assert found == Interval(value=0.5, low=0.0, high=1.0, n=2, units=2)


def test_an_interval_by_the_obvious_way_to_compute_it() -> None:
    values, units = people(np.random.default_rng(2), 12)
    names = sorted(set(units), key=str)
    groups = [values[[at for at, one in enumerate(units) if one == name]] for name in names]

    def error(drawn: list[np.ndarray]) -> float:
        mean = np.concatenate(drawn).mean()
        squares = sum((one.sum() - mean * len(one)) ** 2 for one in drawn)
        return float(np.sqrt(len(drawn) / (len(drawn) - 1) * squares)) / sum(map(len, drawn))

    times = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=200)
    off = []
    for row in times:
        drawn = [one for one, count in zip(groups, row, strict=True) for _ in range(count)]
        off.append((np.concatenate(drawn).mean() - values.mean()) / error(drawn))
    low, high = np.quantile(off, [0.025, 0.975])
    found = mean_interval(values, units, seed=5, resamples=200)
    spread = error(groups)
    assert found.low == pytest.approx(values.mean() - high * spread)
    assert found.high == pytest.approx(min(1.0, values.mean() - low * spread))


def test_the_order_of_records_and_the_names_of_units_do_not_count() -> None:
    values, units = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), ["a", "a", "b", "c", "d"]
    one = mean_interval(values, units)
    other = mean_interval(values[[2, 0, 1, 3, 4]], ["b", "a", "a", "c", "d"])
    assert one == other


@pytest.mark.parametrize(("right", "low", "high"), [(1.0, 0.025**0.1, 1.0), (0.0, 0.0, None)])
def test_where_all_agree_the_exact_bound_of_as_many_units_is_given(
    right: float, low: float, high: float | None
) -> None:
    found = mean_interval(np.full(20, right), [str(at // 2) for at in range(20)])
    bound = 1 - 0.025**0.1
    assert (found.low, found.high) == pytest.approx((low, bound if high is None else high))
    assert bound == pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95).high)


def test_no_difference_at_all_is_no_proof_that_there_is_none() -> None:
    found = mean_interval(np.zeros(10), [str(at) for at in range(10)], bounds=(-1.0, 1.0))
    assert found.high == pytest.approx(1 - 0.025**0.1)
    assert found.low == -found.high


def test_one_unit_says_nearly_nothing() -> None:
    found = mean_interval(np.array([1.0, 0.0, 1.0]), ["a", "a", "a"])
    assert (found.low, found.high) == pytest.approx((2 / 3 * 0.025, 1 - 0.025 / 3))


def test_no_values_are_refused() -> None:
    with pytest.raises(ParameterError, match="values: expected at least 1, got 0"):
        mean_interval(np.zeros(0), [])
