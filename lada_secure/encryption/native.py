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
import numpy.typing as npt
import zstandard
from tenseal import sealapi

from lada_secure.encryption.parameters import POLY_MODULUS_DEGREE, SEED_BYTES
from lada_secure.encryption.workers.frames import Part

Coefficients = npt.NDArray[np.uint64]

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


class _Scratch:
    """An anonymous file in memory: the interface saves and loads through paths only.

    It never has a name in any file system, so nothing of a key is left behind.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("lada", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def save(self, item: Any) -> bytes:
        item.save(self.path)
        size = os.fstat(self._descriptor).st_size
        return _body(os.pread(self._descriptor, size, 0))

    def load(self, item: Any, context: Any, *body: Part) -> None:
        # A longer object may have left its tail behind; SEAL reads as far as the header says.
        os.pwritev(self._descriptor, _container(*body), 0)
        item.load(context, self.path)


@cache
def scratch() -> _Scratch:
    """The process's scratch file."""
    return _Scratch()


@cache
def _version() -> tuple[int, int]:
    header = sealapi.Serialization.SEALHeader()
    return int(header.version_major), int(header.version_minor)


def _container(*body: Part) -> list[Part]:
    """A SEAL object without compression: header and body, uncopied."""
    major, minor = _version()
    size = _HEADER.size + sum(memoryview(part).nbytes for part in body)
    return [_HEADER.pack(_MAGIC, _HEADER.size, major, minor, 0, 0, size), *body]


def _body(saved: bytes) -> bytes:
    magic, _, _, _, compression, _, size = _HEADER.unpack_from(saved)
    if magic != _MAGIC or size != len(saved) or compression not in (0, _ZSTD):
        raise NativeLayoutError(f"unknown SEAL header {saved[: _HEADER.size].hex()}")
    if compression == 0:
        return saved[_HEADER.size :]
    return zstandard.ZstdDecompressor().decompressobj().decompress(saved[_HEADER.size :])


def _array(body: bytes, offset: int, count: int) -> tuple[Coefficients, int]:
    """Read a DynArray of `count` words at `offset`; return it and the offset behind it."""
    start = offset + _HEADER.size + _COUNT.size
    end = start + 8 * count
    if len(body) < end or _COUNT.unpack_from(body, start - _COUNT.size)[0] != count:
        raise NativeLayoutError(f"SEAL object of {len(body)} bytes, expected {count} coefficients")
    return np.frombuffer(body, dtype="<u8", count=count, offset=start), end


def _array_parts(coefficients: Coefficients) -> list[Part]:
    flat = np.ascontiguousarray(coefficients, dtype="<u8").reshape(-1)
    return _container(_COUNT.pack(flat.size), flat.data)


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

    def ciphertext(self, coefficients: Coefficients, *, ntt: bool, scale: float) -> Any:
        """A SEAL ciphertext of two polynomials, from (2, N) coefficients."""
        head = _CIPHERTEXT.pack(
            *self.context.first_parms_id(), ntt, 2, POLY_MODULUS_DEGREE, 1, scale, 1
        )
        item = sealapi.Ciphertext()
        scratch().load(item, self.context, head, *_array_parts(coefficients))
        return item

    def seeded_ciphertext(self, coefficients: Coefficients, seed: bytes, *, scale: float) -> Any:
        """A SEAL ciphertext whose second polynomial SEAL expands from a seed."""
        head = _CIPHERTEXT.pack(
            *self.context.first_parms_id(), True, 2, POLY_MODULUS_DEGREE, 1, scale, 1
        )
        info = _container(_SEED.pack(_BLAKE2XB, seed))
        item = sealapi.Ciphertext()
        scratch().load(item, self.context, head, *_array_parts(coefficients), *info)
        return item

    def coefficients(self, ciphertext: Any) -> Coefficients:
        """(2, N) coefficients of a ciphertext of ours."""
        body = scratch().save(ciphertext)
        flat, end = _array(body, _CIPHERTEXT.size, 2 * POLY_MODULUS_DEGREE)
        if end != len(body):
            raise NativeLayoutError(f"{len(body) - end} unknown bytes behind a ciphertext")
        return flat.reshape(2, POLY_MODULUS_DEGREE)

    def seeded_coefficients(self, serializable: Any) -> tuple[Coefficients, bytes]:
        """(N,) coefficients and the seed of a fresh symmetric encryption."""
        body = scratch().save(serializable)
        flat, end = _array(body, _CIPHERTEXT.size, POLY_MODULUS_DEGREE)
        if len(body) != end + _HEADER.size + _SEED.size:
            raise NativeLayoutError("a symmetric ciphertext does not end in a seed")
        kind, seed = _SEED.unpack_from(body, end + _HEADER.size)
        if kind != _BLAKE2XB:
            raise NativeLayoutError(f"unknown generator {kind}")
        return flat, seed

    def public_key(self, coefficients: Coefficients) -> Any:
        """A SEAL public key from (2, N) coefficients in NTT form."""
        head = _CIPHERTEXT.pack(
            *self.context.key_parms_id(), True, 2, POLY_MODULUS_DEGREE, 1, 1.0, 1
        )
        item = sealapi.PublicKey()
        scratch().load(item, self.context, head, *_array_parts(coefficients))
        return item

    def public_key_coefficients(self, key: Any) -> Coefficients:
        """(2, N) coefficients of a public key of ours."""
        body = scratch().save(key)
        flat, end = _array(body, _CIPHERTEXT.size, 2 * POLY_MODULUS_DEGREE)
        if end != len(body):
            raise NativeLayoutError(f"{len(body) - end} unknown bytes behind a public key")
        return flat.reshape(2, POLY_MODULUS_DEGREE)

    def secret_key(self, coefficients: Coefficients) -> Any:
        """A SEAL secret key from (N,) coefficients in NTT form."""
        head = _PLAINTEXT.pack(*self.context.key_parms_id(), POLY_MODULUS_DEGREE, 1.0)
        item = sealapi.SecretKey()
        scratch().load(item, self.context, head, *_array_parts(coefficients))
        return item

    def secret_key_coefficients(self, key: Any) -> Coefficients:
        """(N,) coefficients of a secret key of ours."""
        body = scratch().save(key)
        flat, end = _array(body, _PLAINTEXT.size, POLY_MODULUS_DEGREE)
        if end != len(body):
            raise NativeLayoutError(f"{len(body) - end} unknown bytes behind a secret key")
        return flat


@cache
def aggregation_ring(prime: int, plain_modulus: int) -> Ring:
    """BFV over one prime."""
    return Ring(sealapi.SCHEME_TYPE.BFV, prime, plain_modulus)


@cache
def scoring_ring(prime: int) -> Ring:
    """CKKS over one prime; symmetric encryption only."""
    return Ring(sealapi.SCHEME_TYPE.CKKS, prime, None)
