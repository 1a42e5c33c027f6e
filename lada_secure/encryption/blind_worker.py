"""Worker that encrypts and multiplies; it cannot decrypt. Entry: `python -m` with a byte limit.

Operations (numbers, then byte strings; replies are byte strings):

seal: (q, t, width), public key coefficients (2, N) u64, entries u64 in whole chunks
    -> per chunk its packed coefficients.
load_query: (q, cells, query scale bits), coefficients (cells, N) u64, seeds -> nothing.
held: (matrix id) -> numbers of the blocks that are encoded here of this matrix.
score: (cells, matrix scale bits, width, matrix id, cache blocks, block, ...), then per
    block its rows (2048, cells) f64, or nothing where the worker has the block encoded
    -> per block packed coefficients.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from tenseal import sealapi

from lada_secure.encryption.native import Ring, aggregation_ring, scoring_ring
from lada_secure.encryption.parameters import POLY_MODULUS_DEGREE, SEED_BYTES
from lada_secure.encryption.parsing import pack
from lada_secure.encryption.workers.frames import Part, numbers
from lada_secure.encryption.workers.loop import run


@lru_cache(maxsize=8)
def _encryptor(prime: int, plain_modulus: int, key: bytes) -> tuple[Ring, Any, Any]:
    ring = aggregation_ring(prime, plain_modulus)
    coefficients = np.frombuffer(key, dtype="<u8").reshape(2, POLY_MODULUS_DEGREE)
    encryptor = sealapi.Encryptor(ring.context, ring.public_key(coefficients))
    return ring, sealapi.BatchEncoder(ring.context), encryptor


def _seal(which: list[int], key: bytes, entries: bytes) -> list[Part]:
    prime, plain_modulus, width = which
    ring, encoder, encryptor = _encryptor(prime, plain_modulus, key)
    plain, encrypted = sealapi.Plaintext(), sealapi.Ciphertext()
    sealed: list[Part] = []
    for chunk in np.frombuffer(entries, dtype="<u8").reshape(-1, POLY_MODULUS_DEGREE):
        encoder.encode(chunk.tolist(), plain)
        encryptor.encrypt(plain, encrypted)
        sealed.append(pack(ring.coefficients(encrypted), width))
    return sealed


class _Scorer:
    """Multiplies encrypted queries by plaintext blocks; keeps the blocks encoded."""

    def __init__(self) -> None:
        self._ring: Ring | None = None
        self._query: list[Any] = []
        self._matrix_id = -1
        self._encoded: dict[int, list[tuple[int, Any]]] = {}

    def load_query(self, which: list[int], coefficients: bytes, seeds: bytes) -> list[Part]:
        prime, cells, scale_bits = which
        ring = self._ring = scoring_ring(prime)
        scale = 2.0**scale_bits
        rows = np.frombuffer(coefficients, dtype="<u8").reshape(cells, POLY_MODULUS_DEGREE)
        self._query = [
            ring.ciphertext(row, ntt=True, scale=scale, seed=seeds[at : at + SEED_BYTES])
            for row, at in zip(rows, range(0, len(seeds), SEED_BYTES), strict=True)
        ]
        return []

    def held(self, which: list[int]) -> list[Part]:
        (matrix_id,) = which
        return [numbers(list(self._encoded) if matrix_id == self._matrix_id else [])]

    def score(self, which: list[int], *rows: bytes) -> list[Part]:
        cells, scale_bits, width, matrix_id, cache_blocks, *blocks = which
        ring = self._ring
        if ring is None or len(self._query) != cells:
            raise RuntimeError("no query is loaded")
        if matrix_id != self._matrix_id:
            self._matrix_id, self._encoded = matrix_id, {}
        encoder = sealapi.CKKSEncoder(ring.context)
        replies: list[Part] = []
        for block, raw in zip(blocks, rows, strict=True):
            columns = self._encoded.get(block)
            if columns is None:
                matrix = np.frombuffer(raw, dtype="<f8").reshape(-1, cells)
                columns = _encode(encoder, matrix, 2.0**scale_bits)
                if block < cache_blocks:
                    self._encoded[block] = columns
            replies.append(pack(self._product(ring, columns), width))
        return replies

    def _product(self, ring: Ring, columns: list[tuple[int, Any]]) -> Any:
        if not columns:
            # SEAL refuses products with nothing but zeros; zero is what they are.
            return np.zeros((2, POLY_MODULUS_DEGREE), dtype=np.uint64)
        total = sealapi.Ciphertext()
        (cell, plain), *others = columns
        ring.evaluator.multiply_plain(self._query[cell], plain, total)
        term = sealapi.Ciphertext()
        for cell, plain in others:
            ring.evaluator.multiply_plain(self._query[cell], plain, term)
            ring.evaluator.add_inplace(total, term)
        return ring.coefficients(total)


def _encode(encoder: Any, matrix: Any, scale: float) -> list[tuple[int, Any]]:
    columns = []
    for cell in range(matrix.shape[1]):
        column = matrix[:, cell]
        if not column.any():
            continue
        plain = sealapi.Plaintext()
        encoder.encode(column.tolist(), scale, plain)
        # Entries may vanish at this scale; SEAL refuses to multiply by a plaintext of zeros.
        if not plain.is_zero():
            columns.append((cell, plain))
    return columns


if __name__ == "__main__":
    scorer = _Scorer()
    run(
        {
            "seal": _seal,
            "load_query": scorer.load_query,
            "held": scorer.held,
            "score": scorer.score,
        }
    )
