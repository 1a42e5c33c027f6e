"""The matrix that is committed to: one spelling, close to what was meant, scores to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dct

from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import EncodedMatrix, encode_matrix, parse_matrix
from lada_secure.encryption.parameters import HEADER_BYTES, scoring_parameters
from lada_secure.encryption.parsing import scores_coefficients
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import ParameterError, PeerError

RNG = np.random.default_rng(6)
ONE = scoring_parameters(cells=3, row_bound=1)


def rows(pool: int, cells: int = 3) -> np.ndarray:
    """Random rows that add up to at most 1."""
    made = RNG.uniform(size=(pool, cells))
    return made / made.sum(axis=1, keepdims=True) * RNG.uniform(size=(pool, 1))


@pytest.mark.parametrize(("pool", "cells"), [(1, 1), (2048, 3), (2049, 3), (5000, 40)])
def test_a_matrix_comes_back_within_rounding_and_in_the_same_bytes(pool: int, cells: int) -> None:
    features = rows(pool, cells)
    matrix = encode_matrix(features, row_bound=1)
    raw = matrix.to_bytes()
    parameters = scoring_parameters(cells=cells, row_bound=1)
    assert len(raw) == parameters.matrix_bytes(pool)
    read = parse_matrix(raw, parameters, pool)
    assert read.to_bytes() == raw
    every = np.concatenate([read.rows(block) for block in range(parameters.blocks(pool))])
    assert np.abs(every[:pool] - features).max() < 1e-5
    assert np.abs(every[pool:]).max(initial=0.0) < 1e-5


def test_what_the_native_encoder_is_given_is_no_tie_on_any_processor() -> None:
    """It rounds floats to integers: ours are so close to them that no last bit can matter."""
    matrix = encode_matrix(rows(2048), row_bound=1)
    m = [min(one, 8192 - one) for one in (pow(3, slot, 8192) for slot in range(2048))]
    points = np.empty((3, 2048))
    points[:, [(one - 1) // 2 for one in m]] = matrix.rows(0).T
    scale = 2.0**matrix.parameters.matrix_scale_bits
    transformed = dct(points, type=2, axis=1) * scale / 4096
    assert np.abs(transformed - matrix.columns[0]).max() < 1e-6


def test_scores_are_the_product_of_integers_modulo_a_prime() -> None:
    """Against plain integer arithmetic: one coefficient of 2 is a doubling of the query."""
    columns = np.zeros((1, 1, 2048), dtype=np.int32)
    columns[0, 0, 0] = 2
    parameters = scoring_parameters(cells=1, row_bound=1)
    matrix = EncodedMatrix(parameters=parameters, pool_size=2048, columns=columns)
    key = ScoringKey.generate(1, row_bound=1)
    query = key.encrypt(np.array([0.5]))
    scores = PoolMatrix(matrix, worker=shared_worker()).score(query)
    (block,) = scores_coefficients(scores, parameters, 2048)
    first = np.frombuffer(query[HEADER_BYTES : HEADER_BYTES + 7 * 4096], dtype="u1")
    wide = np.zeros((4096, 8), dtype="u1")
    wide[:, :7] = first.reshape(4096, 7)
    doubled = wide.view("<u8").reshape(-1).astype(object) * 2 % 72057594037641217
    assert (block[0].astype(object) == doubled).all()


def test_the_same_query_and_matrix_give_the_same_bytes_in_any_worker() -> None:
    key = ScoringKey.generate(3, row_bound=1)
    query = key.encrypt(np.array([0.5, -1.0, 0.25]))
    raw = encode_matrix(rows(3000), row_bound=1).to_bytes()
    found = set()
    for _ in range(2):
        matrix = PoolMatrix(parse_matrix(raw, ONE, 3000))
        found |= {matrix.score(query), matrix.score(query)}
    assert len(found) == 1


def test_two_matrices_in_one_worker_do_not_answer_for_each_other() -> None:
    key = ScoringKey.generate(3, row_bound=1)
    query = key.encrypt(np.array([1.0, 0.0, 0.0]))
    one, other = (
        PoolMatrix(encode_matrix(features, row_bound=1), worker=shared_worker())
        for features in (np.eye(3), np.eye(3)[::-1])
    )
    for _ in range(2):
        assert np.abs(key.decrypt(one.score(query), 3) - [1, 0, 0]).max() < 1e-4
        assert np.abs(key.decrypt(other.score(query), 3) - [0, 0, 1]).max() < 1e-4


def _with(changes: dict[tuple[int, int], float], pool: int = 3) -> bytes:
    """A commitment to rows that `encode_matrix` would refuse."""
    values = np.zeros((2048, 3))
    values[:pool] = 0.25
    for place, value in changes.items():
        values[place] = value
    half = encode_matrix(np.clip(values, 0, 1) / 64, row_bound=1)
    less = encode_matrix(np.clip(-values, 0, 1) / 64, row_bound=1)
    columns = 64 * (half.columns.astype(np.int64) - less.columns)
    return half.to_bytes()[:HEADER_BYTES] + columns.astype("<i4").tobytes()


def test_a_commitment_in_range_passes() -> None:
    assert parse_matrix(_with({}), ONE, 3).pool_size == 3


@pytest.mark.parametrize(
    "changes",
    [
        {(0, 0): -0.1},
        {(0, 0): 0.9, (0, 1): 0.9},
        {(2, 0): 0.8},
        {(3, 0): 0.1},
        {(2047, 2): 0.1},
        {(1, 0): 1.0, (1, 1): -0.5},
    ],
    ids=["negative", "row", "row of three", "behind", "last slot", "both signs"],
)
def test_a_commitment_out_of_range_is_refused(changes: dict[tuple[int, int], float]) -> None:
    with pytest.raises(PeerError) as caught:
        parse_matrix(_with(changes), ONE, 3)
    assert caught.value.reason == "out_of_range"


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_the_largest_integers_are_refused_without_overflow(value: int) -> None:
    good = encode_matrix(np.zeros((3, 3)), row_bound=1).to_bytes()
    for place in (0, 1, 2047, 3 * 2048 - 1):
        raw = bytearray(good)
        at = HEADER_BYTES + 4 * place
        raw[at : at + 4] = value.to_bytes(4, "little", signed=True)
        with pytest.raises(PeerError) as caught:
            parse_matrix(bytes(raw), ONE, 3)
        assert caught.value.reason == "out_of_range"


def test_malformed_commitments_are_refused_with_their_own_reason() -> None:
    good = encode_matrix(np.full((3, 3), 0.25), row_bound=1).to_bytes()
    other = scoring_parameters(cells=3)
    for bad, reason in (
        (b"", "wrong_length"),
        (good[:-1], "wrong_length"),
        (good + b"\0", "wrong_length"),
        (b"LSS1" + good[4:], "wrong_format"),
        (good[:4] + bytes.fromhex(other.digest) + good[HEADER_BYTES:], "wrong_parameters"),
    ):
        with pytest.raises(PeerError) as caught:
            parse_matrix(bad, ONE, 3)
        assert caught.value.reason == reason
    with pytest.raises(PeerError, match="bytes"):
        parse_matrix(good, ONE, 2049)


def test_no_score_of_an_accepted_matrix_is_out_of_range_for_its_site() -> None:
    """The widest that is accepted: a row at the bound and as much again as rounding may add."""
    values = np.zeros((3, 3))
    values[:, 0] = 1.0
    columns = encode_matrix(values, row_bound=1).columns * np.float64(1.0049)
    raw = encode_matrix(values, row_bound=1).to_bytes()[:HEADER_BYTES]
    raw += np.rint(columns).astype("<i4").tobytes()
    matrix = PoolMatrix(parse_matrix(raw, ONE, 3), worker=shared_worker())
    key = ScoringKey.generate(3, row_bound=1)
    for sign in (1.0, -1.0):
        scores = key.decrypt(matrix.score(key.encrypt(np.full(3, sign))), 3)
        assert np.abs(scores - 1.0049 * sign).max() < 1e-3


def test_a_matrix_shows_its_size_alone() -> None:
    assert "columns" not in repr(encode_matrix(np.eye(3)))
    with pytest.raises(ParameterError, match="would wrap"):
        encode_matrix(np.ones((1, 2)), row_bound=1)


def test_scores_that_are_not_encrypted_are_refused() -> None:
    key = ScoringKey.generate(1, row_bound=1)
    parameters = key.parameters
    matrix = PoolMatrix(encode_matrix(np.ones((3000, 1)), row_bound=1))
    scores = matrix.score(key.encrypt(np.array([0.5])))
    half = 7 * 4096
    for block in range(2):
        at = HEADER_BYTES + 2 * half * block + half
        with pytest.raises(PeerError) as caught:
            key.decrypt(scores[:at] + bytes(half) + scores[at + half :], 3000)
        assert caught.value.reason == "transparent"
    # A block of zeros is what a block without any feature gives.
    nothing = scores[:HEADER_BYTES] + bytes(parameters.scores_bytes(3000) - HEADER_BYTES)
    assert np.abs(key.decrypt(nothing, 3000)).max() == 0.0
