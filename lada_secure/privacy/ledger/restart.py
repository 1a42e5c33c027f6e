"""The one way back from a ledger that is lost for good: two people confirm what it had cost.

The site's person asks and creates the new ledger, the auditor's person grants it. The grant is
the auditor's signature over both ledgers and over everything that is carried from one to the
other; it stands in the new ledger's first entry, so every later reader sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, Field, TypeAdapter

from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.events import EventField, PrivacyEvent
from lada_secure.privacy.accounting.fields import (
    Count,
    Digest,
    Name,
    Number,
    SignedRecord,
    check_signed,
    public_hex,
    read_record,
)
from lada_secure.privacy.ledger.times import Time

MAX_GRANT_BYTES = 48 * 1024
MAX_STUDIES = 200


def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    if list(names) != sorted(set(names)):
        raise ValueError("expected different names, sorted")
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartGrant(SignedRecord):
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

    domain: ClassVar[bytes] = b"lada/ledger-restart/2/"

    version: Literal[2] = 2
    site: Name
    population: Name
    ledger_id: Digest
    public_key: Digest
    previous_ledger_id: Digest
    previous_index: Count
    previous_hash: Digest
    carried: EventField | None
    studies: Annotated[tuple[Name, ...], Field(max_length=MAX_STUDIES), AfterValidator(_in_order)]
    target_delta: Annotated[float, Field(ge=1e-10, le=0.5)]
    carried_epsilon: Number
    requested_by: Name
    auditor: Name
    auditor_key: Digest
    granted_by: Name
    time: Time

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """What is carried over: one event or none."""
        return () if self.carried is None else (self.carried,)

    def signed(self, key: Ed25519PrivateKey) -> Self:
        """The grant with a signature in place of whatever stood there.

        Args: key: the auditor's; `auditor_key` becomes its public half.
        """
        named = replace(self, auditor_key=public_hex(key))
        return replace(named, signature=key.sign(named.signed_bytes()).hex())


def _consistent(grant: RestartGrant) -> RestartGrant:
    if (grant.carried is None) != (not grant.studies):
        raise ValueError("studies: expected those, and only those, that spent `carried`")
    if grant.ledger_id == grant.previous_ledger_id:
        raise ValueError("ledger_id: the new ledger has the lost one's")
    return grant


# A grant as it stands in a restart entry.
GrantField = Annotated[RestartGrant, AfterValidator(_consistent)]
_GRANT: Final = TypeAdapter[RestartGrant](GrantField)


def parse_grant(raw: bytes) -> RestartGrant:
    """Read the byte form; the signature is not checked here. Raises: LedgerError."""
    return read_record(_GRANT, raw, max_bytes=MAX_GRANT_BYTES, where="restart grant")


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
