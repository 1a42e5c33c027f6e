"""Encrypting, checking and adding masked vectors (BFV); nothing here can decrypt.

Property: a sealed vector tells nobody but the holder of the aggregate key anything, and it tells
that holder no more than the masked vector inside. BFV (Fan and Vercauteren 2012) through
TenSEAL's SEAL interface.

Addition needs no native library at all: the sum of two BFV ciphertexts is the sum of their
coefficients modulo q, and that is how it is computed, over checked integers. The result equals
SEAL's `Evaluator::add` bit for bit (a test compares them), and a coordinator has no native code
for a hostile ciphertext to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import index_vector
from lada_secure.encryption.parameters import MAX_SITES, POLY_MODULUS_DEGREE, AggregationParameters
from lada_secure.encryption.parsing import (
    SEALED_MAGIC,
    frame,
    pack,
    public_key_coefficients,
    sealed_chunks,
)
from lada_secure.encryption.workers.frames import Part
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import ParameterError, PeerError

# Chunks per request to the worker: bounds memory on both sides and keeps the time limit
# independent of the length of the vector.
CHUNKS_PER_REQUEST: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKey:
    """An aggregate key's public half that passed every check; made by `parse_public_key` only.

    Attributes:
        parameters: derived by us, never taken from the peer.
        coefficients: (2, N) uint64 as bytes.
    """

    parameters: AggregationParameters
    coefficients: bytes


def parse_public_key(raw: bytes, params: AggregationParameters) -> SealingKey:
    """Parse the auditor's public key strictly against our own parameters.

    The caller must have checked who signed it: any well-formed key encrypts.
    Raises: PeerError: wrong_length, wrong_format, wrong_parameters, coefficient_range,
        transparent.
    """
    coefficients = public_key_coefficients(raw, params)
    return SealingKey(parameters=params, coefficients=coefficients.tobytes())


def seal(key: SealingKey, params: AggregationParameters, values: npt.NDArray[np.integer]) -> bytes:
    """Encrypt a masked vector, chunk by chunk.

    Args: key: parsed under the same parameters. values: (length,) integers in [0, t), from
        `masks.masked`.
    Returns: exactly `params.sealed_bytes` bytes.
    Raises: ParameterError: wrong length, not integers, outside [0, t), key of other parameters.
    """
    if key.parameters != params:
        raise ParameterError("sealing key was parsed under other parameters than the vector's")
    array = index_vector("masked vector", values, below=params.plain_modulus, length=params.length)
    # Slots behind the last entry hold zero at every site; the opener checks that they do.
    padded = np.zeros(params.chunks * POLY_MODULUS_DEGREE, dtype="<u8")
    padded[: params.length] = array
    which = [params.coeff_modulus, params.plain_modulus, params.coefficient_bytes]
    sealed: list[Part] = []
    step = CHUNKS_PER_REQUEST * POLY_MODULUS_DEGREE
    for start in range(0, padded.size, step):
        entries = padded[start : start + step].tobytes()
        sealed += shared_worker().call(
            "seal", which, key.coefficients, entries, foreign="opening key"
        )
    return frame(SEALED_MAGIC, params.digest, *sealed)


def check_sealed(raw: bytes, params: AggregationParameters) -> None:
    """Raise unless `raw` is a well-formed sealed vector under exactly these parameters.

    Raises: PeerError: wrong_length, wrong_format, wrong_parameters, coefficient_range,
        transparent.
    """
    for _ in sealed_chunks(raw, params):
        pass


class SealedSum:
    """A running sum of sealed vectors; memory stays at two vectors whatever their number.

    A refused contribution leaves the sum unchanged. The sum is the same for every order of the same
    vectors, so whoever has the contributions can recompute it.
    """

    __slots__ = ("_count", "_params", "_total")

    def __init__(self, params: AggregationParameters) -> None:
        self._params = params
        self._count = 0
        self._total = np.zeros((params.chunks, 2, POLY_MODULUS_DEGREE), dtype=np.uint64)

    def add(self, raw: bytes) -> None:
        """Check one sealed vector and add it.

        Raises: PeerError: as `check_sealed`. ParameterError: more than MAX_SITES vectors, for
            which the parameters do not promise an exact sum.
        """
        if self._count >= MAX_SITES:
            raise ParameterError(f"at most {MAX_SITES} sealed vectors can be added exactly")
        chunks = list(sealed_chunks(raw, self._params))
        modulus = np.uint64(self._params.coeff_modulus)
        for total, chunk in zip(self._total, chunks, strict=True):
            # Both are below q < 2^60, so the sum fits; where it is below q already, the
            # subtraction wraps around to something larger and the minimum keeps the sum.
            total += chunk
            np.minimum(total, total - modulus, out=total)
        self._count += 1

    def to_bytes(self) -> bytes:
        """The sum in the form of a sealed vector.

        Raises: ParameterError: nothing was added. PeerError (transparent): the contributions
            cancel to something that is not encrypted, which honest ones cannot.
        """
        if self._count == 0:
            raise ParameterError("the sum of no sealed vectors is undefined")
        if not self._total[:, 1].any(axis=1).all():
            raise PeerError("sum of sealed vectors is not encrypted", reason="transparent")
        body = pack(self._total, self._params.coefficient_bytes)
        return frame(SEALED_MAGIC, self._params.digest, body)
