"""Sealed vectors: exact sums, strict refusal, the same addition as SEAL's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sealed_sums import add_sealed

from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.parameters import HEADER_BYTES, aggregation_parameters
from lada_secure.encryption.parsing import frame, pack, sealed_chunks
from lada_secure.encryption.sealing import SealedSum, check_sealed, parse_public_key, seal
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

Make = Callable[[int, int, int], Any]


@pytest.mark.parametrize(
    ("sites", "length", "site_bound"),
    [
        (3, 1, 1),
        (3, 1000, 20_000),
        (3, 4097, 10_000_000),
        (10, 1, 2**14),
        (10, 1000, 2**14),
        (10, 4097, 2**14),
        (50, 1, 20_000_000),
        (50, 1000, 5),
    ],
)
def test_the_opened_sum_is_exact(make: Make, sites: int, length: int, site_bound: int) -> None:
    opening = make(sites, length, site_bound)
    total = add_sealed(opening.params, opening.sealed)
    assert len(total) == opening.params.sealed_bytes
    opened = opening.key.open_sum(total)
    assert opened.dtype == np.int64
    assert (opened == opening.total).all()


@pytest.mark.slow
@pytest.mark.parametrize("sites", [3, 10, 50])
@pytest.mark.parametrize("length", [4097, 100_000])
def test_the_opened_sum_of_long_vectors_is_exact(make: Make, sites: int, length: int) -> None:
    opening = make(sites, length, 2**14)
    opened = opening.key.open_sum(add_sealed(opening.params, opening.sealed))
    assert (opened == opening.total).all()


def test_addition_is_seals_addition_bit_for_bit(small: Any) -> None:
    """Oracle: SEAL's evaluator on the same ciphertexts."""
    from tenseal import sealapi

    from lada_secure.encryption.native import aggregation_ring

    params = small.params
    ring = aggregation_ring(params.coeff_modulus, params.plain_modulus)
    chunks = [next(sealed_chunks(raw, params)) for raw in small.sealed]
    total = ring.ciphertext(chunks[0], ntt=False, scale=1.0)
    for chunk in chunks[1:]:
        ring.evaluator.add_inplace(total, ring.ciphertext(chunk, ntt=False, scale=1.0))
    assert isinstance(total, sealapi.Ciphertext)
    ours = add_sealed(params, small.sealed)
    assert (next(sealed_chunks(ours, params)) == ring.coefficients(total)).all()


def test_the_sum_does_not_depend_on_the_order(small: Any) -> None:
    digest = hashlib.sha256(add_sealed(small.params, small.sealed)).digest()
    again = hashlib.sha256(add_sealed(small.params, small.sealed[::-1])).digest()
    assert digest == again


def test_sealing_twice_gives_different_bytes_of_the_same_vector(small: Any) -> None:
    key = parse_public_key(small.key.public_bytes, small.params)
    values = np.arange(small.params.length)
    one, other = seal(key, small.params, values), seal(key, small.params, values)
    assert one[HEADER_BYTES:] != other[HEADER_BYTES:]
    assert (small.key.open(one) == small.key.open(other)).all()


def test_a_refused_contribution_leaves_the_sum_unchanged(small: Any) -> None:
    total = SealedSum(small.params)
    total.add(small.sealed[0])
    before = total.to_bytes()
    with pytest.raises(PeerError):
        total.add(small.sealed[1][:-1])
    assert total.to_bytes() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(49, dtype=np.int64), "50 entries"),
        (np.zeros((50, 1), dtype=np.int64), "shape"),
        (np.zeros(50), "whole numbers"),
        (np.full(50, -1), "entries in"),
        (np.full(50, 2**40), "entries in"),
    ],
)
def test_values_that_are_not_masked_entries_are_refused(
    small: Any, values: np.ndarray, message: str
) -> None:
    key = parse_public_key(small.key.public_bytes, small.params)
    with pytest.raises(ParameterError, match=message):
        seal(key, small.params, values)


def test_a_key_of_other_parameters_does_not_seal(small: Any) -> None:
    other = aggregation_parameters(length=51, sum_bound=3000)
    key = parse_public_key(small.key.public_bytes, small.params)
    with pytest.raises(ParameterError, match="other parameters"):
        seal(key, other, np.zeros(51, dtype=np.int64))


def test_nothing_has_no_sum(small: Any) -> None:
    with pytest.raises(ParameterError, match="undefined"):
        add_sealed(small.params, [])


def test_contributions_that_cancel_are_not_encrypted_any_more(small: Any) -> None:
    params = small.params
    body = next(sealed_chunks(small.sealed[0], params))
    negated = (np.uint64(params.coeff_modulus) - body) % np.uint64(params.coeff_modulus)
    opposite = frame(b"LSV1", params.digest, pack(negated, params.coefficient_bytes))
    with pytest.raises(PeerError) as caught:
        add_sealed(params, [small.sealed[0], opposite])
    assert caught.value.reason == "transparent"


def _with_coefficient(raw: bytes, index: int, value: int, width: int) -> bytes:
    at = HEADER_BYTES + index * width
    return raw[:at] + value.to_bytes(width, "little") + raw[at + width :]


def _bad_forms(opening: Any) -> dict[str, tuple[bytes, str]]:
    raw, params = opening.sealed[0], opening.params
    width, half = params.coefficient_bytes, params.chunk_bytes // 2
    other = aggregation_parameters(length=params.length, sum_bound=params.sum_bound + 1)
    return {
        "empty bytes": (b"", "wrong_length"),
        "one byte short": (raw[:-1], "wrong_length"),
        "one byte long": (raw + b"\0", "wrong_length"),
        "header only": (raw[:HEADER_BYTES], "wrong_length"),
        "twice the chunks": (raw + raw[HEADER_BYTES:], "wrong_length"),
        "another magic": (b"LSQ1" + raw[4:], "wrong_format"),
        "other parameters": (
            frame(b"LSV1", other.digest, raw[HEADER_BYTES:]),
            "wrong_parameters",
        ),
        "first coefficient equals q": (
            _with_coefficient(raw, 0, params.coeff_modulus, width),
            "coefficient_range",
        ),
        "last coefficient all ones": (raw[:-width] + b"\xff" * width, "coefficient_range"),
        "second polynomial zero": (raw[:-half] + bytes(half), "transparent"),
        "all zero": (raw[:HEADER_BYTES] + bytes(params.chunk_bytes), "transparent"),
    }


def test_a_malformed_vector_is_refused_with_its_own_reason(small: Any) -> None:
    for name, (raw, reason) in _bad_forms(small).items():
        for use in (
            lambda raw=raw: check_sealed(raw, small.params),
            lambda raw=raw: add_sealed(small.params, [small.sealed[0], raw]),
            lambda raw=raw: small.key.open(raw),
        ):
            with pytest.raises(PeerError) as caught:
                use()
            assert caught.value.reason == reason, name


def test_a_malformed_public_key_is_refused_with_its_own_reason(small: Any) -> None:
    raw, params = small.key.public_bytes, small.params
    half = params.chunk_bytes // 2
    for bad, reason in (
        (b"", "wrong_length"),
        (raw[:-1], "wrong_length"),
        (b"LSV1" + raw[4:], "wrong_format"),
        (raw[:4] + bytes(32) + raw[HEADER_BYTES:], "wrong_parameters"),
        (raw[:-8] + b"\xff" * 8, "coefficient_range"),
        (raw[:-half] + bytes(half), "transparent"),
        (raw[:HEADER_BYTES] + bytes(half) + raw[-half:], "transparent"),
    ):
        with pytest.raises(PeerError) as caught:
            parse_public_key(bad, params)
        assert caught.value.reason == reason


def test_foreign_input_that_is_not_bytes_is_our_own_mistake(small: Any) -> None:
    with pytest.raises(LocalProtocolError):
        check_sealed("text", small.params)  # type: ignore[arg-type]


def test_a_context_of_tenseal_is_not_a_public_key(small: Any) -> None:
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, plain_modulus=1032193)
    with pytest.raises(PeerError):
        parse_public_key(context.serialize(save_secret_key=True), small.params)


def test_a_vector_under_another_key_opens_to_garbage_and_is_refused(small: Any) -> None:
    stranger = AggregateKey.generate(small.params)
    key = parse_public_key(stranger.public_bytes, small.params)
    foreign = seal(key, small.params, np.zeros(50, dtype=np.int64))
    total = add_sealed(small.params, [*small.sealed[:2], foreign])
    with pytest.raises(PeerError) as caught:
        small.key.open_sum(total)
    assert caught.value.reason == "out_of_range"
