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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.canonical import canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import LedgerError, ParameterError, PeerError
from lada_secure.privacy.accounting.events import PrivacyEvent, parse_event
from lada_secure.privacy.accounting.fields import (
    Count,
    Digest,
    Form,
    Name,
    Number,
    Parameters,
    Reader,
    Signature,
    check_hash,
    check_name,
    forms_of,
    integer,
    read_fields,
    text,
    version,
    written_fields,
)
from lada_secure.privacy.ledger.restart import RestartGrant, grant_from_json
from lada_secure.privacy.ledger.times import Time, WholeSeconds

VERSION = 2
ADJACENCY = "add_or_remove_one_unit"
MAX_STATEMENT = 2000  # escaped, at most 24 kB of a line
SIGNATURE_DOMAIN = b"lada/ledger/2/"
NEW_KEY_DOMAIN = b"lada/ledger-key/2/"
OUTPUT_DOMAIN = b"lada/ledger-output/2/"
SALT_BYTES = 32
MAX_LINE_BYTES = 64 * 1024
MAX_LEDGER_BYTES = 2**30

Decision: TypeAlias = Literal["approve", "refuse", "withdraw"]
_DECISIONS: Final[tuple[Decision, ...]] = ("approve", "refuse", "withdraw")


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
        return sha256_hex(canonical_json({"ledger_version": VERSION, **written_fields(self)}))


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

    index: Count
    previous_hash: Digest
    site: Name
    population: Name
    time: WholeSeconds
    signature: Signature

    def _signed(self, domain: bytes, *without: str) -> bytes:
        content = {"version": VERSION, "kind": self.kind, **written_fields(self)}
        return domain + canonical_json({n: v for n, v in content.items() if n not in without})

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return self._signed(SIGNATURE_DOMAIN, "signature")

    def line(self) -> bytes:
        """The entry's one byte form, without a line feed."""
        return self._signed(b"")

    @property
    def entry_hash(self) -> str:
        """SHA-256 of the line."""
        return sha256_hex(self.line())


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEntry(LedgerEntry):
    """The first entry of a ledger of people for whom nothing was spent before."""

    kind: ClassVar[str] = "start"

    ledger_id: Digest
    public_key: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartEntry(LedgerEntry):
    """The first entry of a ledger in place of a lost one, with the auditor's grant."""

    kind: ClassVar[str] = "restart"

    grant: Annotated[RestartGrant, partial(grant_from_json, where="grant")]

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

    kind: ClassVar[str] = "key"

    new_public_key: Digest
    decided_by: Name
    new_signature: Signature

    def new_signed_bytes(self) -> bytes:
        """What the new key signs."""
        return self._signed(NEW_KEY_DOMAIN, "signature", "new_signature")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEntry(LedgerEntry):
    """What entries about a study share."""

    study_id: Name
    plan_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEntry(StudyEntry):
    """The site approves, refuses or withdraws from a study plan.

    `expires` is when the plan ends; nothing is released under it afterwards.
    """

    kind: ClassVar[str] = "decision"

    decision: Annotated[
        Decision, text(), Form(f"one of {_DECISIONS}", _DECISIONS.__contains__, shown=40)
    ]
    expires: Time
    decided_by: Name
    statement: Annotated[str, text(MAX_STATEMENT)]


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

    kind: ClassVar[str] = "reserve"

    attempt: Count
    mechanism: Name
    parameters: Parameters
    event: Annotated[PrivacyEvent, parse_event]
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

    kind: ClassVar[str] = "resume"

    reserve_hash: Digest
    attempt: Annotated[int, integer(low=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry(_KeyedEntry):
    """A reservation has led to an output, which a salted commitment names.

    Its `time` is that of the reservation's newest try: one of its own would publish how long the
    records took. `output_commitment` tells nobody anything without the salt, which stays at the
    site; see `commit_to_output`.
    """

    kind: ClassVar[str] = "commit"

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


_KINDS: Final[Mapping[str, type[LedgerEntry]]] = {
    entry.kind: entry
    for entry in (
        *(StartEntry, RestartEntry, KeyEntry, DecisionEntry),
        *(ReserveEntry, ResumeEntry, CommitEntry),
    )
}
_FORMS: Final = {name: forms_of(kind) for name, kind in _KINDS.items()}
_HEAD: Final[Mapping[str, Sequence[Reader]]] = {
    "version": (version(VERSION),),
    "kind": (text(), Form(f"one of {', '.join(_KINDS)}", _KINDS.__contains__, shown=40)),
}


def parse_entry(raw: bytes, *, where: str) -> LedgerEntry:
    """Read one line without its line feed; only the canonical spelling is accepted.

    Raises: LedgerError: too long, not canonical, fields missing, unknown or out of range.
    """
    try:
        value = parse_canonical_json(raw, max_bytes=MAX_LINE_BYTES)
    except PeerError as error:
        raise LedgerError(f"{where}: {error}") from error
    named = str(value.get("kind")) if isinstance(value, dict) else ""
    # Of an unknown kind the head alone is looked at, and refused.
    found = read_fields(value, {**_HEAD, **_FORMS.get(named, {})}, where=where)
    entry = _KINDS[named](**{name: found[name] for name in _FORMS[named]})
    if entry.line() != raw:
        raise LedgerError(f"{where}: not the one spelling of this entry")
    return entry


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
