"""Poisson sampling over privacy units: rate, independence, and the extremes."""

from __future__ import annotations

import numpy as np
import pytest
from alpha import ALPHA
from scipy import stats

from lada_secure.dpsgd.batching import PoissonSampler
from lada_secure.errors import ParameterError


def test_every_unit_joins_at_the_stated_rate_and_batch_sizes_are_binomial():
    # 3,000 steps over 200 units: catches a 1% error in the rate, and fixed-size batches.
    units, steps, rate = 200, 3000, 0.1
    sampler = PoissonSampler(units, sampling_probability=rate)
    batches = [sampler.draw() for _ in range(steps)]
    joins = np.bincount(
        np.concatenate([np.array(one, dtype=int) for one in batches]), minlength=units
    )
    assert stats.binomtest(int(joins.sum()), units * steps, rate).pvalue > ALPHA
    assert min(stats.binomtest(int(one), steps, rate).pvalue for one in joins) > ALPHA / units
    sizes = np.array([len(one) for one in batches])
    variance = units * rate * (1 - rate)
    spread = (steps - 1) * sizes.var(ddof=1) / variance
    assert ALPHA < stats.chi2.cdf(spread, steps - 1) < 1 - ALPHA


def test_a_step_is_independent_of_the_step_before():
    sampler = PoissonSampler(50, sampling_probability=0.3)
    joined = np.zeros((2000, 50), dtype=bool)
    for step in range(2000):
        joined[step, list(sampler.draw())] = True
    both = int((joined[1:] & joined[:-1]).sum())
    assert stats.binomtest(both, 1999 * 50, 0.09).pvalue > ALPHA


def test_probability_one_takes_everybody_and_no_units_give_an_empty_batch():
    assert PoissonSampler(4, sampling_probability=1.0).draw() == (0, 1, 2, 3)
    assert PoissonSampler(0, sampling_probability=0.5).draw() == ()


def test_a_tiny_probability_gives_empty_batches():
    assert PoissonSampler(100, sampling_probability=1e-15).draw() == ()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_no_probability_is_refused(rate):
    with pytest.raises(ParameterError, match="sampling_probability"):
        PoissonSampler(4, sampling_probability=rate)
