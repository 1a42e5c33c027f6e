"""Noise of the private gradient: a vectorised discrete Gaussian.

The sampler draws from a table of cumulative integer weights by Walker's alias method, so no
floating-point number takes part in a draw. Wide distributions are the sum of two narrow ones on
nested grids (Micciancio and Walter, CRYPTO 2017, "Gaussian sampling over the integers", section 3):
with X1 and X2 discrete Gaussians of variances v1 and v2, X1 + k*X2 has the probabilities of a
discrete Gaussian of variance v1 + k^2 v2 up to a factor within 1 +- 2.01 exp(-2 pi^2 tau^2),
tau^2 = v1 v2 / (v1 + k^2 v2) (complete the square; what is left is a Gaussian sum over a grid of
spacing 1/tau, nearly constant by Poisson summation).

Distance to the exact distribution, per draw, in total variation:

| part | bound |
|---|---|
| weights rounded to multiples of 2^-128, at most 2^18 entries, two tables | 2^-109 |
| tails cut at 14 standard deviations, two tables | 2^-138 |
| two grids, tau^2 >= 5.9 | 2^-166 |

Together below 2^-108: 10^7 coordinates over 10^5 steps add less than 2^-68 to delta. The words come
from AES-256 in counter mode under a fresh key of the operating system for every vector, so no
vector repeats, whatever a process restores after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lada_secure.errors import ParameterError

Words: TypeAlias = Callable[[int], npt.NDArray[np.uint64]]

MIN_STD_STEPS: Final = 16
MAX_STD_STEPS: Final = 2**24

_PRECISION_BITS: Final = 256
_MASS_BITS: Final = 128
_WORD_BITS: Final = 64
_TAIL_STD: Final = 14
# Up to here one table is small enough to stay in a core's second-level cache.
_SINGLE_TABLE_STD: Final = 1024


def system_words(count: int) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit words from AES-256-CTR under a key drawn from the operating system.

    A fresh key for every call: nothing is kept that a fork, a snapshot or a resumed run could
    replay. Args: count: >= 0. Returns: (count,) uint64.
    """
    encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AliasTable:
    """Walker's table over integers around 0, padded to 2^column_bits columns.

    A column holds 2^(128 - column_bits) of the total mass 2^128; `high` and `low` are the
    threshold's upper (64 - column_bits) and lower 64 bits.
    """

    column_bits: int
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    own: npt.NDArray[np.int64]
    alias: npt.NDArray[np.int64]

    def draw(self, count: int, words: Words) -> npt.NDArray[np.int64]:
        """Draw (count,) int64, one word each and a second one in a tie (chance 2^-46)."""
        word = words(count)
        column = (word & np.uint64((1 << self.column_bits) - 1)).astype(np.int64)
        level = word >> np.uint64(self.column_bits)
        threshold = self.high[column]
        keep = level < threshold
        tied = np.flatnonzero(level == threshold)
        if tied.size:
            keep[tied] = words(int(tied.size)) < self.low[column[tied]]
        return np.where(keep, self.own[column], self.alias[column])


def gaussian_weights(variance: Fraction, reach: int) -> list[int]:
    """Integer weights of exp(-n^2 / (2 variance)) for n = 0 .. reach, in units of 2^-256.

    By the recurrence w(n+1) = w(n) r(n), r(n+1) = r(n) q^2 with q = exp(-1 / (2 variance)): every
    product is cut by less than one unit, so w(n) is off by at most (n + 1)^2 units.
    """
    with localcontext() as context:
        context.prec = 110
        exponent = -Decimal(variance.denominator) / (2 * Decimal(variance.numerator))
        root = int(exponent.exp() * (Decimal(2) ** _PRECISION_BITS))
    square = (root * root) >> _PRECISION_BITS
    ratio, weight = root, 1 << _PRECISION_BITS
    weights = [weight]
    for _ in range(reach):
        weight = (weight * ratio) >> _PRECISION_BITS
        ratio = (ratio * square) >> _PRECISION_BITS
        weights.append(weight)
    return weights


def _masses(variance: Fraction) -> tuple[int, list[int]]:
    """Masses of -reach .. reach that sum to 2^128 exactly; what rounding leaves goes to 0."""
    reach = _TAIL_STD * (isqrt(variance.numerator // variance.denominator) + 1)
    half = gaussian_weights(variance, reach)
    total = 2 * sum(half) - half[0]
    side = [(weight << _MASS_BITS) // total for weight in half]
    masses = side[:0:-1] + side
    masses[reach] += (1 << _MASS_BITS) - sum(masses)
    return reach, masses


@lru_cache(maxsize=16)
def _alias_table(variance: Fraction) -> _AliasTable:
    reach, masses = _masses(variance)
    column_bits = (len(masses) - 1).bit_length()
    columns = 1 << column_bits
    capacity = 1 << (_MASS_BITS - column_bits)
    left = masses + [0] * (columns - len(masses))
    threshold = [capacity] * columns
    alias = list(range(columns))
    small = [column for column in range(columns) if left[column] < capacity]
    large = [column for column in range(columns) if left[column] >= capacity]
    while small and large:
        poor, rich = small.pop(), large[-1]
        threshold[poor], alias[poor] = left[poor], rich
        left[rich] -= capacity - left[poor]
        if left[rich] < capacity:
            small.append(large.pop())
    # All arithmetic is exact, so every column left over holds exactly its capacity.
    mask = (1 << _WORD_BITS) - 1
    values = np.arange(columns, dtype=np.int64) - reach
    return _AliasTable(
        column_bits=column_bits,
        high=np.array([mass >> _WORD_BITS for mass in threshold], dtype=np.uint64),
        low=np.array([mass & mask for mass in threshold], dtype=np.uint64),
        own=values,
        alias=values[np.array(alias)],
    )


class DiscreteGaussian:
    """Integers n with probability proportional to exp(-n^2 / (2 std^2)), vectorised.

    Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", Definition 1.
    Guarantees: every draw is within 2^-108 of the exact distribution (module docstring); draws
    are independent; randomness is the operating system's.
    """

    __slots__ = ("_coarse", "_factor", "_fine")

    def __init__(self, std_steps: Fraction) -> None:
        """Build or look up the tables.

        Args: std_steps: standard deviation parameter in grid steps, exact, in
        [MIN_STD_STEPS, MAX_STD_STEPS].
        Raises: ParameterError: outside that range. Below 16 steps the discrete Gaussian's privacy
        loss is no longer the Gaussian's up to exp(-2 pi^2 16^2), so it may not be accounted as one.
        """
        if not MIN_STD_STEPS <= std_steps <= MAX_STD_STEPS:
            raise ParameterError(
                f"discrete Gaussian: standard deviation of {float(std_steps):.6g} grid steps, "
                f"expected {MIN_STD_STEPS} to {MAX_STD_STEPS}; choose another grid"
            )
        variance = std_steps * std_steps
        if std_steps <= _SINGLE_TABLE_STD:
            self._factor, self._fine, self._coarse = 1, _alias_table(variance), None
            return
        # v1 = 6.25 k^2 makes tau^2 = 6.25 (1 - 6.25 k^2 / std^2), and k ~ sqrt(std / 2.5) makes
        # both tables about equally long.
        self._factor = isqrt(int(std_steps / Fraction(5, 2)))
        fine = Fraction(25, 4) * self._factor**2
        self._fine = _alias_table(fine)
        self._coarse = _alias_table((variance - fine) / self._factor**2)

    def sample(self, count: int, words: Words | None = None) -> npt.NDArray[np.int64]:
        """Draw a vector. Args: count: >= 0. words: None for `system_words`.

        Returns: (count,) int64, in grid steps.
        """
        words = words or system_words
        drawn = self._fine.draw(count, words)
        if self._coarse is not None:
            drawn = drawn + self._factor * self._coarse.draw(count, words)
        return drawn
