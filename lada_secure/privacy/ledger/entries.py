"""Ledger entries: their canonical JSON form, hash chain and signatures.

The hash of an entry is the SHA-256 of its line, signature included, so every byte of a ledger is
covered by the next entry's `previous_hash` and by its own signature. `ledger_lines` reads them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.accounting.fields import check_hash, check_name
from lada_secure.privacy.ledger.restart import RestartGrant

VERSION = 2
ADJACENCY = "add_or_remove_one_unit"
MAX_STATEMENT = 2000  # escaped, at most 24 kB of a line
SIGNATURE_DOMAIN = b"lada/ledger/2/"
NEW_KEY_DOMAIN = b"lada/ledger-key/2/"
OUTPUT_DOMAIN = b"lada/ledger-output/2/"
SALT_BYTES = 32

Decision: TypeAlias = Literal["approve", "refuse", "withdraw"]
DECISIONS: tuple[Decision, ...] = ("approve", "refuse", "withdraw")
# Numbers, and as text only which noise was added.
MechanismParameters: TypeAlias = "Mapping[str, float | str]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKey:
    """What a release is for. One key has at most one committed output, ever.

    `chunk` numbers the parts of a purpose that is released in several (training steps).
    """

    study_id: str
    round_id: int
    purpose: str
    chunk: int = 0

    def __str__(self) -> str:
        return f"study {self.study_id}, round {self.round_id}, {self.purpose}, chunk {self.chunk}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerIdentity:
    """Which ledger it is. Bound into the first link, so entries cannot move between ledgers.

    `population` names the people whose records are protected, not the job: every study over the
    same people shares one ledger and one budget. `ledger_id` is random, 64 hex digits: a ledger
    that was begun again is another one, whatever its site, population and key. The key is not
    part of it, because a ledger outlives keys.
    """

    site: str
    population: str
    ledger_id: str

    def __post_init__(self) -> None:
        check_name("site", self.site)
        check_name("population", self.population)
        check_hash("ledger_id", self.ledger_id)

    @classmethod
    def new(cls, *, site: str, population: str) -> Self:
        """The identity of a ledger that begins now."""
        return cls(site=site, population=population, ledger_id=new_ledger_id())

    @property
    def genesis_hash(self) -> str:
        """`previous_hash` of the first entry."""
        return sha256_hex(
            canonical_json(
                {
                    "ledger_version": VERSION,
                    "population": self.population,
                    "site": self.site,
                    "ledger_id": self.ledger_id,
                }
            )
        )


def new_ledger_id() -> str:
    """32 random bytes in hexadecimal."""
    return secrets.token_hex(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What all entries share. `time` is UTC text in whole seconds; `signature` is hex.

    The signature is the site's, by the key that is in force before the entry; the first entry
    names its own.
    """

    kind: ClassVar[str] = ""

    index: int
    previous_hash: str
    site: str
    population: str
    time: str
    signature: str

    def body(self) -> dict[str, Json]:
        """The fields of this kind of entry."""
        raise NotImplementedError

    def unsigned(self) -> dict[str, Json]:
        """Everything but the signature."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "index": self.index,
            "previous_hash": self.previous_hash,
            "site": self.site,
            "population": self.population,
            "time": self.time,
            **self.body(),
        }

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return SIGNATURE_DOMAIN + canonical_json(self.unsigned())

    def line(self) -> bytes:
        """The entry's one byte form, without a line feed."""
        return canonical_json({**self.unsigned(), "signature": self.signature})

    @property
    def entry_hash(self) -> str:
        """SHA-256 of the line."""
        return sha256_hex(self.line())


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEntry(LedgerEntry):
    """The first entry of a ledger of people for whom nothing was spent before."""

    kind: ClassVar[str] = "start"

    ledger_id: str
    public_key: str

    def body(self) -> dict[str, Json]:
        """The fields of a start."""
        return {"ledger_id": self.ledger_id, "public_key": self.public_key}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartEntry(LedgerEntry):
    """The first entry of a ledger in place of a lost one, with the auditor's grant."""

    kind: ClassVar[str] = "restart"

    grant: RestartGrant

    @property
    def ledger_id(self) -> str:
        """The new ledger's."""
        return self.grant.ledger_id

    @property
    def public_key(self) -> str:
        """The site's, hex; the grant is for this key."""
        return self.grant.public_key

    def body(self) -> dict[str, Json]:
        """The fields of a restart."""
        return {"grant": self.grant.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry(LedgerEntry):
    """The site's key is renewed: the old one signs the entry, the new one agrees to follow.

    `new_signature` is over everything but both signatures; `signature` covers it too.
    """

    kind: ClassVar[str] = "key"

    new_public_key: str
    decided_by: str
    new_signature: str

    def body(self) -> dict[str, Json]:
        """The fields of a key's renewal."""
        return {
            "new_public_key": self.new_public_key,
            "decided_by": self.decided_by,
            "new_signature": self.new_signature,
        }

    def new_signed_bytes(self) -> bytes:
        """What the new key signs."""
        content = self.unsigned()
        del content["new_signature"]
        return NEW_KEY_DOMAIN + canonical_json(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEntry(LedgerEntry):
    """What entries about a study share."""

    study_id: str
    plan_hash: str

    def unsigned(self) -> dict[str, Json]:
        """Everything but the signature."""
        # Not super(): a dataclass with slots is another class than the one that `super` knows.
        common = LedgerEntry.unsigned(self)
        return {**common, "study_id": self.study_id, "plan_hash": self.plan_hash}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEntry(StudyEntry):
    """The site approves, refuses or withdraws from a study plan.

    `expires` is when the plan ends; nothing is released under it afterwards.
    """

    kind: ClassVar[str] = "decision"

    decision: Decision
    expires: str
    decided_by: str
    statement: str

    def body(self) -> dict[str, Json]:
        """The fields of a decision."""
        return {
            "decision": self.decision,
            "expires": self.expires,
            "decided_by": self.decided_by,
            "statement": self.statement,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveEntry(StudyEntry):
    """Privacy spent, written before a record is touched; spent whatever happens next.

    `attempt` counts the reservations of the key that were paid for before this one.
    """

    kind: ClassVar[str] = "reserve"

    round_id: int
    purpose: str
    chunk: int
    attempt: int
    mechanism: str
    parameters: MechanismParameters
    event: PrivacyEvent
    unit: str
    adjacency: str
    target_delta: float
    epsilon_after: float
    epsilon_rdp_after: float
    study_epsilon_after: float
    study_epsilon_rdp_after: float
    total_cap: float
    study_cap: float

    @property
    def key(self) -> ReleaseKey:
        """What the release is for."""
        return ReleaseKey(
            study_id=self.study_id,
            round_id=self.round_id,
            purpose=self.purpose,
            chunk=self.chunk,
        )

    def body(self) -> dict[str, Json]:
        """The fields of a reservation."""
        return {
            "round_id": self.round_id,
            "purpose": self.purpose,
            "chunk": self.chunk,
            "attempt": self.attempt,
            "mechanism": self.mechanism,
            "parameters": dict(self.parameters),
            "event": self.event.to_json(),
            "unit": self.unit,
            "adjacency": self.adjacency,
            "target_delta": self.target_delta,
            "epsilon_after": self.epsilon_after,
            "epsilon_rdp_after": self.epsilon_rdp_after,
            "study_epsilon_after": self.study_epsilon_after,
            "study_epsilon_rdp_after": self.study_epsilon_rdp_after,
            "total_cap": self.total_cap,
            "study_cap": self.study_cap,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeEntry(StudyEntry):
    """A reservation without an output is used again; costs nothing.

    `attempt` numbers the tries after the first one, from 1.
    """

    kind: ClassVar[str] = "resume"

    reserve_hash: str
    attempt: int

    def body(self) -> dict[str, Json]:
        """The fields of a resumption."""
        return {"reserve_hash": self.reserve_hash, "attempt": self.attempt}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry(StudyEntry):
    """A reservation has led to an output, which a salted commitment names.

    Its `time` is that of the reservation's newest try: one of its own would publish how long the
    records took. `output_commitment` tells nobody anything without the salt, which stays at the
    site; see `commit_to_output`.
    """

    kind: ClassVar[str] = "commit"

    round_id: int
    purpose: str
    chunk: int
    reserve_hash: str
    output_commitment: str

    @property
    def key(self) -> ReleaseKey:
        """What the release is for."""
        return ReleaseKey(
            study_id=self.study_id,
            round_id=self.round_id,
            purpose=self.purpose,
            chunk=self.chunk,
        )

    def body(self) -> dict[str, Json]:
        """The fields of a commit."""
        return {
            "round_id": self.round_id,
            "purpose": self.purpose,
            "chunk": self.chunk,
            "reserve_hash": self.reserve_hash,
            "output_commitment": self.output_commitment,
        }


def commit_to_output(output: bytes, *, salt: bytes) -> str:
    """HMAC-SHA256 of an output, keyed with its salt: 64 hexadecimal digits.

    A bare hash would let a reader of the ledger test guesses of a noised output that never left
    the site in the clear.

    Args: salt: 32 random bytes, used for this output alone and kept at the site.
    Raises: ParameterError: the salt has another length.
    """
    if len(salt) != SALT_BYTES:
        raise ParameterError(f"salt: expected {SALT_BYTES} bytes, got {len(salt)}")
    return hmac.new(salt, OUTPUT_DOMAIN + output, hashlib.sha256).hexdigest()


Entry = TypeVar("Entry", bound=LedgerEntry)


def sign_entry(entry: Entry, key: Ed25519PrivateKey) -> Entry:
    """The entry with the site's signature in place of whatever stood there."""
    return replace(entry, signature=key.sign(entry.signed_bytes()).hex())


def check_signature(entry: LedgerEntry, key: Ed25519PublicKey) -> None:
    """Raises: LedgerError: the signature is not the site's over this entry."""
    try:
        key.verify(bytes.fromhex(entry.signature), entry.signed_bytes())
    except InvalidSignature as error:
        raise LedgerError(
            f"entry {entry.index}: the signature is not the site's over this entry; the entry "
            "was changed or written by somebody else"
        ) from error


def sign_with_new_key(entry: KeyEntry, key: Ed25519PrivateKey) -> KeyEntry:
    """The entry with the new key's signature; sign it with the old key afterwards."""
    return replace(entry, new_signature=key.sign(entry.new_signed_bytes()).hex())


def check_new_signature(entry: KeyEntry, key: Ed25519PublicKey) -> None:
    """Raises: LedgerError: the new key has not agreed to this entry."""
    try:
        key.verify(bytes.fromhex(entry.new_signature), entry.new_signed_bytes())
    except InvalidSignature as error:
        raise LedgerError(
            f"entry {entry.index}: new_signature is not the new key's over this entry"
        ) from error
