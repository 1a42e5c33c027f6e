"""Blind scores: the coordinator multiplies its matrix by utilities it cannot read (CKKS).

A site sends one ciphertext per cell, its utility in every slot. Slot i of block b belongs to pool
sample 2048 b + i, so a score is one product and one addition per cell: no rotations, hence no
Galois keys, no relinearisation, no rescaling. Cheon, Kim, Kim, Song 2017, sections 3.3 and 3.4.

What the coordinator learns: nothing; the query is an RLWE encryption under a key it lacks.
What the site learns: its scores, and more if it wants to. CKKS has no circuit privacy. A score
carries about 20 bits of the sample's row, and a site that chooses its query for the purpose (say
powers of two as utilities) or studies the ciphertext itself can get up to the 56 bits per
coefficient that travel: enough to read a row with few possible values in one query. So a site
must be allowed one query per round (the caller's duty), and a coordinator should put into the
matrix only what it would tell a site about its own allocation. The fields that could hide more
(fresh encryptions of zero, noise flooding) cost precision and are not used.
"""

from __future__ import annotations

import secrets
from typing import Final

import numpy as np
import numpy.typing as npt

from lada_secure.encryption.frames import Part, numbers
from lada_secure.encryption.parameters import (
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
    ScoringParameters,
    scoring_parameters,
)
from lada_secure.encryption.parsing import SCORES_MAGIC, Coefficients, frame, query_parts
from lada_secure.encryption.worker import BLIND_WORKER, WorkerProcess
from lada_secure.errors import ParameterError

# Encoded blocks are kept for the next site up to this size; further ones are encoded again for
# each query, so memory does not grow with the pool.
CACHE_BYTES: Final = 64 << 20

_ENCODED_COLUMN_BYTES: Final = POLY_MODULUS_DEGREE * 8
_BLOCKS_PER_REQUEST: Final = 4


class PoolMatrix:
    """The coordinator's private matrix, pool samples by cells, ready to be scored.

    Owns a worker process; `close` ends it, as does leaving the `with` block.
    """

    def __init__(
        self,
        features: npt.NDArray[np.float64],
        *,
        row_bound: int | None = None,
        worker: WorkerProcess | None = None,
    ) -> None:
        """Args:
        features: (n, d) float64 in [0, 1]; kept by reference and not to be changed.
        row_bound: bound on the sum of a row, None for d; part of the parameters' digest.
        Raises: ParameterError: shape, NaN, an entry outside [0, 1], a row above its bound.
        """
        array = np.asarray(features, dtype=np.float64)
        if array.ndim != 2 or 0 in array.shape:
            raise ParameterError(f"pool features must have shape (n, d), got {array.shape}")
        self.parameters: Final[ScoringParameters] = scoring_parameters(
            cells=array.shape[1], row_bound=row_bound
        )
        self.pool_size: Final[int] = array.shape[0]
        self._blocks = self.parameters.blocks(self.pool_size)
        # NaN fails both comparisons, so it is refused as well.
        if not (array.min() >= 0.0 and array.max() <= 1.0):
            raise ParameterError("pool features must lie in [0, 1] and hold no NaN")
        largest = float(array.sum(axis=1).max())
        if largest > self.parameters.row_bound * (1 + 1e-9):
            raise ParameterError(
                f"a row of the pool features adds up to {largest:.6g}, its bound is "
                f"{self.parameters.row_bound}; a larger score would wrap"
            )
        self._features = array
        self._worker = worker or WorkerProcess(BLIND_WORKER)
        self._owns_worker = worker is None
        # Names this matrix towards a worker that may have seen another one.
        self._matrix_id = secrets.randbits(63)
        self._cache_blocks = CACHE_BYTES // (self.parameters.cells * _ENCODED_COLUMN_BYTES)
        self._cached: set[int] = set()
        self._cached_in = -1

    def score(self, query: bytes) -> bytes:
        """Encrypted scores of every pool sample for one site's query.

        Returns: exactly `parameters.scores_bytes(pool_size)` bytes, which only the site can read.
        Raises: PeerError: wrong_length, wrong_format, wrong_parameters, coefficient_range, or
            native_failure.
        """
        coefficients, seeds = query_parts(query, self.parameters)
        # Between loading a query and using it the worker must not be handed another one: a site
        # would get scores that another site's key opens.
        with self._worker.exclusive():
            return self._score(coefficients, seeds)

    def _score(self, coefficients: Coefficients, seeds: list[bytes]) -> bytes:
        cells = self.parameters.cells
        self._worker.call(
            "load_query",
            [
                numbers([SCORING_MODULUS, cells, self.parameters.query_scale_bits]),
                coefficients.tobytes(),
                b"".join(seeds),
            ],
            foreign="query",
        )
        generation = self._worker.generation
        if self._cached_in != generation:
            self._cached_in, self._cached = generation, set()
        replies: list[Part] = []
        for start in range(0, self._blocks, _BLOCKS_PER_REQUEST):
            blocks = range(start, min(start + _BLOCKS_PER_REQUEST, self._blocks))
            replies += self._score_blocks(list(blocks))
        return frame(SCORES_MAGIC, self.parameters.digest, *replies)

    def _score_blocks(self, blocks: list[int]) -> list[memoryview]:
        which = [
            self.parameters.cells,
            self.parameters.matrix_scale_bits,
            SCORING_COEFFICIENT_BYTES,
            self._matrix_id,
            self._cache_blocks,
            *blocks,
        ]
        rows = [b"" if block in self._cached else self._rows(block) for block in blocks]
        replies = self._worker.call("score", [numbers(which), *rows], foreign="query")
        self._cached.update(block for block in blocks if block < self._cache_blocks)
        return replies

    def _rows(self, block: int) -> bytes:
        slots = self.parameters.slots
        rows = np.zeros((slots, self.parameters.cells), dtype="<f8")
        part = self._features[block * slots : (block + 1) * slots]
        rows[: len(part)] = part
        return rows.tobytes()

    def close(self) -> None:
        """End the worker, if it is this matrix's own."""
        if self._owns_worker:
            self._worker.close()

    def __enter__(self) -> PoolMatrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PoolMatrix(pool_size={self.pool_size}, cells={self.parameters.cells})"
