"""The key under which a site hides its utilities and reads its scores. Sites only.

Decrypted scores are approximate, and the error tells about the key (Li and Micciancio 2021): they
must never leave the site, not even in part. What leaves is which samples were picked, masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import float_vector
from lada_secure.encryption.parameters import (
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
    ScoringParameters,
    scoring_parameters,
)
from lada_secure.encryption.parsing import (
    QUERY_MAGIC,
    frame,
    pack,
    scores_coefficients,
    with_checksum,
    without_checksum,
)
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

DECRYPTING_WORKER: Final = "lada_secure.encryption.decrypting_worker"

_MAGIC: Final = b"LCK1"
_SECRET_BYTES: Final = POLY_MODULUS_DEGREE * 8
_BLOCKS_PER_REQUEST: Final = 32
# Honest scores miss their true value by some 1e-5; a decryption that is off by more than this
# was not computed from the query under the agreed parameters.
_TOLERANCE: Final = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class ScoringKey:
    """A CKKS secret key; encryption is symmetric, so there is no public key to send.

    Fresh per round: it then protects one query, and reading an old one needs an old key.
    Never printed, never pickled.
    """

    parameters: ScoringParameters
    _secret: bytes = field(repr=False)

    @classmethod
    def generate(cls, cells: int, *, row_bound: int | None = None) -> ScoringKey:
        """A new key for queries of `cells` coordinates.

        Args: row_bound: the coordinator's bound on the sum of a row, None for cells.
        Raises: ParameterError: out of range.
        """
        parameters = scoring_parameters(cells=cells, row_bound=row_bound)
        worker = shared_worker(DECRYPTING_WORKER)
        return cls(parameters, *worker.call("scoring_generate", [SCORING_MODULUS]))

    def encrypt(self, utilities: npt.NDArray[np.float64]) -> bytes:
        """Encrypt the utilities of the cells: the query.

        Args: utilities: (cells,) float64 in [-1, 1].
        Returns: exactly `parameters.query_bytes` bytes; other bytes on each call, so keep them
            for a retry.
        Raises: ParameterError: shape, NaN, out of range.
        """
        params = self.parameters
        array = float_vector("utilities", utilities, length=params.cells, low=-1.0, high=1.0)
        which = [SCORING_MODULUS, params.query_scale_bits, SCORING_COEFFICIENT_BYTES]
        sealed = shared_worker(DECRYPTING_WORKER).call(
            "scoring_encrypt", which, self._secret, array.astype("<f8").tobytes()
        )
        return frame(QUERY_MAGIC, params.digest, *sealed)

    def decrypt(self, scores: bytes, pool_size: int) -> npt.NDArray[np.float64]:
        """Read the scores that a coordinator returned.

        Returns: (pool_size,) float64, |score| <= row_bound but for rounding. For this site's
            eyes only.
        Raises: PeerError: wrong_length, wrong_format, wrong_parameters, coefficient_range,
            native_failure; out_of_range: a score beyond its bound, or something in the slots
            behind the last sample.
        """
        params = self.parameters
        blocks = scores_coefficients(scores, params, pool_size)
        product_bits = params.query_scale_bits + params.matrix_scale_bits
        which = [SCORING_MODULUS, product_bits, SCORING_COEFFICIENT_BYTES]
        read, worker = b"", shared_worker(DECRYPTING_WORKER)
        for start in range(0, len(blocks), _BLOCKS_PER_REQUEST):
            packed = pack(blocks[start : start + _BLOCKS_PER_REQUEST], SCORING_COEFFICIENT_BYTES)
            read += worker.call("scoring_decrypt", which, self._secret, packed, foreign="scores")[0]
        every = np.frombuffer(read, dtype="<f8")
        # NaN fails every comparison, so it is refused as well.
        largest = np.abs(every[:pool_size]).max() <= params.row_bound + _TOLERANCE
        if not (largest and (np.abs(every[pool_size:]) <= _TOLERANCE).all()):
            raise PeerError(
                f"scores: a value is beyond {params.row_bound} or behind sample "
                f"{pool_size}; they were not computed from this query",
                reason="out_of_range",
            )
        return every[:pool_size].astype(np.float64)

    def to_bytes(self) -> bytes:
        """The key, for the site's own disk: a restart must be able to read the scores."""
        params = self.parameters
        sizes = params.cells.to_bytes(4, "big"), params.row_bound.to_bytes(4, "big")
        return with_checksum(_MAGIC, *sizes, self._secret)

    @classmethod
    def from_bytes(cls, raw: bytes) -> ScoringKey:
        """Read a key that `to_bytes` wrote. Raises: ParameterError: damaged or not one."""
        body = without_checksum(raw, _MAGIC)
        if body is None or len(body) != 12 + _SECRET_BYTES:
            raise ParameterError("scoring key file is damaged or is not one")
        cells, row_bound = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
        return cls(scoring_parameters(cells=cells, row_bound=row_bound), body[12:])

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a scoring key cannot be pickled; use to_bytes")
