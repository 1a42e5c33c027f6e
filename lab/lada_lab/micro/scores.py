"""Blind scores beside TenSEAL's own encrypted vector times plain matrix (`mm`).

Baseline: CKKS, N = 8192, coefficient modulus [60, 40, 60], scale 2^40, matrix in blocks of 4096
columns, Galois keys as `mm` needs them.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import numpy as np

from lada_lab.micro.cpu_time import BASELINE_DEGREE, Stopwatch, baseline_context
from lada_secure.arrays import FloatArray
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import encode_matrix, parse_matrix
from lada_secure.encryption.scoring_key import DECRYPTING_WORKER, ScoringKey
from lada_secure.encryption.workers.process import BLIND_WORKER, WorkerProcess, shared_worker
from lada_secure.errors import ParameterError

BASELINE_COEFF_MODULUS_BITS: Final = [60, 40, 60]
BASELINE_BLOCK: Final = 4096


class _Baseline:
    def __init__(self, features: FloatArray) -> None:
        import tenseal

        self._tenseal: Any = tenseal
        self._context = baseline_context(BASELINE_COEFF_MODULUS_BITS)
        self._context.generate_galois_keys()
        with_keys = self._context.serialize(save_galois_keys=True, save_relin_keys=False)
        without = self._context.serialize(save_galois_keys=False, save_relin_keys=False)
        self.key_bytes = len(with_keys) - len(without)
        # Converted once and outside the measurement, as our matrix is.
        self._blocks = [
            tenseal.plain_tensor(features[start : start + BASELINE_BLOCK].T.tolist())
            for start in range(0, len(features), BASELINE_BLOCK)
        ]

    def encrypt(self, utilities: FloatArray) -> bytes:
        return bytes(self._tenseal.ckks_vector(self._context, utilities.tolist()).serialize())

    def score(self, query: bytes) -> list[bytes]:
        vector = self._tenseal.ckks_vector_from(self._context, query)
        return [bytes(vector.mm(block).serialize()) for block in self._blocks]

    def decrypt(self, scores: list[bytes]) -> FloatArray:
        parts = [self._tenseal.ckks_vector_from(self._context, raw).decrypt() for raw in scores]
        return np.concatenate([np.asarray(part) for part in parts])


def run_scores(*, pool: int = 10_000, cells: int = 64, repetitions: int = 3) -> dict[str, Any]:
    """Measure the server's and the auditor's work, the traffic and the error for one query.

    Features are uniform in [0, 1] and utilities in [-1, 1], the case with the widest scores.

    Returns: JSON-ready: `ratio.server` (ours over `mm`, medians of CPU time from received query
        to bytes to send; our matrix is encoded, as it is from the second site on),
        `ratio.server_first` (with encoding it), `audit.first_site` and `audit.further_site` (the
        auditor's check of one site's scores over the server's work for them: the first one with
        committing to the matrix and encoding it on the server's side, and with parsing and
        encoding it on the auditor's), `audit.bytes_round` and `audit.bytes_site` (what the
        auditor downloads for it: the matrix; query and scores), `bytes.up`, `bytes.down`,
        `error.max` (largest error over the range of the true scores), `error.absolute`.
    Raises: ParameterError: out of range.
    """
    if not 1 <= pool <= 1_000_000 or not 1 <= cells <= 1024 or not 1 <= repetitions <= 1000:
        raise ParameterError(
            "pool must be 1 to 1,000,000, cells 1 to 1024, repetitions 1 to 1000; got "
            f"{pool}, {cells}, {repetitions}"
        )
    rng = np.random.default_rng(0)
    features = rng.uniform(0.0, 1.0, (pool, cells))
    utilities = rng.uniform(-1.0, 1.0, cells)
    with (
        contextlib.closing(WorkerProcess(BLIND_WORKER)) as server,
        contextlib.closing(WorkerProcess(BLIND_WORKER)) as auditor,
    ):
        return _run(features, utilities, repetitions, server, auditor)


def _run(
    features: FloatArray,
    utilities: FloatArray,
    repetitions: int,
    server: WorkerProcess,
    auditor: WorkerProcess,
) -> dict[str, Any]:
    pool, cells = features.shape
    true = features @ utilities
    span = float(np.ptp(true)) or 1.0
    key = ScoringKey.generate(cells)
    baseline = _Baseline(features)
    watch = Stopwatch(workers=[server, shared_worker(DECRYPTING_WORKER), auditor])
    query, baseline_query = key.encrypt(utilities), baseline.encrypt(utilities)
    # The coordinator commits to bytes, and scores from what it has committed to.
    committed = watch.measure("commit", lambda: encode_matrix(features).to_bytes())

    def first(worker: WorkerProcess) -> tuple[PoolMatrix, bytes]:
        made = PoolMatrix(parse_matrix(committed, key.parameters, pool), worker=worker)
        return made, made.score(query)

    matrix, scores = watch.measure("server_first", first, server)
    checked, again = watch.measure("audit_first", first, auditor)
    same = again == scores
    error = baseline_error = 0.0
    baseline_scores = [b""]
    for _ in range(repetitions):
        query = watch.measure("encrypt", key.encrypt, utilities)
        scores = watch.measure("server", matrix.score, query)
        same &= watch.measure("audit", checked.score, query) == scores
        read = watch.measure("decrypt", key.decrypt, scores, pool)
        baseline_scores = watch.measure("baseline_server", baseline.score, baseline_query)
        baseline_read = baseline.decrypt(baseline_scores)
        error = max(error, float(np.abs(read - true).max()))
        baseline_error = max(baseline_error, float(np.abs(baseline_read - true).max()))
    steps = ("encrypt", "commit", "server_first", "server", "audit_first", "audit", "decrypt")
    on_server = watch.median("commit") + watch.median("server_first")
    return {
        "pool": pool,
        "cells": cells,
        "repetitions": repetitions,
        "ratio": {
            "server": round(watch.ratio("server", "baseline_server"), 5),
            "server_first": round(watch.ratio("server_first", "baseline_server"), 5),
        },
        "audit": {
            "same_bytes": same,
            "first_site": round(watch.median("audit_first") / on_server, 5),
            "further_site": round(watch.ratio("audit", "server"), 5),
            "bytes_round": len(committed),
            "bytes_site": len(query) + len(scores),
        },
        "bytes": {"up": len(query), "down": len(scores), "keys": 0},
        "error": {"max": error / span, "absolute": error, "range": span},
        "cpu_s": {step: round(watch.median(step), 6) for step in steps},
        "parameters": {
            "poly_modulus_degree": 4096,
            "coeff_modulus_bits": [56],
            "query_scale_bits": key.parameters.query_scale_bits,
            "matrix_scale_bits": key.parameters.matrix_scale_bits,
            "row_bound": key.parameters.row_bound,
        },
        "baseline": {
            "operation": f"mm in blocks of {BASELINE_BLOCK}",
            "poly_modulus_degree": BASELINE_DEGREE,
            "coeff_modulus_bits": BASELINE_COEFF_MODULUS_BITS,
            "cpu_s": {"server": round(watch.median("baseline_server"), 6)},
            "bytes": {
                "up": len(baseline_query),
                "down": sum(len(raw) for raw in baseline_scores),
                "keys": baseline.key_bytes,
            },
            "error": baseline_error / span,
        },
    }
