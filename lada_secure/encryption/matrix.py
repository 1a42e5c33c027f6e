"""The coordinator's private matrix as integers: the one form that it commits to for a round.

Whoever holds these integers and a query computes the same scores, bit by bit, on any machine:
what is left is integer arithmetic modulo a prime. Rows of floats would not do. Encoding them goes
through a Fourier transform in binary64 with an error of some 1e-10 before it is rounded, so two
processors would once in thousands of rounds disagree on one coefficient of millions, and an
auditor that compares bytes would accuse an honest coordinator.

Slot i of block b belongs to pool sample 2048 b + i. One column of a block is a polynomial

    c_0 + sum over k of c_k (X^k - X^(N-k)),  0 < k < N/2,

whose value at exp(pi i m / N) for odd m is c_0 + 2 sum c_k cos(pi m k / N): real, so that there
is no polynomial of this form which is not some column, and a discrete cosine transform in both
directions. Slot i is the point m = 3^i (Cheon, Kim, Kim, Song 2017, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.fft import dct

from lada_secure.arrays import FloatArray, float_matrix
from lada_secure.encryption.parameters import (
    POLY_MODULUS_DEGREE,
    ScoringParameters,
    scoring_parameters,
)
from lada_secure.encryption.parsing import MATRIX_MAGIC, frame, unframe
from lada_secure.errors import ParameterError, PeerError

# What rounding to integers may add to a row, as a share of the row bound. With row bound 1 this
# is half of what a site forgives a score, so no score of an accepted matrix is out of range.
ROUNDING_SHARE: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedMatrix:
    """A matrix in its committed form; made by `encode_matrix` and `parse_matrix` only.

    columns: (blocks, cells, 2048) int32, coefficients c_0 to c_2047 of each column of a block.
    """

    parameters: ScoringParameters
    pool_size: int
    columns: npt.NDArray[np.int32] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Exactly `parameters.matrix_bytes(pool_size)` bytes; each matrix has one spelling."""
        return frame(MATRIX_MAGIC, self.parameters.digest, self.columns.astype("<i4").tobytes())

    def rows(self, block: int) -> FloatArray:
        """The values of a block, (2048, cells) float64, as close as float64 comes to them.

        SEAL's encoder rounds them to the same integers again: they are off by less than 1e-6 then.
        """
        scale = 2.0**self.parameters.matrix_scale_bits
        points = dct(self.columns[block].astype(np.float64), type=3, axis=1) / scale
        values: FloatArray = points[:, _points()].T
        return np.ascontiguousarray(values)


def encode_matrix(
    features: npt.NDArray[np.float64], *, row_bound: int | None = None
) -> EncodedMatrix:
    """Round a matrix to the form that is committed to.

    Args:
        features: (n, d) float64 in [0, 1], pool samples by cells.
        row_bound: bound on the sum of a row, None for d; part of the parameters' digest.
    Raises: ParameterError: shape, NaN, an entry outside [0, 1], a row above its bound.
    """
    array = float_matrix("pool features", features, low=0.0, high=1.0)
    pool_size, cells = array.shape
    parameters = scoring_parameters(cells=cells, row_bound=row_bound)
    largest = float(array.sum(axis=1).max(initial=0.0))
    if largest > parameters.row_bound * (1 + 1e-9):
        raise ParameterError(
            f"a row of the pool features adds up to {largest:.6g}, its bound is "
            f"{parameters.row_bound}; a larger score would wrap"
        )
    slots, scale = parameters.slots, 2.0**parameters.matrix_scale_bits
    columns = np.empty((parameters.blocks(pool_size), cells, slots), dtype=np.int32)
    for block, column in enumerate(columns):
        part = array[block * slots : (block + 1) * slots]
        points = np.zeros((cells, slots))
        points[:, _points()[: len(part)]] = part.T
        column[:] = np.rint(dct(points, type=2, axis=1) * (scale / (2 * slots)))
    return EncodedMatrix(parameters=parameters, pool_size=pool_size, columns=columns)


def parse_matrix(raw: bytes, parameters: ScoringParameters, pool_size: int) -> EncodedMatrix:
    """Read a matrix that another party has committed to.

    Guarantees: every score of a sample, for utilities in [-1, 1], is within the row bound but for
        `ROUNDING_SHARE` of it, and so is what lies behind the last sample within that of zero.
    Raises: PeerError: wrong_length, wrong_format, wrong_parameters; out_of_range: an entry
        outside [0, 1], a row above its bound, an entry behind the last sample.
    """
    body = unframe(raw, MATRIX_MAGIC, parameters.digest, parameters.matrix_bytes(pool_size))
    shape = (parameters.blocks(pool_size), parameters.cells, parameters.slots)
    columns = np.frombuffer(body, dtype="<i4").reshape(shape).astype(np.int32, copy=False)
    matrix = EncodedMatrix(parameters=parameters, pool_size=pool_size, columns=columns)
    for block in range(len(columns)):
        _check_block(matrix, block)
    return matrix


def _check_block(matrix: EncodedMatrix, block: int) -> None:
    parameters = matrix.parameters
    bound, slack = parameters.row_bound, ROUNDING_SHARE * parameters.row_bound
    rows = matrix.rows(block)
    samples = min(parameters.slots, matrix.pool_size - block * parameters.slots)
    # Absolute values: a row of large entries of both signs has a small sum and a large score.
    largest = np.abs(rows).sum(axis=1)
    inside = (
        rows.min() >= -slack
        and rows.max() <= 1.0 + slack
        and largest[:samples].max() <= bound + slack
        and (samples == parameters.slots or largest[samples:].max() <= slack)
    )
    if not inside:
        raise PeerError(
            f"matrix, block {block}: an entry is outside [0, 1], a row adds up to more than "
            f"{bound}, or something stands behind sample {matrix.pool_size}",
            reason="out_of_range",
        )


@cache
def _points() -> npt.NDArray[np.int64]:
    """(2048,) for each slot the place of its point among the odd m = 1, 3, .., N - 1.

    3^i and its negative modulo 2 N are conjugate points, where real columns have the same value.
    """
    found, power = [], 1
    for _ in range(POLY_MODULUS_DEGREE // 2):
        found.append((min(power, 2 * POLY_MODULUS_DEGREE - power) - 1) // 2)
        power = power * 3 % (2 * POLY_MODULUS_DEGREE)
    return np.array(found, dtype=np.int64)
