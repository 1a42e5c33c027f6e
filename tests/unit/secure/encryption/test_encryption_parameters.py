"""Parameter sets: security, exactness, and what is refused."""

from __future__ import annotations

import pytest
from noise_bound import noise_bound
from sympy import isprime

from lada_secure.encryption.parameters import (
    MAX_SITES,
    MAX_SUM_BOUND,
    POLY_MODULUS_DEGREE,
    SCORING_MODULUS,
    aggregation_parameters,
    is_prime,
    scoring_parameters,
)
from lada_secure.errors import ParameterError

# homomorphicencryption.org, security standard of November 2018, table 1, ternary secret,
# classical attacks, 128 bit; typed in from the paper.
STANDARD_128 = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}

BOUNDS = [1, 10, 2**9, 2**10, 2**17, 2**18 - 1, 2**18, 2**25, 2**26, 2**29, MAX_SUM_BOUND]


@pytest.mark.parametrize("sum_bound", BOUNDS)
def test_every_opening_set_keeps_128_bits_and_leaves_room_for_range_and_noise(
    sum_bound: int,
) -> None:
    params = aggregation_parameters(length=1, sum_bound=sum_bound)
    assert params.coeff_modulus.bit_length() <= STANDARD_128[POLY_MODULUS_DEGREE]
    assert params.plain_modulus >= 2**12 * sum_bound
    assert params.plain_modulus % (2 * POLY_MODULUS_DEGREE) == 1
    assert params.coeff_modulus % (2 * POLY_MODULUS_DEGREE) == 1
    assert isprime(params.plain_modulus)
    assert isprime(params.coeff_modulus)
    assert params.coeff_modulus.bit_length() <= 8 * params.coefficient_bytes
    # Decryption rounds correctly while the noise stays below q / 2t.
    assert noise_bound(MAX_SITES) < params.coeff_modulus // (2 * params.plain_modulus)


def test_the_scoring_set_keeps_128_bits() -> None:
    assert SCORING_MODULUS.bit_length() <= STANDARD_128[POLY_MODULUS_DEGREE]
    assert isprime(SCORING_MODULUS)


@pytest.mark.parametrize(("cells", "row_bound"), [(1, 1), (64, 64), (64, 1), (65, 65), (1024, 3)])
def test_no_score_can_wrap(cells: int, row_bound: int) -> None:
    params = scoring_parameters(cells=cells, row_bound=row_bound)
    scale = 2 ** (params.query_scale_bits + params.matrix_scale_bits)
    assert scale * row_bound <= SCORING_MODULUS // 2
    assert params.matrix_scale_bits >= 15


def test_own_primality_agrees_with_sympy() -> None:
    odd = [*range(39, 5000, 2), *range(2**41 - 999, 2**41, 2), 3215031751, 3825123056546413051]
    assert [is_prime(number) for number in odd] == [isprime(number) for number in odd]


def test_every_public_number_changes_the_digest() -> None:
    digests = {
        aggregation_parameters(length=length, sum_bound=bound).digest
        for length in (1, 2, 4096, 4097)
        for bound in (100, 101, 2**20)
    }
    assert len(digests) == 12
    scoring = {
        scoring_parameters(cells=cells, row_bound=bound).digest
        for cells in (8, 9)
        for bound in (1, 2, 8)
    }
    assert len(scoring) == 6


def test_parameters_are_derived_the_same_every_time() -> None:
    assert aggregation_parameters(length=5, sum_bound=9) == aggregation_parameters(
        length=5, sum_bound=9
    )


@pytest.mark.parametrize(
    ("length", "sum_bound"),
    [(0, 1), (-1, 1), (1_000_001, 1), (1, 0), (1, -5), (1, MAX_SUM_BOUND + 1)],
)
def test_opening_numbers_out_of_range_are_refused(length: int, sum_bound: int) -> None:
    with pytest.raises(ParameterError, match="expected 1 to"):
        aggregation_parameters(length=length, sum_bound=sum_bound)


@pytest.mark.parametrize(("cells", "row_bound"), [(0, None), (1025, None), (4, 5), (4, 0)])
def test_scoring_numbers_out_of_range_are_refused(cells: int, row_bound: int | None) -> None:
    with pytest.raises(ParameterError, match="expected 1 to"):
        scoring_parameters(cells=cells, row_bound=row_bound)


def test_a_pool_of_no_samples_has_no_blocks() -> None:
    with pytest.raises(ParameterError, match="pool_size"):
        scoring_parameters(cells=4).blocks(0)
