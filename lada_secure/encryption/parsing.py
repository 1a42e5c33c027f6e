"""Strict byte forms of polynomials: everything foreign passes here before native code sees it.

A ciphertext travels as bare coefficients, each `width` bytes, little endian, after a header of
4 magic bytes and the 32-byte digest of the parameters. There is no length, count, scale, flag or
compressed stream in it that a sender could get wrong: the exact total size follows from the
parameters, and each coefficient is checked to be below its prime. TenSEAL's own protobuf and
SEAL's own containers are written by us around the checked coefficients, in the worker process.

Reasons carried by the PeerErrors here: `wrong_length`, `wrong_format`, `wrong_parameters`,
`coefficient_range`, `transparent`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
    AggregationParameters,
    ScoringParameters,
)
from lada_secure.errors import LocalProtocolError, PeerError

Coefficients = npt.NDArray[np.uint64]

SEALED_MAGIC: Final = b"LSV1"
PUBLIC_KEY_MAGIC: Final = b"LPK1"
QUERY_MAGIC: Final = b"LSQ1"
SCORES_MAGIC: Final = b"LSS1"
MATRIX_MAGIC: Final = b"LSM1"
_NAMES: Final = {
    SEALED_MAGIC: "sealed vector",
    PUBLIC_KEY_MAGIC: "opening key",
    QUERY_MAGIC: "query",
    SCORES_MAGIC: "scores",
    MATRIX_MAGIC: "matrix",
}

# Copying three columns of 16 bits is faster than six of 8, and than rows of 6 bytes by far.
_COLUMN_TYPES: Final = {5: "u1", 6: "<u2", 7: "u1", 8: "<u8"}


def pack(coefficients: Coefficients, width: int) -> bytes:
    """Write each coefficient as `width` little-endian bytes; the inverse of `unpack`."""
    column = np.dtype(_COLUMN_TYPES[width])
    kept = width // column.itemsize
    flat = np.ascontiguousarray(coefficients, dtype="<u8").reshape(-1)
    wide = flat.view(column).reshape(flat.size, 8 // column.itemsize)
    narrow = np.empty((flat.size, kept), dtype=column)
    for index in range(kept):
        narrow[:, index] = wide[:, index]
    return narrow.tobytes()


def unpack(body: bytes | memoryview, width: int) -> Coefficients:
    """Read `width`-byte little-endian coefficients into a flat uint64 array."""
    column = np.dtype(_COLUMN_TYPES[width])
    kept = width // column.itemsize
    narrow = np.frombuffer(body, dtype=column).reshape(-1, kept)
    wide = np.zeros((narrow.shape[0], 8 // column.itemsize), dtype=column)
    for index in range(kept):
        wide[:, index] = narrow[:, index]
    return wide.view("<u8").reshape(-1)


def frame(magic: bytes, digest: str, *body: bytes | memoryview) -> bytes:
    """Put the header before a body of our own, given in parts."""
    return b"".join((magic, bytes.fromhex(digest), *body))


def unframe(raw: bytes, magic: bytes, digest: str, total_bytes: int) -> memoryview:
    """Check size, magic and parameter digest; return the body without copying it.

    Raises: PeerError: reasons wrong_length, wrong_format, wrong_parameters.
    """
    what = _NAMES[magic]
    if not isinstance(raw, bytes):
        raise LocalProtocolError(f"{what}: expected bytes, got {type(raw).__name__}")
    if len(raw) != total_bytes:
        raise PeerError(
            f"{what}: {len(raw)} bytes, expected exactly {total_bytes}", reason="wrong_length"
        )
    if raw[: len(magic)] != magic:
        raise PeerError(f"{what}: does not start with {magic!r}", reason="wrong_format")
    if not hmac.compare_digest(raw[len(magic) : HEADER_BYTES], bytes.fromhex(digest)):
        raise PeerError(
            f"{what}: made under other parameters than {digest[:16]}...; "
            "both sides must derive them from the same plan",
            reason="wrong_parameters",
        )
    return memoryview(raw)[HEADER_BYTES:]


def _polynomials(body: memoryview, width: int, modulus: int, what: str) -> Coefficients:
    """(n, N) coefficients, all of them reduced modulo their prime."""
    flat = unpack(body, width)
    if flat.size and int(flat.max()) >= modulus:
        raise PeerError(
            f"{what}: a coefficient is not below the modulus of {modulus.bit_length()} bits",
            reason="coefficient_range",
        )
    return flat.reshape(-1, POLY_MODULUS_DEGREE)


def sealed_chunks(raw: bytes, parameters: AggregationParameters) -> Iterator[Coefficients]:
    """The chunks of a sealed vector as (2, N) coefficients below q, each checked when it comes.

    Raises: PeerError: as `unframe`, coefficient_range; transparent: a second polynomial of zeros.
        Such a ciphertext is not encrypted at all, whoever holds it can read it without the key.
    """
    body = unframe(raw, SEALED_MAGIC, parameters.digest, parameters.sealed_bytes)
    size, width = parameters.chunk_bytes, parameters.coefficient_bytes
    for index in range(parameters.chunks):
        what = f"sealed vector, chunk {index}"
        part = body[index * size : (index + 1) * size]
        chunk = _polynomials(part, width, parameters.coeff_modulus, what)
        if not chunk[1].any():
            raise PeerError(f"{what}: is not encrypted", reason="transparent")
        yield chunk


def public_key_coefficients(raw: bytes, parameters: AggregationParameters) -> Coefficients:
    """Public aggregate key as (2, N) coefficients in NTT form.

    Raises: PeerError: anything but exactly that; a polynomial of zeros is refused, because a
        vector encrypted under it could be read by anyone.
    """
    body = unframe(raw, PUBLIC_KEY_MAGIC, parameters.digest, parameters.public_key_bytes)
    width, modulus = parameters.coefficient_bytes, parameters.coeff_modulus
    key = _polynomials(body, width, modulus, "opening key")
    if not key.any(axis=1).all():
        raise PeerError("opening key: a polynomial is zero", reason="transparent")
    return key


def query_parts(raw: bytes, parameters: ScoringParameters) -> tuple[Coefficients, memoryview]:
    """A query as (cells, N) coefficients below q, and one seed of 64 bytes per cell.

    Any seed is a legal one: it only names the uniform polynomial that SEAL's BLAKE2xb expands.
    """
    body = unframe(raw, QUERY_MAGIC, parameters.digest, parameters.query_bytes)
    width = SCORING_COEFFICIENT_BYTES
    seeds_at = parameters.cells * POLY_MODULUS_DEGREE * width
    return _polynomials(body[:seeds_at], width, SCORING_MODULUS, "query"), body[seeds_at:]


def scores_coefficients(raw: bytes, parameters: ScoringParameters, pool_size: int) -> Coefficients:
    """Encrypted scores as (blocks, 2, N) coefficients below q, in NTT form.

    A block of zeros is legal: it is what a block of pool samples without any feature gives.

    Raises: PeerError: as `unframe`, coefficient_range; transparent: a second polynomial of zeros
        under a first one that is not. No product with a query looks like that; whoever made it
        knows what it decrypts to.
    """
    body = unframe(raw, SCORES_MAGIC, parameters.digest, parameters.scores_bytes(pool_size))
    every = _polynomials(body, SCORING_COEFFICIENT_BYTES, SCORING_MODULUS, "scores")
    blocks = every.reshape(-1, 2, POLY_MODULUS_DEGREE)
    bare = np.flatnonzero(blocks[:, 0].any(axis=1) & ~blocks[:, 1].any(axis=1))
    if bare.size:
        raise PeerError(f"scores, block {bare[0]}: is not encrypted", reason="transparent")
    return blocks


def with_checksum(*parts: bytes) -> bytes:
    """A key of our own for our own disk; `without_checksum` reads it back."""
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def without_checksum(raw: bytes, magic: bytes) -> bytes | None:
    """What `with_checksum` was given; None where it is damaged or begins in another way."""
    body, checksum = raw[:-32], raw[-32:]
    intact = hmac.compare_digest(hashlib.sha256(body).digest(), checksum)
    return body if intact and raw.startswith(magic) else None
