"""The discrete Gaussian's interface; what its distribution looks like is a statistical test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lada_secure.errors import ParameterError
from lada_secure.privacy.release.noised_vectors import MAX_ABSOLUTE_VALUE, discrete_gaussian_vector


def test_noise_is_integer_fresh_and_leaves_the_input_alone() -> None:
    values = np.arange(-100, 100, dtype=np.int64) * 1000
    before = values.copy()
    first = discrete_gaussian_vector(values, sigma=16.0)
    second = discrete_gaussian_vector(values, sigma=16.0)
    assert first.dtype == np.int64
    assert first.shape == values.shape
    assert np.array_equal(values, before)
    # Two equal draws of 200 values have probability below 1e-300.
    assert not np.array_equal(first, second)
    # 40 sigma: probability below 1e-300.
    assert np.max(np.abs(first - values)) < 40 * 16


def test_an_empty_vector_stays_empty_and_the_largest_values_do_not_wrap() -> None:
    assert discrete_gaussian_vector(np.zeros(0, dtype=np.int64), sigma=16.0).shape == (0,)
    ends = np.array([MAX_ABSOLUTE_VALUE, -MAX_ABSOLUTE_VALUE], dtype=np.int64)
    noised = discrete_gaussian_vector(ends, sigma=2.0**40)
    assert np.max(np.abs(noised - ends)) < 40 * 2**40


@pytest.mark.parametrize("sigma", [15.999, 0.0, -16.0, math.nan, math.inf, 2.0**41])
def test_noise_below_16_steps_or_absurd_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ParameterError, match=r"^sigma: "):
        discrete_gaussian_vector(np.zeros(3, dtype=np.int64), sigma=sigma)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3),
        np.zeros(3, dtype=np.int32),
        np.zeros((2, 2), dtype=np.int64),
        [1, 2, 3],
        np.array([MAX_ABSOLUTE_VALUE + 1]),
        np.array([np.iinfo(np.int64).min]),
    ],
    ids=["floats", "32 bits", "a matrix", "a list", "too large", "the smallest int64"],
)
def test_anything_but_a_bounded_int64_vector_is_refused(values: Any) -> None:
    with pytest.raises(ParameterError, match=r"^values: "):
        discrete_gaussian_vector(values, sigma=16.0)
