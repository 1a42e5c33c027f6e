"""Blind scores: the coordinator multiplies its matrix by utilities it cannot read (CKKS).

A site sends one ciphertext per cell, its utility in every slot. Slot i of block b belongs to pool
sample 2048 b + i, so a score is one product and one addition per cell: no rotations, hence no
Galois keys, no relinearisation, no rescaling. Cheon, Kim, Kim, Song 2017, sections 3.3 and 3.4.

Scores are a function of query and matrix, bit by bit: sums of products of polynomials modulo a
prime, without any randomness. So an auditor that has both computes them again (`matrix`).

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

from lada_secure.encryption.matrix import EncodedMatrix
from lada_secure.encryption.parameters import (
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
    ScoringParameters,
)
from lada_secure.encryption.parsing import SCORES_MAGIC, frame, query_parts
from lada_secure.encryption.workers.frames import Part, read_numbers
from lada_secure.encryption.workers.process import WorkerProcess, shared_worker

# Encoded blocks are kept for the next site up to this size; further ones are encoded again for
# each query, so memory does not grow with the pool.
CACHE_BYTES: Final = 64 << 20

_ENCODED_COLUMN_BYTES: Final = POLY_MODULUS_DEGREE * 8
_BLOCKS_PER_REQUEST: Final = 4


class PoolMatrix:
    """A committed matrix, pool samples by cells, ready to be scored.

    The coordinator answers queries with it, and the auditor computes the same bytes again.

    Args: worker: keeps the encoded matrix; None means the one that this process shares.
    """

    def __init__(self, matrix: EncodedMatrix, *, worker: WorkerProcess | None = None) -> None:
        self.parameters: Final[ScoringParameters] = matrix.parameters
        self._matrix = matrix
        self._worker = worker or shared_worker()
        # Names this matrix towards a worker that may have seen another one.
        self._matrix_id = secrets.randbits(63)
        self._cache_blocks = CACHE_BYTES // (self.parameters.cells * _ENCODED_COLUMN_BYTES)

    def score(self, query: bytes) -> bytes:
        """Encrypted scores of every pool sample for one site's query.

        Returns: exactly `parameters.scores_bytes(pool_size)` bytes, which only the site can read.
        Raises: PeerError: wrong_length, wrong_format, wrong_parameters, coefficient_range, or
            native_failure.
        """
        params, worker = self.parameters, self._worker
        coefficients, seeds = query_parts(query, params)
        which = [SCORING_MODULUS, params.cells, params.query_scale_bits]
        product = [params.cells, params.matrix_scale_bits, SCORING_COEFFICIENT_BYTES]
        product += [self._matrix_id, self._cache_blocks]
        replies: list[Part] = []
        # Between loading a query and using it the worker must not be handed another one: a site
        # would get scores that another site's key opens.
        with worker.lock:
            worker.call("load_query", which, coefficients.tobytes(), seeds, foreign="query")
            (raw,) = worker.call("held", [self._matrix_id])
            held = frozenset(read_numbers(raw))
            every = range(params.blocks(self._matrix.pool_size))
            for start in range(0, len(every), _BLOCKS_PER_REQUEST):
                blocks = every[start : start + _BLOCKS_PER_REQUEST]
                rows = [b"" if one in held else self._matrix.rows(one).tobytes() for one in blocks]
                replies += worker.call("score", [*product, *blocks], *rows, foreign="query")
        return frame(SCORES_MAGIC, params.digest, *replies)
