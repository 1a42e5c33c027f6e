"""A lower bound on epsilon from one training run with canaries (arXiv 2305.08846).

Each of m canaries joins the training data by its own fair coin. An attacker who sees the result
guesses r of the coins and gets v right. An (epsilon, delta)-DP run makes many right guesses
unlikely, so v refutes every epsilon that is too small for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lada_secure.errors import ParameterError

MAX_EPSILON = 100.0
_BISECTIONS = 60

_Floats: TypeAlias = "NDArray[np.float64]"
_Flags: TypeAlias = "NDArray[np.bool_]"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessCounts:
    """Outcome of one audit run.

    Args: canaries: m, how many coins were thrown. guesses: r <= m, fixed before the run.
        correct: v <= r.
    Raises: ParameterError: out of these ranges.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 1 <= self.guesses <= self.canaries:
            raise ParameterError(
                f"guesses: expected 1 to {self.canaries} (the canaries), got {self.guesses}"
            )
        if not 0 <= self.correct <= self.guesses:
            raise ParameterError(
                f"correct: expected 0 to {self.guesses} (the guesses), got {self.correct}"
            )


def p_value(counts: GuessCounts, *, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, if the run is (epsilon, delta)-DP.

    Steinke, Nasr, Jagielski 2023, Thm. 5.2: with W ~ Binomial(r, e^epsilon / (1 + e^epsilon)),
    P[V >= v] <= P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i, over i = 1 .. v.

    Args: epsilon: >= 0. delta: in [0, 1).
    Raises: ParameterError: out of range or NaN.
    """
    if not 0.0 <= epsilon < math.inf:
        raise ParameterError(f"epsilon: expected a finite number from 0, got {epsilon}")
    if not 0.0 <= delta < 1.0:
        raise ParameterError(f"delta: expected at least 0 and below 1, got {delta}")
    truth = 1.0 / (1.0 + math.exp(-epsilon))
    r, v = counts.guesses, counts.correct
    tail = float(stats.binom.sf(v - 1, r, truth))
    if delta == 0.0 or v == 0:
        return min(1.0, tail)
    below = stats.binom.pmf(np.arange(v - 1, -1, -1), r, truth)
    slack = float(np.max(np.cumsum(below) / np.arange(1, v + 1)))
    return min(1.0, tail + 2.0 * counts.canaries * delta * slack)


def epsilon_lower_bound(counts: GuessCounts, *, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the outcome refutes at this confidence; 0 if it refutes none.

    Args: delta: in [0, 1). confidence: in (0, 1).
    Returns: in [0, 100], rounded down to about 1e-12.
    Guarantee: for an (epsilon, delta)-DP run with independent fair coins and a number of guesses
        fixed in advance, it is above epsilon with probability at most 1 - confidence.
    Raises: ParameterError: out of range or NaN.
    """
    if not 0.0 < confidence < 1.0:
        raise ParameterError(f"confidence: expected above 0 and below 1, got {confidence}")
    level = 1.0 - confidence
    if p_value(counts, epsilon=0.0, delta=delta) > level:
        return 0.0
    if p_value(counts, epsilon=MAX_EPSILON, delta=delta) <= level:
        return MAX_EPSILON
    low, high = 0.0, MAX_EPSILON
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if p_value(counts, epsilon=middle, delta=delta) <= level:
            low = middle
        else:
            high = middle
    return low


def count_correct(scores: _Floats, joined: _Flags, *, guesses: int) -> GuessCounts:
    """Guess the coins of the canaries with the most extreme scores, and count the right ones.

    The highest scores are guessed to have joined, the lowest not; an odd guess goes to the
    highest. Ties are broken by position, so that the coins have no say.

    Args: scores: (m,) float64, higher for canaries that seem to have been trained on, finite.
        joined: (m,) bool, the coins. guesses: 1 to m, fixed before the run.
    Raises: ParameterError: shapes differ, NaN or infinite scores, guesses out of range.
    """
    if scores.ndim != 1 or scores.shape != joined.shape or joined.dtype != np.bool_:
        raise ParameterError(
            f"scores, joined: expected (m,) numbers and (m,) bool, got {scores.shape} and "
            f"{joined.shape} {joined.dtype}"
        )
    if not np.all(np.isfinite(scores)):
        raise ParameterError("scores: expected finite numbers, got NaN or infinity")
    count = len(scores)
    if not 1 <= guesses <= count:
        raise ParameterError(f"guesses: expected 1 to {count} (the canaries), got {guesses}")
    order = np.argsort(-scores, kind="stable")
    inside, outside = order[: (guesses + 1) // 2], order[count - guesses // 2 :]
    correct = int(joined[inside].sum()) + int((~joined[outside]).sum())
    return GuessCounts(canaries=count, guesses=guesses, correct=correct)
