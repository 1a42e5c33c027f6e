"""Pairwise masks modulo the plaintext modulus: they add up to zero over the roster.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
section 4, without the self-mask and the secret sharing: a site that drops out ends the attempt,
and the survivors start a new one with fresh keys over the same noised vectors.

One mask per pair: X25519 gives the shared secret, HKDF-SHA256 binds it to everything that names
this use of it, ChaCha20 (RFC 8439 block function, counter from 0, nonce 0) expands it, and
rejection sampling makes every entry uniform in [0, t). Of a pair, the site whose id sorts first
adds the mask and the other subtracts it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lada_secure.arrays import whole_vector
from lada_secure.encryption.parameters import MAX_LENGTH, MAX_SITES
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError
from lada_secure.ranges import within

PUBLIC_KEY_BYTES: Final = 32
MAX_MODULUS_BITS: Final = 48

_DOMAIN: Final = b"lada/2/pairwise-mask"
_ID: Final = re.compile(r"[a-z0-9-]{1,32}\Z")
_MAX_CONTEXT_BYTES: Final = 1 << 16
_BLOCK_WORDS: Final = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class MaskKey:
    """A site's X25519 key for one round, attempt and purpose.

    Fresh per attempt: two masks under one key and context would reveal the difference of two
    vectors. The caller must not use one key for two contributions; the context keeps two
    purposes apart even so. Never printed, never pickled; Python cannot wipe it from memory.
    """

    _private: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> MaskKey:
        """A new key from the operating system's generator."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_secret_bytes(cls, raw: bytes) -> MaskKey:
        """Read back what `to_secret_bytes` wrote. Raises: ParameterError: not 32 bytes."""
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ParameterError(f"mask key: {len(raw)} bytes, expected {PUBLIC_KEY_BYTES}")
        return cls(X25519PrivateKey.from_private_bytes(raw))

    def to_secret_bytes(self) -> bytes:
        """The private key, for the site's own disk: a restart must send the same bytes."""
        return self._private.private_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 raw bytes (RFC 7748)."""
        return self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_id: str, public: bytes) -> bytes:
        """X25519 with a peer's public key. Raises: PeerError (bad_mask_key)."""
        if len(public) != PUBLIC_KEY_BYTES:
            raise _bad_key(peer_id, f": {len(public)} bytes, expected {PUBLIC_KEY_BYTES}")
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            # A point of small order: the "shared" secret would be zero for every peer.
            raise _bad_key(peer_id, ": not a usable X25519 key") from error

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a mask key cannot be pickled")


def pairwise_mask(
    own: MaskKey,
    own_id: str,
    peers: Mapping[str, bytes],
    *,
    context: bytes,
    length: int,
    modulus: int,
) -> npt.NDArray[np.uint64]:
    """This site's mask: the signed sum over all peers, modulo t.

    Args:
        own_id: this site's id; `peers` maps every *other* site of the roster to its 32 bytes.
        context: names this use: study, plan hash, roster hash, round, attempt, purpose. The
            caller must encode it without ambiguity (canonical JSON does).
        length: entries. modulus: t.
    Returns: (length,) uint64 in [0, t).
    Guarantees: uniform modulo t and independent of this site's vector for everyone who lacks
        the private key of this site and that of at least one peer; over all sites of the roster
        the masks add up to 0 modulo t.
    Raises: PeerError (bad_mask_key): a peer's key is malformed, of small order, or shared by two
        names. ParameterError: no peer, own id among the peers, numbers out of range.
    """
    _check(own_id, peers, context=context, length=length, modulus=modulus)
    own_public = own.public_bytes
    seen = {own_public: own_id}
    total = np.zeros(length, dtype=np.int64)
    for peer_id in sorted(peers):
        public = bytes(peers[peer_id])
        # One key under two names is one party that pretends to be two.
        if public in seen:
            raise _bad_key(peer_id, f" equals that of {seen[public]}")
        seen[public] = peer_id
        secret = own.shared_secret(peer_id, public)
        low, high = sorted(((own_id.encode(), own_public), (peer_id.encode(), public)))
        key = _mask_key(secret, (context, *low, *high), length, modulus)
        # At most MAX_SITES terms below 2^48: the sum stays inside int64.
        _accumulate(total, key, modulus, add=own_id < peer_id)
    return np.mod(total, modulus).astype(np.uint64)


def masked(
    values: npt.NDArray[np.integer], mask: npt.NDArray[np.uint64], *, bound: int, modulus: int
) -> npt.NDArray[np.uint64]:
    """Check a site's vector against its declared bound and hide it under its mask.

    Args:
        values: (length,) any integer dtype, |entry| <= bound. mask: (length,) in [0, t).
        bound: this site's own bound; its share of the bound of the sum. modulus: t.
    Returns: (length,) uint64, (values + mask) mod t.
    Raises: ParameterError: not one-dimensional, not integers (NaN and infinity are no
        integers), out of bound, or of another length than the mask. Nothing is clipped here: a
        vector beyond its bound was made wrongly, and what was paid for it does not cover it.
    """
    if not 1 <= bound < modulus // 2:
        raise ParameterError(f"bound must be between 1 and half of {modulus}, got {bound}")
    array = whole_vector("vector", values, low=-bound, high=bound, length=mask.size)
    shifted = array + mask.astype(np.int64)
    return np.mod(shifted, modulus).astype(np.uint64)


def _check(
    own_id: str, peers: Mapping[str, bytes], *, context: bytes, length: int, modulus: int
) -> None:
    within(1, MAX_LENGTH, length=length)
    within(2, 2**MAX_MODULUS_BITS - 1, modulus=modulus)
    within(1, _MAX_CONTEXT_BYTES, context_bytes=len(context))
    if not 1 <= len(peers) < MAX_SITES:
        raise ParameterError(
            f"a mask needs 1 to {MAX_SITES - 1} other sites, got {len(peers)}; "
            "alone a site would send its vector without any mask"
        )
    if own_id in peers:
        raise ParameterError(f"own id {own_id} is among the peers")
    for name in (own_id, *peers):
        if not _ID.match(name):
            raise ParameterError(f"id {name!r} does not match [a-z0-9-]{{1,32}}")


def _bad_key(peer_id: str, fault: str) -> PeerError:
    return PeerError(f"mask key of {peer_id}{fault}", reason="bad_mask_key", peer=peer_id)


def _mask_key(secret: bytes, fields: tuple[bytes, ...], length: int, modulus: int) -> bytes:
    # Each field carries its own length, so no two different contexts give one string. Both
    # public keys are inside: a key swapped on the way gives masks that do not cancel.
    info = _DOMAIN + length.to_bytes(8, "big") + modulus.to_bytes(8, "big")
    info += b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


def _accumulate(total: npt.NDArray[np.int64], key: bytes, modulus: int, *, add: bool) -> None:
    """Add or subtract one pair's mask, in place.

    The mask is the first `total.size` accepted words of the key stream. Words are 4 bytes where
    t fits 32 bits, else 8, little endian, cut to the bits of t - 1; a word is accepted if it is
    below t. That is uniform, while a remainder would favour small values.
    """
    # The key is used for this one stream, so the nonce may be constant.
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    bits = (modulus - 1).bit_length()
    word = np.dtype("<u4") if bits <= 32 else np.dtype("<u8")
    signed = np.dtype("<u4") if bits <= 32 else np.dtype("<i8")
    cut = word.type((1 << bits) - 1)
    zeros = bytes(_BLOCK_WORDS * word.itemsize)
    done = 0
    while done < total.size:
        # A block fits the processor's cache; which words are used does not depend on its size.
        words = np.bitwise_and(np.frombuffer(stream.update(zeros), dtype=word), cut)
        accepted = words[words < modulus][: total.size - done].view(signed)
        part = total[done : done + accepted.size]
        (np.add if add else np.subtract)(part, accepted, out=part)
        done += accepted.size
