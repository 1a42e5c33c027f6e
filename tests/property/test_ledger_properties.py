"""Any bytes parse or raise; any history that a ledger accepts verifies and keeps its caps."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st
from ledger_oracle import SITE_KEYS, approved_ledger, restarted, statistics

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.events import (
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    composed_event,
)
from lada_secure.privacy.ledger.entries import (
    ReserveEntry,
    format_ledger_lines,
    parse_entry,
    parse_ledger_lines,
)
from lada_secure.privacy.ledger.restart import parse_grant

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
GAUSSIANS = st.builds(
    GaussianEvent, st.floats(0.01, 1e6), count=st.integers(min_value=1, max_value=10**6)
)
TRAININGS = st.builds(
    DpSgdEvent,
    noise_multiplier=st.floats(0.01, 1e6),
    sampling_probability=st.floats(0, 1, exclude_min=True),
    steps=st.integers(min_value=1, max_value=10**6),
)
PARTS = GAUSSIANS | TRAININGS
EVENTS = PARTS | st.lists(PARTS, min_size=2, max_size=5).map(composed_event)


def _lines() -> list[bytes]:
    """One entry of each kind."""
    ledger = approved_ledger()
    ledger.reserve(statistics())
    ledger.keep(ledger.reserve(statistics()), b"noised")
    ledger.renew_key(SITE_KEYS[1], decided_by="x")
    return [*ledger.export_lines().splitlines(), restarted(ledger, 1).entries()[0].line()]


LINES = _lines()
FIELDS = sorted({name for line in LINES for name in json.loads(line)})


def parse_event(value: Json) -> PrivacyEvent:
    """The event of a reservation whose line holds this JSON."""
    entry = parse_entry(canonical_json({**json.loads(LINES[2]), "event": value}), where="entry 2")
    assert isinstance(entry, ReserveEntry)
    return entry.event


@given(EVENTS)
def test_any_event_survives_its_json(event: PrivacyEvent) -> None:
    assert parse_event(event.to_json()) == event


@given(JSON)
@example({"class_name": "ComposedDpEvent", "events": [None, None]})
@example({"class_name": "GaussianDpEvent", "noise_multiplier": 1e300})
def test_any_json_is_an_event_or_refused(value: Json) -> None:
    try:
        parse_event(value)
    except LedgerError:
        return
    raise AssertionError(f"{value!r} was taken for an event")


@given(st.binary(max_size=200))
@example(b"\n")
@example(b"{}\n")
@example(b'{"kind":"reserve","version":1}\n')
@example(b"[" * 10_000 + b"\n")
@example(b"9" * 5000 + b"\n")
def test_any_bytes_are_a_ledger_or_refused(raw: bytes) -> None:
    try:
        entries = parse_ledger_lines(raw)
    except LedgerError:
        return
    assert format_ledger_lines(entries) == raw


@given(st.sampled_from(sorted(json.loads(LINES[-1])["grant"])), JSON)
def test_a_restart_whose_grant_has_one_field_put_differently_is_the_same_line_or_refused(
    field: str, value: Json
) -> None:
    entry = json.loads(LINES[-1])
    changed = canonical_json({**entry, "grant": {**entry["grant"], field: value}})
    try:
        parsed = parse_entry(changed, where="entry 0")
    except LedgerError:
        return
    assert parsed.line() == changed


@given(st.binary(max_size=200) | JSON.map(canonical_json))
def test_any_bytes_are_a_restart_grant_or_refused(raw: bytes) -> None:
    try:
        parsed = parse_grant(raw)
    except LedgerError:
        return
    assert parsed.line() == raw


KINDS = ["start", "restart", "key", "decision", "reserve", "resume", "commit"]


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=12))
def test_any_fields_are_an_entry_or_refused(kind: str, fields: dict[str, Json]) -> None:
    line = canonical_json({**fields, "kind": kind, "version": 2})
    try:
        entry = parse_entry(line, where="entry 0")
    except LedgerError:
        return
    assert entry.line() == line


@given(st.sampled_from(LINES), st.sampled_from(FIELDS), JSON)
def test_an_entry_with_one_field_put_differently_is_the_same_line_or_refused(
    line: bytes, field: str, value: Json
) -> None:
    changed = canonical_json({**json.loads(line), field: value})
    try:
        entry = parse_entry(changed, where="entry 0")
    except LedgerError:
        return
    assert entry.line() == changed
