"""Encryption parameters, derived by every party for itself from a few public numbers.

No parameter set travels on the wire: two parties that agree on (length, sum_bound) or on
(cells, row_bound) derive the same ring, the same moduli and the same digest, and a byte string
that carries another digest is refused before any of it is read.

Security: Albrecht et al., "Homomorphic Encryption Security Standard", homomorphicencryption.org,
November 2018, table 1 (ternary secret, classical 128 bit).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Final

from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError

POLY_MODULUS_DEGREE: Final = 4096

# log2 of the largest total coefficient modulus, key-switching or special prime included, at
# which a ternary secret keeps 128 bits of classical security.
MAX_COEFF_MODULUS_BITS_128: Final = {
    1024: 27,
    2048: 54,
    4096: 109,
    8192: 218,
    16384: 438,
    32768: 881,
}

MIN_LENGTH: Final = 1
MAX_LENGTH: Final = 1_000_000
MAX_SITES: Final = 1000
# t exceeds the bound of the sum by this factor; what is left over shows masks that do not
# cancel: a uniform entry looks right with probability (2 * bound + 1) / t < 2^-10.
RANGE_FACTOR: Final = 2**12
# 2^12 times this still fits below a prime of 42 bits, the most that q = 60 bits opens exactly.
MAX_SUM_BOUND: Final = 1_000_000_000

MIN_CELLS: Final = 1
MAX_CELLS: Final = 1024
MAX_POOL_SIZE: Final = 10_000_000

HEADER_BYTES: Final = 36
# SEAL's BLAKE2xb seed, 512 bits; it stands for the uniform half of a symmetric ciphertext.
SEED_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _CoefficientModulus:
    """A ciphertext prime.

    Attributes:
        prime: q, 1 modulo 2N (NTT), just below a whole number of bytes.
        coefficient_bytes: width of one coefficient on the wire.
        max_plain_bits: t stays below 2^max_plain_bits so that MAX_SITES ciphertexts add up
            without a decryption error (see `noise_bound`).
    """

    prime: int
    coefficient_bytes: int
    max_plain_bits: int


# Ciphertext size follows q alone, so the smallest q that leaves room for t and noise is taken.
# Whole bytes let a parser check every coefficient without bit shifts. There is no special prime:
# nothing is ever switched to another key, so the public key lives modulo q as well, which makes
# it half as large, encryption a quarter cheaper, and log2(q) stays far below the 109 bits that
# the table allows for this N.
_COEFFICIENT_MODULI: Final = (
    _CoefficientModulus(prime=1099511480321, coefficient_bytes=5, max_plain_bits=22),
    _CoefficientModulus(prime=281474976694273, coefficient_bytes=6, max_plain_bits=30),
    _CoefficientModulus(prime=72057594037641217, coefficient_bytes=7, max_plain_bits=38),
    _CoefficientModulus(prime=1152921504606830593, coefficient_bytes=8, max_plain_bits=42),
)

# Scoring is symmetric: a site encrypts its query with its own secret key.
SCORING_MODULUS: Final = 72057594037641217
SCORING_COEFFICIENT_BYTES: Final = 7


def noise_bound(sites: int) -> int:
    """Largest noise coefficient of a sum of fresh BFV encryptions, but for chance 2^-100.

    The noise of one encryption is e u + e1 + e2 s (Fan and Vercauteren 2012, section 3) plus the
    encoding's rounding, with u and s ternary and every e from SEAL's centred binomial
    distribution: 42 fair signs of 1/2, variance 10.5. Hoeffding, given the public key's own e
    (sum of squares below 12.5 N) and s: the sum over `sites` is sub-Gaussian with proxy
    sites * (N * (4 * 12.5 + 42) + 42), and ln(2 * 2^100) < 70.1. One more per site pays for e1's
    and the encoding's rounding.
    """
    proxy = sites * (POLY_MODULUS_DEGREE * (4 * 12.5 + 42) + 42)
    return math.ceil(math.sqrt(proxy * 70.1 / 2)) + sites


def is_prime(candidate: int) -> bool:
    """Primality by Miller-Rabin with the first 12 primes as bases: exact below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if candidate < 2:
        return False
    if candidate in bases:
        return True
    if any(candidate % base == 0 for base in bases):
        return False
    odd, twos = candidate - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(candidate, base, odd, twos) for base in bases)


def _passes(candidate: int, base: int, odd: int, twos: int) -> bool:
    power = pow(base, odd, candidate)
    if power in (1, candidate - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % candidate
        if power == candidate - 1:
            return True
    return False


def _largest_batching_prime_below(limit: int) -> int | None:
    """Largest prime below `limit` that is 1 modulo 2N, so that one ciphertext packs N entries."""
    step = 2 * POLY_MODULUS_DEGREE
    candidate = (limit - 2) // step * step + 1
    while candidate > step:
        if is_prime(candidate):
            return candidate
        candidate -= step
    return None


def _plain_modulus(sum_bound: int) -> int:
    # The largest prime below a power of two: rejection sampling of a mask then rejects rarely,
    # and the choice needs no table.
    least = RANGE_FACTOR * sum_bound
    bits = max(least.bit_length(), 16)
    while True:
        prime = _largest_batching_prime_below(1 << bits)
        if prime is not None and prime >= least:
            return prime
        bits += 1


def _require_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ParameterError(f"{name} must be between {low} and {high}, got {value}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationParameters:
    """Everything public about one secure aggregation; made by `aggregation_parameters` only.

    Attributes:
        length: entries of the vector.
        sum_bound: proven bound on |entry of the sum|; an opened entry beyond it aborts.
        poly_modulus_degree: N, the entries per ciphertext.
        coeff_modulus: q, the ciphertext prime.
        plain_modulus: t, a prime, 1 modulo 2N, at least 2^12 * sum_bound.
        coefficient_bytes: width of one coefficient on the wire.
        chunks: ciphertexts per vector, ceil(length / N).
        digest: SHA-256 over all of it in canonical JSON, 64 hexadecimal digits.
    """

    length: int
    sum_bound: int
    poly_modulus_degree: int
    coeff_modulus: int
    plain_modulus: int
    coefficient_bytes: int
    chunks: int
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = _digest(
            {
                "format": "lada/2/opening",
                "length": self.length,
                "sum_bound": self.sum_bound,
                "poly_modulus_degree": self.poly_modulus_degree,
                "coeff_modulus": [self.coeff_modulus],
                "plain_modulus": self.plain_modulus,
            }
        )
        object.__setattr__(self, "digest", digest)

    @property
    def coeff_modulus_bits(self) -> int:
        """Bit length of q."""
        return self.coeff_modulus.bit_length()

    @property
    def chunk_bytes(self) -> int:
        """Exact size of one ciphertext on the wire, without the header."""
        return 2 * self.poly_modulus_degree * self.coefficient_bytes

    @property
    def sealed_bytes(self) -> int:
        """Exact size of a sealed vector, and of a sum of any number of them."""
        return HEADER_BYTES + self.chunks * self.chunk_bytes

    @property
    def public_key_bytes(self) -> int:
        """Exact size of the aggregate key's public half: two polynomials modulo q."""
        return HEADER_BYTES + self.chunk_bytes


def aggregation_parameters(*, length: int, sum_bound: int) -> AggregationParameters:
    """The smallest parameter set at 128-bit security that opens sums up to `sum_bound` exactly.

    Args:
        length: entries, 1 to 1,000,000.
        sum_bound: bound on |entry of the sum|, 1 to 1,000,000,000 (a larger one wants a smaller
            integer scale). The caller must have proven it: it tells garbage from a sum.
    Guarantees: exact sums of up to 1,000 sites, but for chance 2^-100 per coefficient; log2(q)
        within the 128-bit table.
    Raises: ParameterError: length or bound out of range.
    """
    _require_int("length", length, MIN_LENGTH, MAX_LENGTH)
    _require_int("sum_bound", sum_bound, 1, MAX_SUM_BOUND)
    plain_modulus = _plain_modulus(sum_bound)
    modulus = next(
        one for one in _COEFFICIENT_MODULI if plain_modulus.bit_length() <= one.max_plain_bits
    )
    return AggregationParameters(
        length=length,
        sum_bound=sum_bound,
        poly_modulus_degree=POLY_MODULUS_DEGREE,
        coeff_modulus=modulus.prime,
        plain_modulus=plain_modulus,
        coefficient_bytes=modulus.coefficient_bytes,
        chunks=-(-length // POLY_MODULUS_DEGREE),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringParameters:
    """Everything public about blind scoring with `cells` coordinates.

    Attributes:
        cells: d, coordinates of a query, one ciphertext each.
        row_bound: bound on the sum of one pool sample's features, so |score| <= row_bound.
        query_scale_bits, matrix_scale_bits: CKKS scales as powers of two. Their product times
            row_bound stays below q / 2, because a score that passed it would wrap in silence.
        digest: SHA-256 over all of it in canonical JSON, 64 hexadecimal digits.
    """

    cells: int
    row_bound: int
    query_scale_bits: int
    matrix_scale_bits: int
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = _digest(
            {
                "format": "lada/2/scoring",
                "cells": self.cells,
                "row_bound": self.row_bound,
                "poly_modulus_degree": POLY_MODULUS_DEGREE,
                "coeff_modulus": [SCORING_MODULUS],
                "query_scale_bits": self.query_scale_bits,
                "matrix_scale_bits": self.matrix_scale_bits,
            }
        )
        object.__setattr__(self, "digest", digest)

    @property
    def slots(self) -> int:
        """Scores per ciphertext."""
        return POLY_MODULUS_DEGREE // 2

    @property
    def query_bytes(self) -> int:
        """Exact size of a query: per cell one polynomial and the seed of the other."""
        per_cell = POLY_MODULUS_DEGREE * SCORING_COEFFICIENT_BYTES + SEED_BYTES
        return HEADER_BYTES + self.cells * per_cell

    def blocks(self, pool_size: int) -> int:
        """Ciphertexts that hold the scores of `pool_size` samples."""
        _require_int("pool_size", pool_size, 1, MAX_POOL_SIZE)
        return -(-pool_size // self.slots)

    def scores_bytes(self, pool_size: int) -> int:
        """Exact size of the encrypted scores of `pool_size` samples."""
        per_block = 2 * POLY_MODULUS_DEGREE * SCORING_COEFFICIENT_BYTES
        return HEADER_BYTES + self.blocks(pool_size) * per_block

    def matrix_bytes(self, pool_size: int) -> int:
        """Exact size of a committed matrix: per block and cell 2048 integers of 4 bytes."""
        return HEADER_BYTES + self.blocks(pool_size) * self.cells * self.slots * 4


def scoring_parameters(*, cells: int, row_bound: int | None = None) -> ScoringParameters:
    """Scales for `cells` coordinates so that no score can wrap.

    Args:
        cells: 1 to 1024.
        row_bound: bound on the sum of any pool sample's features, 1 to cells; None means cells,
            which holds for every matrix with entries in [0, 1]. A tighter bound buys precision:
            one bit per halving. Site and coordinator must use the same one (it is part of the
            digest), so it belongs into the study plan.
    Raises: ParameterError: out of range.
    """
    _require_int("cells", cells, MIN_CELLS, MAX_CELLS)
    bound = _require_int("row_bound", cells if row_bound is None else row_bound, 1, cells)
    # |coefficient| <= scale * largest slot for real slots; one bit for the sign, one to spare
    # for noise and rounding.
    product_bits = SCORING_MODULUS.bit_length() - 2 - (bound - 1).bit_length()
    # Query noise per slot is about 3.2 * sqrt(N) = 2^7.7, matrix rounding sqrt(N / 12) = 2^4.2:
    # four bits more for the query balance the two.
    matrix_bits = (product_bits - 4) // 2
    return ScoringParameters(
        cells=cells,
        row_bound=bound,
        query_scale_bits=product_bits - matrix_bits,
        matrix_scale_bits=matrix_bits,
    )


def _digest(public: dict[str, int | str | list[int]]) -> str:
    return hashlib.sha256(canonical_json(public)).hexdigest()
