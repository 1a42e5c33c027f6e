"""Ledger entries: their canonical JSON form, hash chain and signatures.

A ledger file is JSON Lines: one canonical JSON object and one line feed per entry, nothing else.
The hash of an entry is the SHA-256 of its line without the line feed, signature included, so
every byte of the file is covered by the next entry's `previous_hash` and by its own signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias, TypedDict, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from lada_secure.canonical import Json, canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import LedgerError, ParameterError, PeerError
from lada_secure.privacy.events import PrivacyEvent, parse_event
from lada_secure.privacy.fields import HEX_64, HEX_128, NAME, Fields, check_name

VERSION = 1
MAX_LINE_BYTES = 32 * 1024
MAX_LEDGER_BYTES = 2**30
ADJACENCY = "add_or_remove_one_unit"
MAX_STATEMENT = 2000  # escaped, at most 24 kB of a line
SIGNATURE_DOMAIN = b"lada/ledger/1/"

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
    """Whose ledger it is. Bound into the first link, so entries cannot move between ledgers.

    `population` names the people whose records are protected, not the job: every study over the
    same people shares one ledger and one budget.
    """

    site: str
    population: str
    public_key: bytes

    def __post_init__(self) -> None:
        check_name("site", self.site)
        check_name("population", self.population)
        if len(self.public_key) != 32:
            raise ParameterError(
                f"public_key: expected the 32 raw bytes of an Ed25519 key, "
                f"got {len(self.public_key)}"
            )

    @property
    def genesis_hash(self) -> str:
        """`previous_hash` of the first entry."""
        return sha256_hex(
            canonical_json(
                {
                    "ledger_version": VERSION,
                    "population": self.population,
                    "public_key": self.public_key.hex(),
                    "site": self.site,
                }
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What all entries share. `time` is UTC text with microseconds; `signature` is hex."""

    kind: ClassVar[str] = ""

    index: int
    previous_hash: str
    site: str
    population: str
    study_id: str
    plan_hash: str
    time: str
    signature: str

    def body(self) -> dict[str, Json]:
        """The fields of this kind of entry."""
        raise NotImplementedError

    def _unsigned(self) -> dict[str, Json]:
        return {
            "version": VERSION,
            "kind": self.kind,
            "index": self.index,
            "previous_hash": self.previous_hash,
            "site": self.site,
            "population": self.population,
            "study_id": self.study_id,
            "plan_hash": self.plan_hash,
            "time": self.time,
            **self.body(),
        }

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return SIGNATURE_DOMAIN + canonical_json(self._unsigned())

    def line(self) -> bytes:
        """The entry's one byte form, without a line feed."""
        return canonical_json({**self._unsigned(), "signature": self.signature})

    @property
    def entry_hash(self) -> str:
        """SHA-256 of the line."""
        return sha256_hex(self.line())


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveEntry(LedgerEntry):
    """Privacy spent, written before a record is touched; spent whatever happens next."""

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
    data_fingerprint: str
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
            "data_fingerprint": self.data_fingerprint,
            "target_delta": self.target_delta,
            "epsilon_after": self.epsilon_after,
            "epsilon_rdp_after": self.epsilon_rdp_after,
            "study_epsilon_after": self.study_epsilon_after,
            "study_epsilon_rdp_after": self.study_epsilon_rdp_after,
            "total_cap": self.total_cap,
            "study_cap": self.study_cap,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry(LedgerEntry):
    """The noised output that a reservation led to, by its hash."""

    kind: ClassVar[str] = "commit"

    round_id: int
    purpose: str
    chunk: int
    reserve_hash: str
    output_sha256: str
    output_bytes: int

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
            "output_sha256": self.output_sha256,
            "output_bytes": self.output_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEntry(LedgerEntry):
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


def load_public_key(raw: bytes) -> Ed25519PublicKey:
    """Raises: ParameterError: not the 32 raw bytes of an Ed25519 key."""
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise ParameterError(f"public_key: not an Ed25519 key: {error}") from error


class _Common(TypedDict):
    """The fields that every entry has."""

    index: int
    previous_hash: str
    site: str
    population: str
    study_id: str
    plan_hash: str
    time: str
    signature: str


def _reserve(fields: Fields, common: _Common, where: str) -> ReserveEntry:
    return ReserveEntry(
        **common,
        round_id=fields.integer("round_id"),
        purpose=fields.matching("purpose", NAME),
        chunk=fields.integer("chunk"),
        attempt=fields.integer("attempt"),
        mechanism=fields.matching("mechanism", NAME),
        parameters=MappingProxyType(dict(fields.parameters("parameters"))),
        event=parse_event(fields.raw("event"), where=f"{where}: event"),
        unit=fields.matching("unit", NAME),
        adjacency=fields.matching("adjacency", NAME),
        data_fingerprint=fields.matching("data_fingerprint", HEX_64),
        target_delta=fields.number("target_delta"),
        epsilon_after=fields.number("epsilon_after"),
        epsilon_rdp_after=fields.number("epsilon_rdp_after"),
        study_epsilon_after=fields.number("study_epsilon_after"),
        study_epsilon_rdp_after=fields.number("study_epsilon_rdp_after"),
        total_cap=fields.number("total_cap"),
        study_cap=fields.number("study_cap"),
    )


def _commit(fields: Fields, common: _Common) -> CommitEntry:
    return CommitEntry(
        **common,
        round_id=fields.integer("round_id"),
        purpose=fields.matching("purpose", NAME),
        chunk=fields.integer("chunk"),
        reserve_hash=fields.matching("reserve_hash", HEX_64),
        output_sha256=fields.matching("output_sha256", HEX_64),
        output_bytes=fields.integer("output_bytes"),
    )


def _decision(fields: Fields, common: _Common, where: str) -> DecisionEntry:
    decision = fields.text("decision")
    if decision not in DECISIONS:
        raise LedgerError(f"{where}: decision: expected one of {DECISIONS}, got {decision[:40]!r}")
    return DecisionEntry(
        **common,
        decision=decision,
        expires=fields.time("expires"),
        decided_by=fields.matching("decided_by", NAME),
        statement=fields.text("statement", max_length=MAX_STATEMENT),
    )


def parse_entry(raw: bytes, *, where: str) -> LedgerEntry:
    """Read one line without its line feed; only the canonical spelling is accepted.

    Raises: LedgerError: too long, not canonical, fields missing, unknown or out of range.
    """
    try:
        value = parse_canonical_json(raw, max_bytes=MAX_LINE_BYTES)
    except PeerError as error:
        raise LedgerError(f"{where}: {error}") from error
    fields = Fields(value, where=where)
    if fields.integer("version") != VERSION:
        raise LedgerError(f"{where}: version: this software reads version {VERSION}")
    kind = fields.text("kind")
    common: _Common = {
        "index": fields.integer("index"),
        "previous_hash": fields.matching("previous_hash", HEX_64),
        "site": fields.matching("site", NAME),
        "population": fields.matching("population", NAME),
        "study_id": fields.matching("study_id", NAME),
        "plan_hash": fields.matching("plan_hash", HEX_64),
        "time": fields.time("time"),
        "signature": fields.matching("signature", HEX_128),
    }
    entry: LedgerEntry
    if kind == ReserveEntry.kind:
        entry = _reserve(fields, common, where)
    elif kind == CommitEntry.kind:
        entry = _commit(fields, common)
    elif kind == DecisionEntry.kind:
        entry = _decision(fields, common, where)
    else:
        raise LedgerError(f"{where}: kind: expected reserve, commit or decision, got {kind[:40]!r}")
    fields.done()
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
