"""Any bytes parse or raise PeerError; what parses does not hurt the process that asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import encode_matrix, parse_matrix
from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    aggregation_parameters,
    scoring_parameters,
)
from lada_secure.encryption.parsing import pack, query_parts, scores_coefficients, unpack
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.sealing import check_sealed, parse_public_key, seal
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import PeerError

OPENING = aggregation_parameters(length=3, sum_bound=100)
SCORING = scoring_parameters(cells=1)
REASONS = {
    "wrong_length",
    "wrong_format",
    "wrong_parameters",
    "coefficient_range",
    "transparent",
    "out_of_range",
    "native_failure",
}


def survives(parse: Callable[[bytes], Any], raw: bytes) -> bool:
    """Whether `raw` parsed; anything but success or PeerError fails the test."""
    reason = None
    try:
        parse(raw)
    except PeerError as error:
        reason = error.reason
    assert reason is None or reason in REASONS
    return reason is None


@pytest.fixture(scope="module")
def opening_key() -> AggregateKey:
    return AggregateKey.generate(OPENING)


@pytest.fixture(scope="module")
def valid(opening_key: AggregateKey) -> dict[str, bytes]:
    key = parse_public_key(opening_key.public_bytes, OPENING)
    site = ScoringKey.generate(1)
    query = site.encrypt(np.array([0.5]))
    matrix = PoolMatrix(encode_matrix(np.ones((3, 1))))
    scores = matrix.score(query)
    return {
        "sealed": seal(key, OPENING, np.array([1, 2, 3])),
        "public_key": opening_key.public_bytes,
        "query": query,
        "scores": scores,
        "matrix": encode_matrix(np.ones((3, 1))).to_bytes(),
    }


PARSERS: dict[str, Callable[[bytes], Any]] = {
    "sealed": lambda raw: check_sealed(raw, OPENING),
    "public_key": lambda raw: parse_public_key(raw, OPENING),
    "query": lambda raw: query_parts(raw, SCORING),
    "scores": lambda raw: scores_coefficients(raw, SCORING, 3),
    "matrix": lambda raw: parse_matrix(raw, SCORING, 3),
}

# Each once crashed or misled a process that gave foreign bytes to the native library: nothing at
# all, a protobuf with `sizes` too large or missing, a truncated zstd stream, a SEAL header.
CRASHERS = [
    b"",
    b"\x00",
    bytes((0x0A, 5, 0x80, 0x80, 0x80, 0x80, 0x08)),
    bytes((0x12, 0xDA, 0xCC, 0x03)),
    bytes.fromhex("5ea110040302000017db000000000000") + bytes.fromhex("28b52ffd6061ff"),
    bytes.fromhex("5ea1100403000000ffffffffffffffff"),
]


@pytest.mark.parametrize("what", sorted(PARSERS))
def test_known_crashers_are_refused(what: str) -> None:
    for raw in CRASHERS:
        assert not survives(PARSERS[what], raw)


@pytest.mark.parametrize("what", sorted(PARSERS))
@given(raw=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused(what: str, raw: bytes) -> None:
    assert not survives(PARSERS[what], raw)


@given(
    width=st.sampled_from([5, 6, 7, 8]),
    values=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=50),
)
@settings(deadline=None)
def test_packing_is_little_endian_and_reversible(width: int, values: list[int]) -> None:
    packed = pack(np.array(values, dtype=np.uint64), width)
    assert packed == b"".join(value.to_bytes(width, "little") for value in values)
    assert unpack(packed, width).tolist() == values


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to eight edits: bits, bytes, runs of ones or zeros, cuts, insertions, swaps."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.choice((rng.randrange(len(made)), rng.randrange(min(80, len(made)))))
        kind = rng.randrange(7)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.randrange(256)
        elif kind == 2:
            run = rng.choice((1, 7, 64, 4096))
            made[at : at + run] = b"\xff" * len(made[at : at + run])
        elif kind == 3:
            run = rng.choice((1, 7, 64, 40_000))
            made[at : at + run] = bytes(len(made[at : at + run]))
        elif kind == 4:
            del made[at : at + rng.choice((1, 2, 1000))]
        elif kind == 5:
            made[at:at] = rng.choice(CRASHERS) or b"\x00"
        else:
            other = rng.randrange(len(made))
            made[at], made[other] = made[other], made[at]
        if not made:
            break
    return bytes(made)


def _mutated_messages(valid: dict[str, bytes], count: int, seed: int) -> int:
    rng = random.Random(seed)
    passed = 0
    for _ in range(count):
        what = rng.choice(sorted(valid))
        passed += survives(PARSERS[what], mutate(valid[what], rng))
    return passed


def test_mutated_messages_are_refused_or_parsed(valid: dict[str, bytes]) -> None:
    for what, raw in valid.items():
        assert survives(PARSERS[what], raw)
    passed = _mutated_messages(valid, 2_000, seed=1)
    # Changed coefficients below q are legal ciphertexts; changed frames never are.
    assert 0 < passed < 2_000


@pytest.mark.slow
def test_100_000_mutated_messages_are_refused_or_parsed(valid: dict[str, bytes]) -> None:
    assert 0 < _mutated_messages(valid, 100_000, seed=2) < 100_000


def test_what_parses_can_be_handed_to_the_native_library(
    valid: dict[str, bytes], opening_key: AggregateKey
) -> None:
    """Mutations that keep the form reach SEAL, which computes garbage with them and lives."""
    rng = random.Random(3)
    site = ScoringKey.generate(1)
    matrix = PoolMatrix(encode_matrix(np.ones((3, 1))))
    uses: dict[str, Callable[[bytes], Any]] = {
        "sealed": lambda raw: opening_key.open_sum(raw),
        "public_key": lambda raw: seal(
            parse_public_key(raw, OPENING), OPENING, np.array([1, 2, 3])
        ),
        "query": matrix.score,
        "scores": lambda raw: site.decrypt(raw, 3),
        "matrix": lambda raw: PoolMatrix(
            parse_matrix(raw, SCORING, 3), worker=shared_worker()
        ).score(valid["query"]),
    }
    for what, use in uses.items():
        for _ in range(60):
            raw = bytearray(valid[what])
            for _ in range(rng.choice((1, 100, 4000))):
                raw[rng.randrange(HEADER_BYTES, len(raw))] = rng.randrange(256)
            survives(use, bytes(raw))


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_random_ciphertexts_open_to_something_out_of_range(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    coefficients = rng.integers(0, OPENING.coeff_modulus, 2 * POLY_MODULUS_DEGREE, dtype=np.uint64)
    raw = b"LSV1" + bytes.fromhex(OPENING.digest) + pack(coefficients, OPENING.coefficient_bytes)
    with pytest.raises(PeerError) as caught:
        _KEYS.setdefault("key", AggregateKey.generate(OPENING)).open_sum(raw)
    assert caught.value.reason == "out_of_range"


_KEYS: dict[str, AggregateKey] = {}
