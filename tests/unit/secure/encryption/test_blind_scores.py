"""Blind scores: right within their error, refused where malformed, and kept to the site."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.parameters import HEADER_BYTES, SCORING_MODULUS, scoring_parameters
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("pool", "cells"), [(1, 1), (2048, 3), (2049, 3), (10_000, 64), (300, 257)]
)
def test_scores_are_right_within_1e_4_of_their_range(pool: int, cells: int) -> None:
    features = RNG.uniform(0, 1, (pool, cells))
    utilities = RNG.uniform(-1, 1, cells)
    key = ScoringKey.generate(cells)
    matrix = PoolMatrix(encode_matrix(features))
    query = key.encrypt(utilities)
    scores = matrix.score(query)
    assert len(query) == key.parameters.query_bytes
    assert len(scores) == key.parameters.scores_bytes(pool)
    read = key.decrypt(scores, pool)
    true = features @ utilities
    span = max(float(np.ptp(true)), 1.0)
    assert np.abs(read - true).max() <= 1e-4 * span


def test_extreme_scores_do_not_wrap() -> None:
    key = ScoringKey.generate(64)
    matrix = PoolMatrix(encode_matrix(np.ones((5, 64))))
    for sign in (1.0, -1.0):
        scores = key.decrypt(matrix.score(key.encrypt(np.full(64, sign))), 5)
        assert np.abs(scores - 64 * sign).max() < 1e-3


def test_cells_of_one_hot_rows_are_read_back() -> None:
    cell = RNG.integers(0, 64, 3000)
    utilities = RNG.uniform(-1, 1, 64)
    key = ScoringKey.generate(64, row_bound=1)
    matrix = PoolMatrix(encode_matrix(np.eye(64)[cell], row_bound=1))
    read = key.decrypt(matrix.score(key.encrypt(utilities)), 3000)
    assert np.abs(read - utilities[cell]).max() <= 2e-5


def test_a_pool_without_features_scores_zero() -> None:
    key = ScoringKey.generate(3)
    features = np.zeros((5000, 3))
    features[4999, 1] = 1.0
    matrix = PoolMatrix(encode_matrix(features))
    read = key.decrypt(matrix.score(key.encrypt(np.array([1.0, 0.5, -1.0]))), 5000)
    assert np.abs(read[:4999]).max() < 1e-4
    assert abs(read[4999] - 0.5) < 1e-4


def test_two_sites_share_one_encoded_matrix() -> None:
    features = RNG.uniform(0, 1, (2500, 8))
    matrix = PoolMatrix(encode_matrix(features))
    for _ in range(3):
        key, utilities = ScoringKey.generate(8), RNG.uniform(-1, 1, 8)
        read = key.decrypt(matrix.score(key.encrypt(utilities)), 2500)
        assert np.abs(read - features @ utilities).max() < 1e-4


def test_scores_survive_the_death_of_the_worker() -> None:
    import os
    import signal

    from lada_secure.encryption.workers.process import BLIND_WORKER, WorkerProcess

    worker = WorkerProcess(BLIND_WORKER)
    features, key = RNG.uniform(0, 1, (100, 4)), ScoringKey.generate(4)
    utilities = RNG.uniform(-1, 1, 4)
    matrix = PoolMatrix(encode_matrix(features), worker=worker)
    query = key.encrypt(utilities)
    matrix.score(query)
    killed = worker.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    for _ in range(100):
        if worker.pid not in (None, killed):
            break
        try:
            read = key.decrypt(matrix.score(query), 100)
        except PeerError:
            continue
    worker.close()
    assert np.abs(read - features @ utilities).max() < 1e-4


def test_a_matrix_larger_than_the_cache_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lada_secure.encryption.blind_scores.CACHE_BYTES", 2 * 2 * 4096 * 8)
    features, key = RNG.uniform(0, 1, (12_000, 2)), ScoringKey.generate(2)
    utilities = np.array([0.25, -1.0])
    matrix = PoolMatrix(encode_matrix(features))
    for _ in range(2):
        read = key.decrypt(matrix.score(key.encrypt(utilities)), 12_000)
        assert np.abs(read - features @ utilities).max() < 1e-4


def test_two_queries_of_one_vector_differ() -> None:
    key = ScoringKey.generate(2)
    assert key.encrypt(np.zeros(2)) != key.encrypt(np.zeros(2))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((0, 4)), "pool_size"),
        (np.zeros((4, 0)), "cells"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, 1.1]]), r"\[0, 1\]"),
        (np.array([[-0.1, 1.0]]), r"\[0, 1\]"),
    ],
)
def test_a_bad_matrix_is_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        encode_matrix(features)


def test_a_row_above_its_bound_is_refused() -> None:
    with pytest.raises(ParameterError, match="would wrap"):
        encode_matrix(np.ones((1, 4)), row_bound=3)


@pytest.mark.parametrize(
    ("utilities", "message"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((4, 1)), "shape"),
        (np.array([0.0, 0.0, 0.0, np.nan]), "NaN"),
        (np.array([0.0, 0.0, 0.0, np.inf]), "infinite"),
        (np.array([0.0, 0.0, 0.0, -1.01]), r"\[-1, 1\]"),
    ],
)
def test_bad_utilities_are_refused(utilities: np.ndarray, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ScoringKey.generate(4).encrypt(utilities)


def test_malformed_queries_are_refused_with_their_own_reason() -> None:
    query = ScoringKey.generate(2).encrypt(np.zeros(2))
    other = scoring_parameters(cells=2, row_bound=1)
    q = SCORING_MODULUS.to_bytes(7, "little")
    matrix = PoolMatrix(encode_matrix(np.ones((3, 2))))
    for bad, reason in (
        (b"", "wrong_length"),
        (query[:-1], "wrong_length"),
        (query + b"\0", "wrong_length"),
        (b"LSV1" + query[4:], "wrong_format"),
        (query[:4] + bytes.fromhex(other.digest) + query[36:], "wrong_parameters"),
        (query[:HEADER_BYTES] + q + query[HEADER_BYTES + 7 :], "coefficient_range"),
    ):
        with pytest.raises(PeerError) as caught:
            matrix.score(bad)
        assert caught.value.reason == reason


def test_a_query_with_any_seed_is_computed() -> None:
    key = ScoringKey.generate(2)
    query = key.encrypt(np.zeros(2))
    matrix = PoolMatrix(encode_matrix(np.ones((3, 2))))
    scores = matrix.score(query[:-128] + bytes(128))
    # Another seed is another ciphertext: it decrypts to noise, far out of range.
    with pytest.raises(PeerError) as caught:
        key.decrypt(scores, 3)
    assert caught.value.reason == "out_of_range"


def test_malformed_scores_are_refused_with_their_own_reason() -> None:
    key = ScoringKey.generate(2)
    matrix = PoolMatrix(encode_matrix(np.ones((3, 2))))
    scores = matrix.score(key.encrypt(np.zeros(2)))
    for bad, reason in (
        (b"", "wrong_length"),
        (scores[:-1], "wrong_length"),
        (scores + scores[HEADER_BYTES:], "wrong_length"),
        (b"LSQ1" + scores[4:], "wrong_format"),
        (scores[:4] + bytes(32) + scores[HEADER_BYTES:], "wrong_parameters"),
        (scores[:-7] + b"\xff" * 7, "coefficient_range"),
    ):
        with pytest.raises(PeerError) as caught:
            key.decrypt(bad, 3)
        assert caught.value.reason == reason


def test_scores_for_another_pool_size_are_refused() -> None:
    key = ScoringKey.generate(1)
    matrix = PoolMatrix(encode_matrix(np.ones((2000, 1))))
    scores = matrix.score(key.encrypt(np.ones(1)))
    assert len(key.decrypt(scores, 2000)) == 2000
    with pytest.raises(PeerError, match="behind sample 1000") as caught:
        key.decrypt(scores, 1000)
    assert caught.value.reason == "out_of_range"
    with pytest.raises(PeerError):
        key.decrypt(scores, 2049)


def test_scores_under_another_key_are_out_of_range() -> None:
    matrix = PoolMatrix(encode_matrix(np.ones((3, 2))))
    scores = matrix.score(ScoringKey.generate(2).encrypt(np.zeros(2)))
    with pytest.raises(PeerError) as caught:
        ScoringKey.generate(2).decrypt(scores, 3)
    assert caught.value.reason == "out_of_range"


def test_a_scoring_key_comes_back_from_disk() -> None:
    key = ScoringKey.generate(3, row_bound=2)
    copy = ScoringKey.from_bytes(key.to_bytes())
    assert copy.parameters == key.parameters
    matrix = PoolMatrix(encode_matrix(np.full((4, 3), 0.5), row_bound=2))
    read = copy.decrypt(matrix.score(key.encrypt(np.ones(3))), 4)
    assert np.abs(read - 1.5).max() < 1e-4
    raw = key.to_bytes()
    for bad in (b"", raw[:-1], raw[:100] + b"?" + raw[101:]):
        with pytest.raises(ParameterError, match="damaged"):
            ScoringKey.from_bytes(bad)


def test_a_scoring_key_shows_and_pickles_nothing() -> None:
    key = ScoringKey.generate(1)
    assert repr(key) == f"ScoringKey(parameters={key.parameters})"
    with pytest.raises(LocalProtocolError):
        pickle.dumps(key)


@pytest.mark.slow
def test_a_pool_of_100_000_needs_a_fixed_amount_of_memory_beyond_its_matrix() -> None:
    from pathlib import Path

    from lada_secure.encryption.workers.process import BLIND_WORKER, WorkerProcess

    worker = WorkerProcess(BLIND_WORKER)
    features, utilities = RNG.uniform(0, 1, (100_000, 64)), RNG.uniform(-1, 1, 64)
    key = ScoringKey.generate(64)
    matrix = PoolMatrix(encode_matrix(features), worker=worker)
    read = key.decrypt(matrix.score(key.encrypt(utilities)), 100_000)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    worker.close()
    assert np.abs(read - features @ utilities).max() < 1e-4 * np.ptp(read)
    # Interpreter and libraries take 60 MB, the cache 64, a query and a request some 20.
    assert peak_kb < 200_000
