"""Ledger entries: their fields, canonical JSON form, hash chain, signatures and lines.

A ledger file is JSON Lines: one canonical JSON object and one line feed per entry, nothing else.
Every entry has one spelling; any other is refused. The hash of an entry is the SHA-256 of its line,
signature included, so every byte of a ledger is covered by the next entry's `previous_hash` and by
its own signature.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Discriminator, Field, TypeAdapter

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import EventField
from lada_secure.privacy.accounting.fields import (
    Count,
    Digest,
    Name,
    Number,
    Parameters,
    Person,
    Signature,
    SignedRecord,
    check_hash,
    check_name,
    read_record,
)
from lada_secure.privacy.ledger.restart import GrantField
from lada_secure.privacy.ledger.times import Time, WholeSeconds

VERSION: Final = 2
ADJACENCY = "add_or_remove_one_unit"
MAX_STATEMENT = 2000  # escaped, at most 24 kB of a line
NEW_KEY_DOMAIN = b"lada/ledger-key/2/"
OUTPUT_DOMAIN = b"lada/ledger-output/2/"
SALT_BYTES = 32
MAX_LINE_BYTES = 64 * 1024
MAX_LEDGER_BYTES = 2**30

Decision: TypeAlias = Literal["approve", "refuse", "withdraw"]


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
        return sha256_hex(canonical_json({"ledger_version": VERSION, **asdict(self)}))


def new_ledger_id() -> str:
    """32 random bytes in hexadecimal."""
    return secrets.token_hex(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry(SignedRecord):
    """What all entries share. `time` is UTC text in whole seconds.

    The signature is the site's, by the key that is in force before the entry; the first entry
    names its own.
    """

    domain: ClassVar[bytes] = b"lada/ledger/2/"

    version: Literal[2] = VERSION
    kind: str
    index: Count
    previous_hash: Digest
    site: Name
    population: Name
    time: WholeSeconds

    @property
    def entry_hash(self) -> str:
        """SHA-256 of the line."""
        return sha256_hex(self.line())


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEntry(LedgerEntry):
    """The first entry of a ledger of people for whom nothing was spent before."""

    kind: Literal["start"] = "start"

    ledger_id: Digest
    public_key: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartEntry(LedgerEntry):
    """The first entry of a ledger in place of a lost one, with the auditor's grant."""

    kind: Literal["restart"] = "restart"

    grant: GrantField

    @property
    def ledger_id(self) -> str:
        """The new ledger's."""
        return self.grant.ledger_id

    @property
    def public_key(self) -> str:
        """The site's, hex; the grant is for this key."""
        return self.grant.public_key


FirstEntry: TypeAlias = StartEntry | RestartEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry(LedgerEntry):
    """The site's key is renewed: the old one signs the entry, the new one agrees to follow.

    `new_signature` is over everything but both signatures; `signature` covers it too.
    """

    kind: Literal["key"] = "key"

    new_public_key: Digest
    decided_by: Name
    new_signature: Signature

    def new_signed_bytes(self) -> bytes:
        """What the new key signs."""
        return self._without("signature", "new_signature", domain=NEW_KEY_DOMAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEntry(LedgerEntry):
    """What entries about a study share."""

    study_id: Name
    plan_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEntry(StudyEntry):
    """The site approves, refuses or withdraws from a study plan.

    `expires` is when the plan ends; nothing is released under it afterwards. `decided_by` is a
    person, with their role perhaps, or the rule that decided.
    """

    kind: Literal["decision"] = "decision"

    decision: Decision
    expires: Time
    decided_by: Person
    statement: Annotated[str, Field(max_length=MAX_STATEMENT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyedEntry(StudyEntry):
    """What entries about one release share."""

    round_id: Count
    purpose: Name
    chunk: Count

    @property
    def key(self) -> ReleaseKey:
        """What the release is for."""
        return ReleaseKey(
            study_id=self.study_id, round_id=self.round_id, purpose=self.purpose, chunk=self.chunk
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveEntry(_KeyedEntry):
    """Privacy spent, written before a record is touched; spent whatever happens next.

    `attempt` counts the reservations of the key that were paid for before this one.
    """

    kind: Literal["reserve"] = "reserve"

    attempt: Count
    mechanism: Name
    parameters: Parameters
    event: EventField
    unit: Name
    adjacency: Name
    target_delta: Number
    epsilon_after: Number
    epsilon_rdp_after: Number
    study_epsilon_after: Number
    study_epsilon_rdp_after: Number
    total_cap: Number
    study_cap: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeEntry(StudyEntry):
    """A reservation without an output is used again; costs nothing.

    `attempt` numbers the tries after the first one, from 1.
    """

    kind: Literal["resume"] = "resume"

    reserve_hash: Digest
    attempt: Annotated[int, Field(ge=1, le=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry(_KeyedEntry):
    """A reservation has led to an output, which a salted commitment names.

    Its `time` is that of the reservation's newest try: one of its own would publish how long the
    records took. `output_commitment` tells nobody anything without the salt, which stays at the
    site; see `commit_to_output`.
    """

    kind: Literal["commit"] = "commit"

    reserve_hash: Digest
    output_commitment: Digest


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


def sign_with_new_key(entry: KeyEntry, key: Ed25519PrivateKey) -> KeyEntry:
    """The entry with the new key's signature; sign it with the old key afterwards."""
    return replace(entry, new_signature=key.sign(entry.new_signed_bytes()).hex())


_ENTRY: Final = TypeAdapter[LedgerEntry](
    Annotated[
        StartEntry
        | RestartEntry
        | KeyEntry
        | DecisionEntry
        | ReserveEntry
        | ResumeEntry
        | CommitEntry,
        Discriminator("kind"),
    ]
)


def parse_entry(raw: bytes, *, where: str) -> LedgerEntry:
    """Read one line without its line feed; only the canonical spelling is accepted.

    Raises: LedgerError: too long, not canonical, fields missing, unknown or out of range.
    """
    return read_record(_ENTRY, raw, max_bytes=MAX_LINE_BYTES, where=where)


def parse_ledger_lines(raw: bytes) -> tuple[LedgerEntry, ...]:
    """Read an exported ledger. Every byte counts; no signature is checked here.

    Args: raw: canonical JSON Lines, at most 1 GiB; empty for an empty ledger.
    Raises: LedgerError: names the line.
    """
    if len(raw) > MAX_LEDGER_BYTES:
        raise LedgerError(f"ledger of {len(raw)} bytes, at most {MAX_LEDGER_BYTES} are read")
    if not raw:
        return ()
    lines = raw.split(b"\n")
    if lines.pop() != b"":
        raise LedgerError(
            f"entry {len(lines)}: the last line does not end with a line feed; the file was cut"
        )
    return tuple(parse_entry(line, where=f"entry {number}") for number, line in enumerate(lines))


def format_ledger_lines(entries: tuple[LedgerEntry, ...]) -> bytes:
    """The inverse of `parse_ledger_lines`."""
    return b"".join(entry.line() + b"\n" for entry in entries)
