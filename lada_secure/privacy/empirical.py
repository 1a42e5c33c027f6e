"""A lower bound on epsilon from one training run with canaries (arXiv 2305.08846).

Each of m canaries joins the training data by its own fair coin. An attacker who sees the result
guesses r of the coins and gets v right. An (epsilon, delta)-DP run makes many right guesses
unlikely, so v refutes every epsilon that is too small for it.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import ParameterError

MAX_EPSILON = 100.0
MAX_CANARIES = 10**6
_BISECTIONS = 60
_SALT_BYTES = 32

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


def _check_scores(scores: _Floats, joined: _Flags) -> None:
    if scores.ndim != 1 or scores.shape != joined.shape or joined.dtype != np.bool_:
        raise ParameterError(
            f"scores, joined: expected (m,) numbers and (m,) bool, got {scores.shape} and "
            f"{joined.shape} {joined.dtype}"
        )
    if not np.all(np.isfinite(scores)):
        raise ParameterError("scores: expected finite numbers, got NaN or infinity")


def count_correct(scores: _Floats, joined: _Flags, *, guesses: int) -> GuessCounts:
    """Guess the coins of the canaries with the most extreme scores, and count the right ones.

    The highest scores are guessed to have joined, the lowest not; an odd guess goes to the
    highest. Ties are broken by position, so that the coins have no say.

    Args: scores: (m,) float64, higher for canaries that seem to have been trained on, finite.
        joined: (m,) bool, the coins. guesses: 1 to m, fixed before the run.
    Raises: ParameterError: shapes differ, NaN or infinite scores, guesses out of range.
    """
    _check_scores(scores, joined)
    count = len(scores)
    order = np.argsort(-scores, kind="stable")
    inside, outside = order[: (guesses + 1) // 2], order[count - guesses // 2 :]
    correct = int(joined[inside].sum()) + int((~joined[outside]).sum())
    return GuessCounts(canaries=count, guesses=guesses, correct=correct)


def count_confident(log_odds: _Floats, joined: _Flags, *, guesses: int) -> GuessCounts:
    """Guess the coins that the attacker is surest of, and count the right ones.

    Which canaries are guessed may depend on everything the attacker sees; how many may not.

    Args: log_odds: (m,) float64, log of P[joined] / P[not] in the attacker's eyes, finite; the
        sign is the guess and the size the confidence. joined: (m,) bool, the coins.
        guesses: 1 to m, fixed before the run.
    Raises: ParameterError: shapes differ, NaN or infinite values, guesses out of range.
    """
    _check_scores(log_odds, joined)
    surest = np.argsort(-np.abs(log_odds), kind="stable")[:guesses]
    correct = int(((log_odds[surest] > 0.0) == joined[surest]).sum())
    return GuessCounts(canaries=len(log_odds), guesses=guesses, correct=correct)


def largest_bound(
    *, canaries: int, guesses: int, delta: float, confidence: float = 0.95, wrong: int = 0
) -> float:
    """What an audit of this size says when all but `wrong` guesses are right: its reach.

    An audit whose reach is not above the claimed epsilon cannot find anything.

    Raises: ParameterError: out of range.
    """
    outcome = GuessCounts(canaries=canaries, guesses=guesses, correct=max(guesses - wrong, 0))
    return epsilon_lower_bound(outcome, delta=delta, confidence=confidence)


def guesses_to_refute(
    epsilon: float,
    *,
    delta: float,
    canaries_per_guess: float,
    confidence: float = 0.95,
    wrong: int = 2,
) -> int | None:
    """The least number of guesses with which `wrong` wrong ones still refute epsilon.

    About 6 e^epsilon for the defaults: a bound of epsilon is a claim about errors as rare as
    e^-epsilon, which few guesses cannot support.

    Args: epsilon: >= 0. canaries_per_guess: >= 1, m / r.
    Returns: None where a million canaries are not enough.
    """

    def reaches(guesses: int) -> bool:
        outcome = GuessCounts(
            canaries=math.ceil(guesses * canaries_per_guess),
            guesses=guesses,
            correct=max(guesses - wrong, 0),
        )
        return p_value(outcome, epsilon=epsilon, delta=delta) < 1.0 - confidence

    most = int(MAX_CANARIES / canaries_per_guess)
    low, high = wrong, min(16, most)
    while high > low and not reaches(high):
        low, high = high, min(2 * high, most)
    if high <= low:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCoins:
    """Fair coins by the operating system's randomness, and a hash that fixes them.

    joined: (m,) bool. statement: what else is fixed by the hash, such as the number of guesses.
    Whoever has `commitment` from before the run and `opening` from after it can check with
    `commitment_of` that neither the coins nor the statement were chosen afterwards.
    """

    joined: _Flags = field(repr=False)
    salt: bytes = field(repr=False)
    statement: Json
    commitment: str

    @property
    def opening(self) -> dict[str, Json]:
        """Coins (bits, first coin in the highest bit of the first byte) and salt in hex."""
        return {"coins": np.packbits(self.joined).tobytes().hex(), "salt": self.salt.hex()}


def seal_coins(count: int, *, statement: Json) -> SealedCoins:
    """Throw `count` independent fair coins and commit to them and to the statement.

    Raises: ParameterError: count outside 1 to a million.
    """
    if not 1 <= count <= MAX_CANARIES:
        raise ParameterError(f"canaries: expected 1 to {MAX_CANARIES}, got {count}")
    drawn = np.frombuffer(secrets.token_bytes((count + 7) // 8), dtype=np.uint8)
    joined = np.unpackbits(drawn)[:count].astype(np.bool_)
    joined.setflags(write=False)
    salt = secrets.token_bytes(_SALT_BYTES)
    return SealedCoins(
        joined=joined,
        salt=salt,
        statement=statement,
        commitment=commitment_of(
            np.packbits(joined).tobytes().hex(), salt.hex(), statement=statement
        ),
    )


def commitment_of(coins: str, salt: str, *, statement: Json) -> str:
    """SHA-256 of the canonical JSON of coins, salt (both hex) and statement, 64 hex digits."""
    return sha256_hex(canonical_json({"coins": coins, "salt": salt, "statement": statement}))
