"""Encryption parameters, derived by every party for itself from a few public numbers.

No parameter set travels on the wire: two parties that agree on (length, sum_bound) or on
(cells, row_bound) derive the same ring, the same moduli and the same digest, and a byte string
that carries another digest is refused before any of it is read.

Security: Albrecht et al., "Homomorphic Encryption Security Standard", homomorphicencryption.org,
November 2018, table 1 (ternary secret, classical 128 bit).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Final

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.ranges import within

POLY_MODULUS_DEGREE: Final = 4096

MAX_LENGTH: Final = 1_000_000
MAX_SITES: Final = 1000
# t exceeds the bound of the sum by this factor; what is left over shows masks that do not
# cancel: a uniform entry looks right with probability (2 * bound + 1) / t < 2^-10.
RANGE_FACTOR: Final = 2**12
# 2^12 times this still fits below a prime of 42 bits, the most that q = 60 bits opens exactly.
MAX_SUM_BOUND: Final = 1_000_000_000

MAX_CELLS: Final = 1024
MAX_POOL_SIZE: Final = 10_000_000

HEADER_BYTES: Final = 36
# SEAL's BLAKE2xb seed, 512 bits; it stands for the uniform half of a symmetric ciphertext.
SEED_BYTES: Final = 64


# Most bits of t, ciphertext prime q, bytes of one coefficient on the wire. q is 1 modulo 2N (NTT)
# and just below a whole number of bytes; t has at most so many bits that MAX_SITES ciphertexts add
# up without a decryption error but for chance 2^-100 (tests/doubles/noise_bound.py).
#
# Ciphertext size follows q alone, so the smallest q that leaves room for t and noise is taken.
# Whole bytes let a parser check every coefficient without bit shifts. There is no special prime:
# nothing is ever switched to another key, so the public key lives modulo q as well, which makes
# it half as large, encryption a quarter cheaper, and log2(q) stays far below the 109 bits that
# the table allows for this N.
_COEFFICIENT_MODULI: Final = (
    (22, 1099511480321, 5),
    (30, 281474976694273, 6),
    (38, 72057594037641217, 7),
    (42, 1152921504606830593, 8),
)

# Scoring is symmetric: a site encrypts its query with its own secret key.
SCORING_MODULUS: Final = 72057594037641217
SCORING_COEFFICIENT_BYTES: Final = 7


def is_prime(candidate: int) -> bool:
    """Primality of an odd number above 37 by Miller-Rabin: exact below 2^64 with these bases."""
    even = candidate - 1
    twos = (even & -even).bit_length() - 1
    return all(
        pow(base, even >> twos, candidate) == 1
        or any(pow(base, even >> shift, candidate) == even for shift in range(1, twos + 1))
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    )


def _plain_modulus(sum_bound: int) -> int:
    # The largest prime below a power of two: rejection sampling of a mask then rejects rarely,
    # and the choice needs no table. It is 1 modulo 2N, so that one ciphertext packs N entries.
    step, least = 2 * POLY_MODULUS_DEGREE, RANGE_FACTOR * sum_bound
    tops = (1 << bits for bits in itertools.count(max(least.bit_length(), 16)))
    primes = (next(filter(is_prime, range(top - step + 1, step, -step)), 0) for top in tops)
    return next(prime for prime in primes if prime >= least)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationParameters:
    """Everything public about one secure aggregation; made by `aggregation_parameters` only.

    Attributes:
        length: entries of the vector.
        sum_bound: proven bound on |entry of the sum|; an opened entry beyond it aborts.
        coeff_modulus: q, the ciphertext prime.
        plain_modulus: t, a prime, 1 modulo 2N, at least 2^12 * sum_bound.
        coefficient_bytes: width of one coefficient on the wire.
    """

    length: int
    sum_bound: int
    coeff_modulus: int
    plain_modulus: int
    coefficient_bytes: int

    @property
    def digest(self) -> str:
        """SHA-256 over all of it in canonical JSON, 64 hexadecimal digits."""
        return _digest(
            "lada/2/opening",
            self.coeff_modulus,
            length=self.length,
            sum_bound=self.sum_bound,
            plain_modulus=self.plain_modulus,
        )

    @property
    def chunks(self) -> int:
        """Ciphertexts per vector."""
        return -(-self.length // POLY_MODULUS_DEGREE)

    @property
    def chunk_bytes(self) -> int:
        """Exact size of one ciphertext on the wire, without the header."""
        return 2 * POLY_MODULUS_DEGREE * self.coefficient_bytes

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
    within(1, MAX_LENGTH, length=length)
    within(1, MAX_SUM_BOUND, sum_bound=sum_bound)
    plain_modulus = _plain_modulus(sum_bound)
    bits = plain_modulus.bit_length()
    coeff_modulus, width = next(
        (q, width) for most, q, width in _COEFFICIENT_MODULI if bits <= most
    )
    return AggregationParameters(
        length=length,
        sum_bound=sum_bound,
        coeff_modulus=coeff_modulus,
        plain_modulus=plain_modulus,
        coefficient_bytes=width,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringParameters:
    """Everything public about blind scoring with `cells` coordinates.

    Attributes:
        cells: d, coordinates of a query, one ciphertext each.
        row_bound: bound on the sum of one pool sample's features, so |score| <= row_bound.
        query_scale_bits, matrix_scale_bits: CKKS scales as powers of two. Their product times
            row_bound stays below q / 2, because a score that passed it would wrap in silence.
    """

    cells: int
    row_bound: int
    query_scale_bits: int
    matrix_scale_bits: int

    @property
    def digest(self) -> str:
        """SHA-256 over all of it in canonical JSON, 64 hexadecimal digits."""
        return _digest("lada/2/scoring", SCORING_MODULUS, **asdict(self))

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
        within(1, MAX_POOL_SIZE, pool_size=pool_size)
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
    bound = cells if row_bound is None else row_bound
    within(1, MAX_CELLS, cells=cells)
    within(1, cells, row_bound=bound)
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


def _digest(form: str, coeff_modulus: int, **public: int) -> str:
    ring: dict[str, Json] = {"format": form, "coeff_modulus": [coeff_modulus]}
    return sha256_hex(
        canonical_json({**ring, "poly_modulus_degree": POLY_MODULUS_DEGREE, **public})
    )
