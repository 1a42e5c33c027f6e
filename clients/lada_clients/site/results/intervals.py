"""Means with confidence intervals by privacy unit.

Records of one person resemble each other, so people are drawn anew, with all their records, and
never single records (cluster bootstrap; Davison and Hinkley 1997, section 3.8). The interval is the
studentized one (ibid., section 5.2.1; Efron and Tibshirani 1993, section 12.5): percentiles of the
means alone cover too seldom with few people or with shares near 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from lada_secure.arrays import FloatArray
from lada_secure.ranges import at_least

RESAMPLES = 2000
_LEVEL = 0.95
# Numbers drawn at a time: 32 MB.
_DRAWN = 4_000_000
# Below it a standard error is rounding.
_NO_ERROR = 1e-7
_FAR = 1e9

# How often each unit was drawn, (m, units), to the statistic of each draw and its standard error,
# (m,) each.
Statistic: TypeAlias = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


class Interval(BaseModel):
    """A mean with its 95% interval. n: values. units: people that they are of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    n: int
    units: int

    def text(self) -> str:
        """In percent."""
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"

    def points(self) -> str:
        """A difference, in percentage points."""
        return f"{100 * self.value:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def mean_interval(
    values: FloatArray,
    units: Sequence[str],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over all values, and where the mean over the whole population may be.

    Where all units agree, drawing them anew shows no spread; then the interval reaches as far as
    others could be that were not met: a share u of the population with 1 - u to the power of the
    number of units = 2.5%, at a bound. With one unit that is nearly everything.

    Args: values: (n,) within `bounds`, n >= 1. units: (n,) whose each value is. seed: of the
        drawing; the same gives the same interval.
    Raises: ParameterError: no values.
    """
    at_least(1, values=len(values), resamples=resamples)
    low, high = bounds
    _, place = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    sums: FloatArray = np.bincount(place, weights=values).astype(np.float64)
    counts: FloatArray = np.bincount(place).astype(np.float64)
    number, mean = len(counts), float(values.mean())
    own_means = sums / counts
    if number == 1 or float(np.ptp(own_means)) == 0.0:
        unmet = unmet_share(number)
        ends = (mean - unmet * (mean - low), mean + unmet * (high - mean))
    else:

        def means(times: FloatArray) -> tuple[FloatArray, FloatArray]:
            return (times @ sums) / (times @ counts), _errors(times, sums, counts)

        ends = studentized_ends(means, number, bounds=bounds, seed=seed, resamples=resamples)
    return Interval(value=mean, low=ends[0], high=ends[1], n=len(values), units=number)


def unmet_share(number: int) -> float:
    """The share of a population that so many people may all have missed, at 2.5%."""
    share: float = 1.0 - ((1.0 - _LEVEL) / 2) ** (1.0 / number)
    return share


def studentized_ends(
    statistic: Statistic, number: int, *, bounds: tuple[float, float], seed: int, resamples: int
) -> tuple[float, float]:
    """The ends of a 95% interval: how many of its own standard errors each drawn statistic lies off
    the one over all units, which is drawn once each.

    A draw of equal units alone has no error; it lies as far off as can be.

    Args: number: of units, >= 2, which do not all agree.
    """
    (value,), (error,) = (one.tolist() for one in statistic(np.ones((1, number))))
    low, high = bounds
    generator = np.random.default_rng(seed)
    equal = np.full(number, 1.0 / number)
    found: list[FloatArray] = []
    left = resamples
    while left:
        now = min(left, max(1, _DRAWN // number))
        times = generator.multinomial(number, equal, size=now).astype(np.float64)
        drawn, errors = statistic(times)
        off, known = drawn - value, errors > _NO_ERROR
        found.append(np.where(known, off / np.where(known, errors, 1.0), np.sign(off) * _FAR))
        left -= now
    first, last = np.quantile(np.concatenate(found), [(1.0 - _LEVEL) / 2, (1.0 + _LEVEL) / 2])
    return max(low, value - float(last) * error), min(high, value - float(first) * error)


def _errors(times: FloatArray, sums: FloatArray, counts: FloatArray) -> FloatArray:
    """Standard errors of means, linearized as of a ratio of sums over units.

    Args: times: (m, units), how often each unit was drawn. Returns: (m,).
    """
    number, whole = len(counts), times @ counts
    means = (times @ sums) / whole
    squares = (
        times @ sums**2 - 2.0 * means * (times @ (sums * counts)) + means**2 * (times @ counts**2)
    )
    found: FloatArray = np.sqrt(number / (number - 1) * np.maximum(squares, 0.0)) / whole
    return found
