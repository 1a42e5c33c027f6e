"""An auditor's signature over the head of a site's ledger, so that a cut tail shows.

A chain proves that nothing in the middle was changed, not that nothing is missing at the end.
Whoever holds a countersignature over entry n can tell a ledger that no longer has entry n, or
has another one in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.canonical import Json, canonical_json, parse_canonical_json
from lada_secure.errors import LedgerError, PeerError
from lada_secure.privacy.entries import LedgerEntry, LedgerIdentity, load_public_key
from lada_secure.privacy.fields import HEX_64, HEX_128, NAME, Fields, check_name, format_time
from lada_secure.privacy.ledger import LedgerHead

VERSION = 1
MAX_BYTES = 4096
SIGNATURE_DOMAIN = b"lada/countersignature/1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Countersignature:
    """`auditor` has seen the ledger of `site` up to entry `index`, whose hash is `entry_hash`.

    `index` is -1 and `entry_hash` the genesis hash where the ledger was still empty. `time` is
    the auditor's clock, UTC. `signature` is Ed25519, hex.
    """

    auditor: str
    site: str
    population: str
    index: int
    entry_hash: str
    time: str
    signature: str

    def _unsigned(self) -> dict[str, Json]:
        return {
            "version": VERSION,
            "auditor": self.auditor,
            "site": self.site,
            "population": self.population,
            "length": self.index + 1,
            "entry_hash": self.entry_hash,
            "time": self.time,
        }

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return SIGNATURE_DOMAIN + canonical_json(self._unsigned())

    def to_bytes(self) -> bytes:
        """The one byte form: canonical JSON."""
        return canonical_json({**self._unsigned(), "signature": self.signature})


def countersign(
    head: LedgerHead, *, auditor: str, signing_key: Ed25519PrivateKey, time: datetime
) -> Countersignature:
    """Sign a head. The caller has verified the ledger up to it first.

    Raises: ParameterError: wrong name, or a time without a zone.
    """
    bare = Countersignature(
        auditor=check_name("auditor", auditor),
        site=head.site,
        population=head.population,
        index=head.index,
        entry_hash=head.entry_hash,
        time=format_time(time),
        signature="",
    )
    return replace(bare, signature=signing_key.sign(bare.signed_bytes()).hex())


def parse_countersignature(raw: bytes) -> Countersignature:
    """Read the byte form; the signature is not checked here. Raises: LedgerError."""
    where = "countersignature"
    try:
        value = parse_canonical_json(raw, max_bytes=MAX_BYTES)
    except PeerError as error:
        raise LedgerError(f"{where}: {error}") from error
    fields = Fields(value, where=where)
    if fields.integer("version") != VERSION:
        raise LedgerError(f"{where}: version: this software reads version {VERSION}")
    parsed = Countersignature(
        auditor=fields.matching("auditor", NAME),
        site=fields.matching("site", NAME),
        population=fields.matching("population", NAME),
        index=fields.integer("length") - 1,
        entry_hash=fields.matching("entry_hash", HEX_64),
        time=fields.time("time"),
        signature=fields.matching("signature", HEX_128),
    )
    fields.done()
    if parsed.to_bytes() != raw:
        raise LedgerError(f"{where}: not the one spelling of this countersignature")
    return parsed


def check_countersignature(countersignature: Countersignature, *, auditor_key: bytes) -> None:
    """Check the auditor's signature. Raises: LedgerError: it is somebody else's or was changed."""
    try:
        load_public_key(auditor_key).verify(
            bytes.fromhex(countersignature.signature), countersignature.signed_bytes()
        )
    except (InvalidSignature, ValueError) as error:
        raise LedgerError(
            f"countersignature of entry {countersignature.index}: the signature is not the "
            "auditor's over it"
        ) from error


def check_against_ledger(
    countersignature: Countersignature,
    *,
    identity: LedgerIdentity,
    entries: Sequence[LedgerEntry],
) -> None:
    """Refuse a ledger that does not contain what the auditor has seen.

    Raises: LedgerError: of another ledger, the tail was cut, or history was rewritten.
    """
    if (countersignature.site, countersignature.population) != (
        identity.site,
        identity.population,
    ):
        raise LedgerError(
            f"countersignature: it is for site {countersignature.site!r}, population "
            f"{countersignature.population!r}, not {identity.site!r}, {identity.population!r}"
        )
    index = countersignature.index
    if index >= len(entries):
        raise LedgerError(
            f"entry {len(entries)}: missing; the auditor has countersigned entries up to "
            f"{index}, but the ledger ends at {len(entries) - 1}: its tail was cut off"
        )
    here = identity.genesis_hash if index < 0 else entries[index].entry_hash
    if here != countersignature.entry_hash:
        raise LedgerError(
            f"entry {max(index, 0)}: it is not the one that the auditor countersigned; history "
            "was rewritten or forked at or before it"
        )
