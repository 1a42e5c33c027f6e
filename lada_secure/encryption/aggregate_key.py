"""The key that opens a sum. The auditor imports this; a server never does.

What may be opened is the caller's decision (one sum per round and purpose, ever); this module
makes sure that what is opened is a vector in range, and says so where it is not.

One key should open few sums. BFV is not secure against an adversary who sees
decryptions of ciphertexts of its own making: a site or coordinator that adds a crafted ciphertext
and learns whether the attempt aborted gets about one bit on the secret key. A key per round, and a
new one after each aborted attempt, leaves nothing to collect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    AggregationParameters,
    aggregation_parameters,
)
from lada_secure.encryption.parsing import (
    PUBLIC_KEY_MAGIC,
    frame,
    pack,
    with_checksum,
    without_checksum,
)
from lada_secure.encryption.sealing import CHUNKS_PER_REQUEST, check_sealed, parse_public_key
from lada_secure.encryption.workers.frames import Part
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

DECRYPTING_WORKER: Final = "lada_secure.encryption.decrypting_worker"

_MAGIC: Final = b"LOK1"
_SECRET_BYTES: Final = POLY_MODULUS_DEGREE * 8


@dataclass(frozen=True, slots=True, eq=False)
class AggregateKey:
    """A BFV key pair for one parameter set. Never printed, never pickled.

    public_bytes: exactly `parameters.public_key_bytes` bytes, for `parse_public_key`.
    """

    parameters: AggregationParameters
    public_bytes: bytes = field(repr=False)
    _secret: bytes = field(repr=False)

    @classmethod
    def generate(cls, params: AggregationParameters) -> AggregateKey:
        """A new key pair from the operating system's generator (SEAL's BLAKE2xb, seeded by it)."""
        which = [params.coeff_modulus, params.plain_modulus]
        public, secret = shared_worker(DECRYPTING_WORKER).call("aggregate_generate", which)
        body = pack(np.frombuffer(public, dtype="<u8"), params.coefficient_bytes)
        return cls(params, frame(PUBLIC_KEY_MAGIC, params.digest, body), secret)

    def open(self, sealed: bytes) -> npt.NDArray[np.int64]:
        """Decrypt a sealed vector or a sum of them.

        Returns: (length,) int64, centred in (-t/2, t/2]. Meaningless where the masks inside do
            not cancel; `open_sum` tells.
        Raises: PeerError: as `check_sealed`; out_of_range: a slot behind the last entry is not
            zero, as it is at every honest site.
        """
        params = self.parameters
        check_sealed(sealed, params)
        which = [params.coeff_modulus, params.plain_modulus, params.coefficient_bytes]
        worker = shared_worker(DECRYPTING_WORKER)
        opened: list[Part] = []
        step = CHUNKS_PER_REQUEST * params.chunk_bytes
        for start in range(HEADER_BYTES, len(sealed), step):
            part = memoryview(sealed)[start : start + step]
            opened += worker.call("open", which, self._secret, part, foreign="sealed sum")
        vector = np.frombuffer(b"".join(opened), dtype="<i8").astype(np.int64)
        if vector[params.length :].any():
            raise PeerError(
                f"opened sum: slots behind entry {params.length} are not zero; a contribution "
                "was made under other rules or corrupted, abort the attempt",
                reason="out_of_range",
            )
        return vector[: params.length]

    def open_sum(self, sealed: bytes) -> npt.NDArray[np.int64]:
        """Decrypt a sum and refuse it unless every |entry| <= `parameters.sum_bound`.

        Masks that do not cancel leave uniform entries, each inside the bound with probability
        below 2^-10; wrapped values and corrupted ciphertexts show the same way.

        Raises: PeerError: out_of_range, or as `open`. The vector is not part of the error: it
            may hold what was meant to stay masked.
        """
        vector, bound = self.open(sealed), self.parameters.sum_bound
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
        params = self.parameters
        sizes = params.length.to_bytes(4, "big"), params.sum_bound.to_bytes(8, "big")
        return with_checksum(_MAGIC, *sizes, self.public_bytes, self._secret)

    @classmethod
    def from_bytes(cls, raw: bytes) -> AggregateKey:
        """Read a key that `to_bytes` wrote.

        Raises: ParameterError: not such a file, damaged, or of a version with other parameters.
        """
        body = without_checksum(raw, _MAGIC)
        if body is None:
            raise ParameterError("opening key file is damaged or is not one; restore a copy")
        length, sum_bound = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:16], "big")
        params = aggregation_parameters(length=length, sum_bound=sum_bound)
        public, secret = body[16:-_SECRET_BYTES], body[-_SECRET_BYTES:]
        try:
            parse_public_key(public, params)
        except PeerError as error:
            raise ParameterError(f"opening key file of another version: {error}") from error
        return cls(params, public, secret)

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("an opening key cannot be pickled; use to_bytes")
