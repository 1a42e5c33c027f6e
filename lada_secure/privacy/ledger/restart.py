"""The one way back from a ledger that is lost for good: two people confirm what it had cost.

The site's person asks and creates the new ledger, the auditor's person grants it. The grant is
the auditor's signature over both ledgers and over everything that is carried from one to the
other; it stands in the new ledger's first entry, so every later reader sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.canonical import Json, canonical_json, parse_canonical_json
from lada_secure.errors import LedgerError, PeerError
from lada_secure.privacy.accounting.events import PrivacyEvent, parse_event
from lada_secure.privacy.accounting.fields import (
    Count,
    Digest,
    Name,
    Number,
    Signature,
    check_signed,
    forms_of,
    names,
    number,
    public_hex,
    read_fields,
    version,
    written_fields,
)
from lada_secure.privacy.ledger.times import Time

VERSION = 2
MAX_GRANT_BYTES = 48 * 1024
MAX_STUDIES = 200
SIGNATURE_DOMAIN = b"lada/ledger-restart/2/"


def _carried(value: Json) -> PrivacyEvent | None:
    return None if value is None else parse_event(value, where="carried")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartGrant:
    """`auditor` lets `site` begin the ledger `ledger_id` in place of a lost one.

    Attributes:
        site, population: whose ledger it is, before and after.
        ledger_id: of the new ledger. public_key: the site's Ed25519 key that begins it, hex.
        previous_ledger_id, previous_index, previous_hash: the lost ledger, and the last entry
            that is known of it.
        carried: everything that was reserved in the lost ledger, as far as known, as one event;
            None if nothing was. Counted in every later total.
        studies: who had spent it, sorted. Each of them has `carried` counted against its own cap
            too, which is never too little.
        target_delta, carried_epsilon: what `carried` costs.
        requested_by: the person at the site. granted_by: the person at the auditor.
        auditor, auditor_key: the party that grants, and its Ed25519 key, hex.
        time: the auditor's clock, UTC. signature: Ed25519 by `auditor_key`, hex.
    """

    site: Name
    population: Name
    ledger_id: Digest
    public_key: Digest
    previous_ledger_id: Digest
    previous_index: Count
    previous_hash: Digest
    carried: Annotated[PrivacyEvent | None, _carried]
    studies: Annotated[tuple[str, ...], names(MAX_STUDIES)]
    target_delta: Annotated[float, number(low=1e-10, high=0.5)]
    carried_epsilon: Number
    requested_by: Name
    auditor: Name
    auditor_key: Digest
    granted_by: Name
    time: Time
    signature: Signature

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """What is carried over: one event or none."""
        return () if self.carried is None else (self.carried,)

    def to_json(self) -> dict[str, Json]:
        """The grant as it stands in a restart entry."""
        return {"version": VERSION, **written_fields(self)}

    def to_bytes(self) -> bytes:
        """The one byte form: canonical JSON."""
        return canonical_json(self.to_json())

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        content = self.to_json()
        del content["signature"]
        return SIGNATURE_DOMAIN + canonical_json(content)

    def signed(self, key: Ed25519PrivateKey) -> Self:
        """The grant with a signature in place of whatever stood there.

        Args: key: the auditor's; `auditor_key` becomes its public half.
        """
        named = replace(self, auditor_key=public_hex(key))
        return replace(named, signature=key.sign(named.signed_bytes()).hex())


_FORMS: Final = {"version": (version(VERSION),), **forms_of(RestartGrant)}


def parse_grant(raw: bytes) -> RestartGrant:
    """Read the byte form; the signature is not checked here. Raises: LedgerError."""
    where = "restart grant"
    try:
        value = parse_canonical_json(raw, max_bytes=MAX_GRANT_BYTES)
    except PeerError as error:
        raise LedgerError(f"{where}: {error}") from error
    grant = grant_from_json(value, where=where)
    if grant.to_bytes() != raw:
        raise LedgerError(f"{where}: not the one spelling of this grant")
    return grant


def grant_from_json(value: Json, *, where: str) -> RestartGrant:
    """Read the JSON form; the signature is not checked here. Raises: LedgerError."""
    found = read_fields(value, _FORMS, where=where)
    del found["version"]
    grant = RestartGrant(**found)
    if (grant.carried is None) != (not grant.studies):
        raise LedgerError(f"{where}: studies: expected those, and only those, that spent `carried`")
    if grant.ledger_id == grant.previous_ledger_id:
        raise LedgerError(f"{where}: ledger_id: the new ledger has the lost one's")
    return grant


def check_grant(grant: RestartGrant, *, where: str, auditor_key: bytes | None = None) -> None:
    """Check a grant's signature, and whose it is where the caller knows the auditor.

    Args: auditor_key: the auditor's Ed25519 key, 32 raw bytes, from its certificate; None: any.
    Raises: LedgerError: signed by another key, or changed afterwards.
    """
    if auditor_key is not None and bytes.fromhex(grant.auditor_key) != auditor_key:
        raise LedgerError(
            f"{where}: the restart was granted by {grant.auditor} with the key "
            f"{grant.auditor_key[:12]}..., not by the auditor's key {auditor_key.hex()[:12]}...; "
            "ask that auditor"
        )
    check_signed(
        grant.signed_bytes(),
        grant.signature,
        by=grant.auditor_key,
        fault=f"{where}: the grant's signature is not the auditor's over this restart",
    )
