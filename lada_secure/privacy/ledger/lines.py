"""The lines of a ledger: read strictly, written canonically.

A ledger file is JSON Lines: one canonical JSON object and one line feed per entry, nothing else.
Every entry has one spelling; any other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lada_secure.canonical import parse_canonical_json
from lada_secure.errors import LedgerError, PeerError
from lada_secure.privacy.accounting.fields import Form, Reader, forms_of, read_fields, text, version
from lada_secure.privacy.ledger.entries import (
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

MAX_LINE_BYTES = 64 * 1024
MAX_LEDGER_BYTES = 2**30

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
