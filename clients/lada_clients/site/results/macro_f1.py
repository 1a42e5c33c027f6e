"""Macro-F1 of a classification with its interval by privacy unit.

Macro-F1 is the mean of 2 TP / (2 TP + FP + FN) over labels (the averaged F1 of Opitz and Burst
2019), those that stand among the gold answers: the same ones for every model. An answer that cannot
be read is none of the labels. Intervals are those of `intervals`, with the standard error of
a smooth function of sums over units (delta method; Davison and Hinkley 1997, section 2.7.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lada_clients.site.results.intervals import Interval, studentized_ends, unmet_share
from lada_secure.arrays import FloatArray

# Below it no unit moves the figure, but for rounding.
_NOTHING = 1e-9


class Labelled:
    """Gold labels and units of records, to compare answers with."""

    def __init__(self, gold: Sequence[str], units: Sequence[str]) -> None:
        """Args: gold, units: (n,) of the same records, n >= 1."""
        self._gold = np.asarray(gold, dtype=object).astype(str)
        self._labels = sorted(set(self._gold.tolist()))
        names, self._unit = np.unique(
            np.asarray(units, dtype=object).astype(str), return_inverse=True
        )
        self._units = len(names)
        self._wanted = self._sums(self._gold, np.ones(len(gold), bool))

    def interval(self, given: Sequence[str | None], *, seed: int, resamples: int) -> Interval:
        """Macro-F1 of answers. given: (n,), None where none can be read."""
        return self._interval([_Counts(*self._counts(given))], (0.0, 1.0), seed, resamples)

    def difference(
        self,
        given: Sequence[str | None],
        other: Sequence[str | None],
        *,
        seed: int,
        resamples: int,
    ) -> Interval:
        """Macro-F1 of `given` less that of `other`, drawn together."""
        both = [_Counts(*self._counts(one)) for one in (given, other)]
        return self._interval(both, (-1.0, 1.0), seed, resamples)

    def _interval(
        self, models: Sequence[_Counts], bounds: tuple[float, float], seed: int, resamples: int
    ) -> Interval:
        def statistic(times: FloatArray) -> tuple[FloatArray, FloatArray]:
            found = [one.of(times) for one in models]
            value, moved = found[0]
            for less, moves in found[1:]:
                value, moved = value - less, moved - moves
            correction = self._units / max(1, self._units - 1)
            return value, np.sqrt(correction * (times * moved**2).sum(axis=1))

        ones: FloatArray = np.ones((1, self._units))
        (value,), (error,) = (one.tolist() for one in statistic(ones))
        if self._units == 1 or error < _NOTHING:
            low, high = bounds
            # Each label says something of as many people as have it.
            people = (self._wanted > 0).sum(axis=0).tolist()
            unmet = sum(map(unmet_share, people)) / len(people)
            ends = (value - unmet * (value - low), value + unmet * (high - value))
        else:
            ends = studentized_ends(
                statistic, self._units, bounds=bounds, seed=seed, resamples=resamples
            )
        return Interval(
            value=value, low=ends[0], high=ends[1], n=len(self._gold), units=self._units
        )

    def _counts(self, given: Sequence[str | None]) -> tuple[FloatArray, FloatArray, FloatArray]:
        said = np.array(["" if one is None else one for one in given], dtype=object).astype(str)
        read = np.array([one is not None for one in given], dtype=bool)
        right = self._sums(self._gold, read & (said == self._gold))
        return right, self._sums(said, read) + self._wanted, self._wanted

    def _sums(self, labels: np.ndarray, which: np.ndarray) -> FloatArray:
        """(units, labels): how many records of each unit have each label, among `which`."""
        found = np.zeros((self._units, len(self._labels)))
        for place, label in enumerate(self._labels):
            there = which & (labels == label)
            found[:, place] = np.bincount(self._unit[there], minlength=self._units)
        return found


class _Counts:
    """A model's counts by unit and label, (units, labels) each. right: TP. shared: said and gold
    ones together, which is 2 TP + FP + FN. wanted: gold ones."""

    def __init__(self, right: FloatArray, shared: FloatArray, wanted: FloatArray) -> None:
        self._right, self._shared, self._wanted = right, shared, wanted

    def of(self, times: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Macro-F1 of each draw, (m,), and what each unit moves it by, (m, units)."""
        there = (times @ self._wanted > 0).astype(np.float64)
        whole = np.maximum(times @ self._shared, 1.0)
        scores = 2.0 * (times @ self._right) / whole
        labels = there.sum(axis=1, keepdims=True)
        share = there / (whole * labels)
        moved = share @ (2.0 * self._right).T - (share * scores) @ self._shared.T
        return (there * scores).sum(axis=1) / labels[:, 0], moved
