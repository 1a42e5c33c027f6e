"""TenSEAL's SEAL interface behind plain arrays of coefficients; runs in worker processes only.

SEAL writes its objects as a header, then a zstd stream. We read that form only from objects that
SEAL has just written itself. In the other direction SEAL gets a container that we write without
compression, in which nothing but the coefficients is foreign, and these have been checked: no
foreign byte ever reaches a decompressor or a length field.

Formats: SEAL 4, `Ciphertext::save_members`, `Plaintext::save_members`, `DynArray::save_members`
and `UniformRandomGeneratorInfo::save_members`. Sizes are checked on each read, so another SEAL
with another layout is noticed, not misread.
"""

from __future__ import annotations

import os
import struct
from functools import cache
from typing import Any, Final

import numpy as np
import zstandard
from tenseal import sealapi

from lada_secure.encryption.parameters import POLY_MODULUS_DEGREE, SEED_BYTES
from lada_secure.encryption.parsing import Coefficients
from lada_secure.encryption.workers.frames import Part

_MAGIC: Final = 0xA15E
_HEADER: Final = struct.Struct("<HBBBBHQ")
_ZSTD: Final = 2
# parms_id, NTT flag, polynomials, N, primes, scale, correction factor (BGV only; 1).
_CIPHERTEXT: Final = struct.Struct("<4QBQQQdQ")
# parms_id, coefficients, scale.
_PLAINTEXT: Final = struct.Struct("<4QQd")
_COUNT: Final = struct.Struct("<Q")
# Kind of generator (1: BLAKE2xb), then its seed.
_SEED: Final = struct.Struct(f"<B{SEED_BYTES}s")
_BLAKE2XB: Final = 1


class NativeLayoutError(RuntimeError):
    """The installed TenSEAL writes objects in another form than this module knows."""


@cache
def _scratch() -> tuple[int, str]:
    """An anonymous file in memory and its path: the interface saves and loads through paths only.

    It never has a name in any file system, so nothing of a key is left behind.
    """
    descriptor = os.memfd_create("lada", os.MFD_CLOEXEC)
    return descriptor, f"/proc/self/fd/{descriptor}"


def _container(*body: Part) -> list[Part]:
    """A SEAL object without compression: header and body, uncopied."""
    version = sealapi.Serialization.SEALHeader()
    size = _HEADER.size + sum(memoryview(part).nbytes for part in body)
    kinds = version.version_major, version.version_minor, 0, 0
    return [_HEADER.pack(_MAGIC, _HEADER.size, *kinds, size), *body]


def _load(item: Any, context: Any, head: bytes, coefficients: Coefficients, *more: Part) -> Any:
    flat = np.ascontiguousarray(coefficients, dtype="<u8").reshape(-1)
    array = _container(_COUNT.pack(flat.size), flat.data)
    descriptor, path = _scratch()
    # A longer object may have left its tail behind; SEAL reads as far as the header says.
    os.pwritev(descriptor, _container(head, *array, *more), 0)
    item.load(context, path)
    return item


def _save(item: Any, head: struct.Struct, polynomials: int) -> tuple[Coefficients, bytes]:
    """(polynomials, N) coefficients of an object of ours, and what stands behind them."""
    descriptor, path = _scratch()
    item.save(path)
    saved = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    magic, _, _, _, compression, _, size = _HEADER.unpack_from(saved)
    if magic != _MAGIC or size != len(saved) or compression not in (0, _ZSTD):
        raise NativeLayoutError(f"unknown SEAL header {saved[: _HEADER.size].hex()}")
    body = saved[_HEADER.size :]
    if compression == _ZSTD:
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    count = polynomials * POLY_MODULUS_DEGREE
    start = head.size + _HEADER.size + _COUNT.size
    end = start + 8 * count
    if len(body) < end or _COUNT.unpack_from(body, start - _COUNT.size)[0] != count:
        raise NativeLayoutError(f"SEAL object of {len(body)} bytes, expected {count} coefficients")
    flat = np.frombuffer(body, dtype="<u8", count=count, offset=start)
    return flat.reshape(polynomials, POLY_MODULUS_DEGREE), body[end:]


def _alone(found: tuple[Coefficients, bytes], what: str) -> Coefficients:
    coefficients, rest = found
    if rest:
        raise NativeLayoutError(f"{len(rest)} unknown bytes behind a {what}")
    return coefficients


class Ring:
    """A parameter set of ours and the SEAL objects that belong to it."""

    def __init__(self, scheme: Any, prime: int, plain_modulus: int | None) -> None:
        chosen = sealapi.EncryptionParameters(scheme)
        chosen.set_poly_modulus_degree(POLY_MODULUS_DEGREE)
        chosen.set_coeff_modulus([sealapi.Modulus(prime)])
        if plain_modulus is not None:
            chosen.set_plain_modulus(plain_modulus)
        # SEAL itself refuses a set below 128 bits here.
        self.context = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ValueError(f"SEAL refuses the parameters: {self.context.parameters_error_name()}")
        self.evaluator = sealapi.Evaluator(self.context)

    def ciphertext(
        self, coefficients: Coefficients, *, ntt: bool, scale: float, seed: bytes = b""
    ) -> Any:
        """A SEAL ciphertext of two polynomials, from (2, N) coefficients.

        With a seed from (N,) coefficients: SEAL expands the second polynomial from it.
        """
        head = _head(self.context.first_parms_id(), ntt=ntt, scale=scale)
        info = _container(_SEED.pack(_BLAKE2XB, seed)) if seed else ()
        return _load(sealapi.Ciphertext(), self.context, head, coefficients, *info)

    def coefficients(self, ciphertext: Any) -> Coefficients:
        """(2, N) coefficients of a ciphertext of ours."""
        return _alone(_save(ciphertext, _CIPHERTEXT, 2), "ciphertext")

    def seeded_coefficients(self, serializable: Any) -> tuple[Coefficients, bytes]:
        """(1, N) coefficients and the seed of a fresh symmetric encryption."""
        coefficients, rest = _save(serializable, _CIPHERTEXT, 1)
        if len(rest) != _HEADER.size + _SEED.size:
            raise NativeLayoutError("a symmetric ciphertext does not end in a seed")
        kind, seed = _SEED.unpack_from(rest, _HEADER.size)
        if kind != _BLAKE2XB:
            raise NativeLayoutError(f"unknown generator {kind}")
        return coefficients, seed

    def public_key(self, coefficients: Coefficients) -> Any:
        """A SEAL public key from (2, N) coefficients in NTT form."""
        head = _head(self.context.key_parms_id(), ntt=True, scale=1.0)
        return _load(sealapi.PublicKey(), self.context, head, coefficients)

    def public_key_coefficients(self, key: Any) -> Coefficients:
        """(2, N) coefficients of a public key of ours."""
        return _alone(_save(key, _CIPHERTEXT, 2), "public key")

    def secret_key(self, coefficients: bytes) -> Any:
        """A SEAL secret key from (N,) coefficients in NTT form."""
        head = _PLAINTEXT.pack(*self.context.key_parms_id(), POLY_MODULUS_DEGREE, 1.0)
        key = np.frombuffer(coefficients, dtype="<u8")
        return _load(sealapi.SecretKey(), self.context, head, key)

    def secret_key_coefficients(self, key: Any) -> Coefficients:
        """(1, N) coefficients of a secret key of ours."""
        return _alone(_save(key, _PLAINTEXT, 1), "secret key")


def _head(parms_id: Any, *, ntt: bool, scale: float) -> bytes:
    return _CIPHERTEXT.pack(*parms_id, ntt, 2, POLY_MODULUS_DEGREE, 1, scale, 1)


@cache
def aggregation_ring(prime: int, plain_modulus: int) -> Ring:
    """BFV over one prime."""
    return Ring(sealapi.SCHEME_TYPE.BFV, prime, plain_modulus)


@cache
def scoring_ring(prime: int) -> Ring:
    """CKKS over one prime; symmetric encryption only."""
    return Ring(sealapi.SCHEME_TYPE.CKKS, prime, None)
