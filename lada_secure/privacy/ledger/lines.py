"""The lines of a ledger: read strictly, written canonically.

A ledger file is JSON Lines: one canonical JSON object and one line feed per entry, nothing else.
Every entry has one spelling; any other is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypedDict

from lada_secure.canonical import parse_canonical_json
from lada_secure.errors import LedgerError, PeerError
from lada_secure.privacy.accounting.events import parse_event
from lada_secure.privacy.accounting.fields import HEX_64, HEX_128, NAME, Fields
from lada_secure.privacy.ledger.entries import (
    DECISIONS,
    MAX_STATEMENT,
    VERSION,
    CommitEntry,
    DecisionEntry,
    KeyEntry,
    LedgerEntry,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
)
from lada_secure.privacy.ledger.restart import grant_from_json

MAX_LINE_BYTES = 64 * 1024
MAX_LEDGER_BYTES = 2**30


class _Common(TypedDict):
    """The fields that every entry has."""

    index: int
    previous_hash: str
    site: str
    population: str
    time: str
    signature: str


def _common(fields: Fields) -> _Common:
    return {
        "index": fields.integer("index"),
        "previous_hash": fields.matching("previous_hash", HEX_64),
        "site": fields.matching("site", NAME),
        "population": fields.matching("population", NAME),
        "time": fields.whole_seconds("time"),
        "signature": fields.matching("signature", HEX_128),
    }


class _Study(TypedDict):
    """The fields that every entry about a study has as well."""

    study_id: str
    plan_hash: str


def _study(fields: Fields) -> _Study:
    return {
        "study_id": fields.matching("study_id", NAME),
        "plan_hash": fields.matching("plan_hash", HEX_64),
    }


def _start(fields: Fields, where: str) -> StartEntry:
    return StartEntry(
        **_common(fields),
        ledger_id=fields.matching("ledger_id", HEX_64),
        public_key=fields.matching("public_key", HEX_64),
    )


def _restart(fields: Fields, where: str) -> RestartEntry:
    grant = grant_from_json(fields.raw("grant"), where=f"{where}: grant")
    return RestartEntry(**_common(fields), grant=grant)


def _key(fields: Fields, where: str) -> KeyEntry:
    return KeyEntry(
        **_common(fields),
        new_public_key=fields.matching("new_public_key", HEX_64),
        decided_by=fields.matching("decided_by", NAME),
        new_signature=fields.matching("new_signature", HEX_128),
    )


def _decision(fields: Fields, where: str) -> DecisionEntry:
    decision = fields.text("decision")
    if decision not in DECISIONS:
        raise LedgerError(f"{where}: decision: expected one of {DECISIONS}, got {decision[:40]!r}")
    return DecisionEntry(
        **_common(fields),
        **_study(fields),
        decision=decision,
        expires=fields.time("expires"),
        decided_by=fields.matching("decided_by", NAME),
        statement=fields.text("statement", max_length=MAX_STATEMENT),
    )


def _reserve(fields: Fields, where: str) -> ReserveEntry:
    return ReserveEntry(
        **_common(fields),
        **_study(fields),
        round_id=fields.integer("round_id"),
        purpose=fields.matching("purpose", NAME),
        chunk=fields.integer("chunk"),
        attempt=fields.integer("attempt"),
        mechanism=fields.matching("mechanism", NAME),
        parameters=MappingProxyType(dict(fields.parameters("parameters"))),
        event=parse_event(fields.raw("event"), where=f"{where}: event"),
        unit=fields.matching("unit", NAME),
        adjacency=fields.matching("adjacency", NAME),
        target_delta=fields.number("target_delta"),
        epsilon_after=fields.number("epsilon_after"),
        epsilon_rdp_after=fields.number("epsilon_rdp_after"),
        study_epsilon_after=fields.number("study_epsilon_after"),
        study_epsilon_rdp_after=fields.number("study_epsilon_rdp_after"),
        total_cap=fields.number("total_cap"),
        study_cap=fields.number("study_cap"),
    )


def _resume(fields: Fields, where: str) -> ResumeEntry:
    return ResumeEntry(
        **_common(fields),
        **_study(fields),
        reserve_hash=fields.matching("reserve_hash", HEX_64),
        attempt=fields.integer("attempt", low=1),
    )


def _commit(fields: Fields, where: str) -> CommitEntry:
    return CommitEntry(
        **_common(fields),
        **_study(fields),
        round_id=fields.integer("round_id"),
        purpose=fields.matching("purpose", NAME),
        chunk=fields.integer("chunk"),
        reserve_hash=fields.matching("reserve_hash", HEX_64),
        output_commitment=fields.matching("output_commitment", HEX_64),
    )


_KINDS: Mapping[str, Callable[[Fields, str], LedgerEntry]] = {
    StartEntry.kind: _start,
    RestartEntry.kind: _restart,
    KeyEntry.kind: _key,
    DecisionEntry.kind: _decision,
    ReserveEntry.kind: _reserve,
    ResumeEntry.kind: _resume,
    CommitEntry.kind: _commit,
}


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
    if kind not in _KINDS:
        raise LedgerError(f"{where}: kind: expected one of {', '.join(_KINDS)}, got {kind[:40]!r}")
    entry = _KINDS[kind](fields, where)
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
