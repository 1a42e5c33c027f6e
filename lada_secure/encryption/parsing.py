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

import hmac
from typing import Final

import numpy as np
import numpy.typing as npt

from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
    SEED_BYTES,
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


def unframe(raw: bytes, *, magic: bytes, digest: str, total_bytes: int, what: str) -> memoryview:
    """Check size, magic and parameter digest; return the body without copying it.

    Raises: PeerError: reasons wrong_length, wrong_format, wrong_parameters.
    """
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


def checked(coefficients: Coefficients, modulus: int, what: str) -> Coefficients:
    """Return the coefficients, or raise if one is not reduced modulo its prime."""
    if coefficients.size and int(coefficients.max()) >= modulus:
        raise PeerError(
            f"{what}: a coefficient is not below the modulus of {modulus.bit_length()} bits",
            reason="coefficient_range",
        )
    return coefficients


def sealed_body(raw: bytes, parameters: AggregationParameters) -> memoryview:
    """Check the header of a sealed vector; coefficients are checked chunk by chunk."""
    return unframe(
        raw,
        magic=SEALED_MAGIC,
        digest=parameters.digest,
        total_bytes=parameters.sealed_bytes,
        what="sealed vector",
    )


def sealed_chunk(body: memoryview, index: int, parameters: AggregationParameters) -> Coefficients:
    """Chunk `index` of a sealed vector as (2, N) coefficients below q.

    Raises: PeerError: a coefficient out of range, or a second polynomial of zeros: such a
        ciphertext is not encrypted at all, whoever holds it can read it without the key.
    """
    size = parameters.chunk_bytes
    what = f"sealed vector, chunk {index}"
    flat = unpack(body[index * size : (index + 1) * size], parameters.coefficient_bytes)
    both = checked(flat, parameters.coeff_modulus, what).reshape(2, POLY_MODULUS_DEGREE)
    if not both[1].any():
        raise PeerError(f"{what}: is not encrypted", reason="transparent")
    return both


def public_key_coefficients(raw: bytes, parameters: AggregationParameters) -> Coefficients:
    """Public aggregate key as (2, N) coefficients in NTT form.

    Raises: PeerError: anything but exactly that; a polynomial of zeros is refused, because a
        vector encrypted under it could be read by anyone.
    """
    body = unframe(
        raw,
        magic=PUBLIC_KEY_MAGIC,
        digest=parameters.digest,
        total_bytes=parameters.public_key_bytes,
        what="opening key",
    )
    flat = unpack(body, parameters.coefficient_bytes)
    key = checked(flat, parameters.coeff_modulus, "opening key").reshape(2, POLY_MODULUS_DEGREE)
    if not key.any(axis=1).all():
        raise PeerError("opening key: a polynomial is zero", reason="transparent")
    return key


def query_parts(raw: bytes, parameters: ScoringParameters) -> tuple[Coefficients, list[bytes]]:
    """A query as (cells, N) coefficients below q and one seed of 64 bytes per cell.

    Any seed is a legal one: it only names the uniform polynomial that SEAL's BLAKE2xb expands.
    """
    body = unframe(
        raw,
        magic=QUERY_MAGIC,
        digest=parameters.digest,
        total_bytes=parameters.query_bytes,
        what="query",
    )
    seeds_at = parameters.cells * POLY_MODULUS_DEGREE * SCORING_COEFFICIENT_BYTES
    flat = unpack(body[:seeds_at], SCORING_COEFFICIENT_BYTES)
    coefficients = checked(flat, SCORING_MODULUS, "query")
    seeds = bytes(body[seeds_at:])
    return (
        coefficients.reshape(parameters.cells, POLY_MODULUS_DEGREE),
        [seeds[at : at + SEED_BYTES] for at in range(0, len(seeds), SEED_BYTES)],
    )


def scores_coefficients(raw: bytes, parameters: ScoringParameters, pool_size: int) -> Coefficients:
    """Encrypted scores as (blocks, 2, N) coefficients below q, in NTT form.

    A block of zeros is legal: it is what a block of pool samples without any feature gives.

    Raises: PeerError: as `unframe`, coefficient_range; transparent: a second polynomial of zeros
        under a first one that is not. No product with a query looks like that; whoever made it
        knows what it decrypts to.
    """
    body = unframe(
        raw,
        magic=SCORES_MAGIC,
        digest=parameters.digest,
        total_bytes=parameters.scores_bytes(pool_size),
        what="scores",
    )
    flat = unpack(body, SCORING_COEFFICIENT_BYTES)
    blocks = checked(flat, SCORING_MODULUS, "scores").reshape(-1, 2, POLY_MODULUS_DEGREE)
    bare = np.flatnonzero(blocks[:, 0].any(axis=1) & ~blocks[:, 1].any(axis=1))
    if bare.size:
        raise PeerError(f"scores, block {bare[0]}: is not encrypted", reason="transparent")
    return blocks
