"""The key that opens a sum. The auditor imports this; a server never does.

What may be opened is the caller's decision (one sum per round and purpose, ever); this module
makes sure that what is opened is a vector in range, and says so where it is not.

One key should open few sums. BFV is not secure against an adversary who sees
decryptions of ciphertexts of its own making: a site or coordinator that adds a crafted ciphertext
and learns whether the attempt aborted gets about one bit on the secret key. A key per round, and a
new one after each aborted attempt, leaves nothing to collect.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    AggregationParameters,
    aggregation_parameters,
)
from lada_secure.encryption.parsing import PUBLIC_KEY_MAGIC, frame, pack
from lada_secure.encryption.sealing import CHUNKS_PER_REQUEST, check_sealed, parse_public_key
from lada_secure.encryption.workers.frames import Part, numbers
from lada_secure.encryption.workers.process import WorkerProcess, shared_worker
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

DECRYPTING_WORKER: Final = "lada_secure.encryption.decrypting_worker"

_MAGIC: Final = b"LOK1"
_SECRET_BYTES: Final = POLY_MODULUS_DEGREE * 8
_CHECKSUM_BYTES: Final = 32


class AggregateKey:
    """A BFV key pair for one parameter set. Never printed, never pickled."""

    __slots__ = ("_public", "_secret", "_worker", "parameters")

    def __init__(
        self,
        parameters: AggregationParameters,
        public: bytes,
        secret: bytes,
        worker: WorkerProcess | None,
    ) -> None:
        self.parameters = parameters
        self._public = public
        self._secret = secret
        self._worker = worker

    @classmethod
    def generate(
        cls, params: AggregationParameters, *, worker: WorkerProcess | None = None
    ) -> AggregateKey:
        """A new key pair from the operating system's generator (SEAL's BLAKE2xb, seeded by it)."""
        process = worker or shared_worker(DECRYPTING_WORKER)
        which = numbers([params.coeff_modulus, params.plain_modulus])
        raw_public, secret = process.call("aggregate_generate", [which])
        coefficients = np.frombuffer(raw_public, dtype="<u8")
        body = pack(coefficients, params.coefficient_bytes)
        return cls(params, frame(PUBLIC_KEY_MAGIC, params.digest, body), bytes(secret), worker)

    @property
    def public_bytes(self) -> bytes:
        """The public half, exactly `parameters.public_key_bytes` bytes, for `parse_public_key`."""
        return self._public

    def open(self, sealed: bytes) -> npt.NDArray[np.int64]:
        """Decrypt a sealed vector or a sum of them.

        Returns: (length,) int64, centred in (-t/2, t/2]. Meaningless where the masks inside do
            not cancel; `open_sum` tells.
        Raises: PeerError: as `check_sealed`; out_of_range: a slot behind the last entry is not
            zero, as it is at every honest site.
        """
        params = self.parameters
        check_sealed(sealed, params)
        which = numbers([params.coeff_modulus, params.plain_modulus, params.coefficient_bytes])
        process = self._worker or shared_worker(DECRYPTING_WORKER)
        opened: list[Part] = []
        step = CHUNKS_PER_REQUEST * params.chunk_bytes
        for start in range(HEADER_BYTES, len(sealed), step):
            part = memoryview(sealed)[start : start + step]
            opened += process.call("open", [which, self._secret, part], foreign="sealed sum")
        vector = np.frombuffer(b"".join(opened), dtype="<i8").astype(np.int64)
        if vector[params.length :].any():
            raise PeerError(
                f"opened sum: slots behind entry {params.length} are not zero; a contribution "
                "was made under other rules or corrupted, abort the attempt",
                reason="out_of_range",
            )
        return vector[: params.length]

    def open_sum(self, sealed: bytes, bound: int) -> npt.NDArray[np.int64]:
        """Decrypt a sum and refuse it unless every |entry| <= bound.

        Masks that do not cancel leave uniform entries, each inside the bound with probability
        below 2^-10; wrapped values and corrupted ciphertexts show the same way.

        Args: bound: proven bound on |entry|, 1 to `parameters.sum_bound`.
        Raises: PeerError: out_of_range, or as `open`. The vector is not part of the error: it
            may hold what was meant to stay masked. ParameterError: bound out of range.
        """
        if not 1 <= bound <= self.parameters.sum_bound:
            raise ParameterError(
                f"bound must be between 1 and {self.parameters.sum_bound}, got {bound}"
            )
        vector = self.open(sealed)
        outside = int(np.count_nonzero(np.abs(vector) > bound))
        if outside:
            raise PeerError(
                f"opened sum: {outside} of {vector.size} entries are outside the proven bound of "
                f"{bound}; masks do not cancel or a value wrapped, abort the attempt and make a "
                "new opening key",
                reason="out_of_range",
            )
        return vector

    def to_bytes(self) -> bytes:
        """Both halves, for the auditor's own disk; `from_bytes` reads them back."""
        body = b"".join(
            (
                _MAGIC,
                self.parameters.length.to_bytes(4, "big"),
                self.parameters.sum_bound.to_bytes(8, "big"),
                self._public,
                self._secret,
            )
        )
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, raw: bytes, *, worker: WorkerProcess | None = None) -> AggregateKey:
        """Read a key that `to_bytes` wrote.

        Raises: ParameterError: not such a file, damaged, or of a version with other parameters.
        """
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        intact = hmac.compare_digest(hashlib.sha256(body).digest(), checksum)
        if not raw.startswith(_MAGIC) or not intact:
            raise ParameterError("opening key file is damaged or is not one; restore a copy")
        params = aggregation_parameters(
            length=int.from_bytes(body[4:8], "big"), sum_bound=int.from_bytes(body[8:16], "big")
        )
        public, secret = body[16:-_SECRET_BYTES], body[-_SECRET_BYTES:]
        try:
            parse_public_key(public, params)
        except PeerError as error:
            raise ParameterError(f"opening key file of another version: {error}") from error
        return cls(params, public, secret, worker)

    def __repr__(self) -> str:
        return f"OpeningKey(parameters={self.parameters.digest[:16]}, secret)"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("an opening key cannot be pickled; use to_bytes")
