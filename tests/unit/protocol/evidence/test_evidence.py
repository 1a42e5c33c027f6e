"""Offline verification: a good export passes, and any change to it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from protocol_world import make_cast, make_plan
from simulated_parties import make_world

from lada_clients.auditor.runner import write_export
from lada_protocol.evidence.export import CA_FILE, MESSAGES_FILE, PLAN_FILE, ROSTER_FILE
from lada_protocol.evidence.study import verify_evidence

Files = dict[str, bytes]
SITES = ("site-a", "site-b", "site-c")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The export of a finished study of one round."""
    folder = tmp_path_factory.mktemp("study")
    cast_ = make_cast(SITES)
    world = make_world(folder, cast_=cast_, plan=make_plan(rounds=1))
    world.run()
    identity = folder / "identity"
    identity.mkdir()
    (identity / "ca.crt").write_bytes(cast_.ca_pem)
    out = folder / "export"
    write_export(out, world.auditor.participant, world.auditor.ledgers, identity=identity)
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file()
    }


def test_the_export_of_an_honest_study_has_no_fault(export: Files) -> None:
    verdict = verify_evidence(export)
    assert verdict.faults == ()
    assert verdict.good
    assert (verdict.rounds, verdict.openings, set(verdict.ledgers)) == (1, 2, set(SITES))
    assert all(one.epsilon > 0 for one in verdict.ledgers.values())


def _faults(files: Files) -> str:
    verdict = verify_evidence(files)
    assert not verdict.good
    return "\n".join(verdict.faults)


@pytest.mark.parametrize(
    "name",
    [
        "ledgers/site-a.jsonl",
        "openings/0-statistics.json",
        "openings/0-demand.json",
        "transcripts/0.json",
        ROSTER_FILE,
        PLAN_FILE,
    ],
)
def test_any_changed_byte_of_a_file_shows(export: Files, name: str) -> None:
    raw = export[name]
    step = max(1, len(raw) // 12)
    for position in [*range(0, len(raw), step), len(raw) - 1]:
        changed = bytearray(raw)
        changed[position] ^= 1
        assert _faults({**export, name: bytes(changed)}), f"byte {position} of {name}"


def test_any_changed_byte_of_the_messages_shows(export: Files) -> None:
    raw = export[MESSAGES_FILE]
    for position in range(0, len(raw), len(raw) // 12):
        changed = bytearray(raw)
        changed[position] ^= 1
        assert _faults({**export, MESSAGES_FILE: bytes(changed)}), f"byte {position}"


@pytest.mark.parametrize(
    "name",
    [
        CA_FILE,
        ROSTER_FILE,
        PLAN_FILE,
        MESSAGES_FILE,
        "ledgers/site-b.jsonl",
        "openings/0-statistics.json",
        "transcripts/0.json",
    ],
)
def test_a_missing_file_is_named(export: Files, name: str) -> None:
    assert name in _faults({one: raw for one, raw in export.items() if one != name})


def test_a_file_that_nothing_speaks_of_is_named(export: Files) -> None:
    assert "openings/7-statistics.json" in _faults({**export, "openings/7-statistics.json": b"[]"})


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        (lambda raw: raw[:-1], "does not end with a line feed"),
        (lambda raw: raw + raw.split(b"\n")[0] + b"\n", "repeated or out of order"),
        (lambda raw: b"\n".join(raw.split(b"\n")[:-1][::-1]) + b"\n", "repeated or out of order"),
        (lambda raw: raw + b"{}\n", "message, header: Field required"),
        (
            lambda raw: raw + b'{"header":"\\u00e9","signature":"00"}\n',
            "message, header: String should match",
        ),
    ],
    ids=["cut", "repeated", "reversed", "no message", "not ASCII"],
)
def test_messages_in_another_form_are_refused(
    export: Files, cut: Callable[[bytes], bytes], sentence: str
) -> None:
    assert sentence in _faults({**export, MESSAGES_FILE: cut(export[MESSAGES_FILE])})


def _without(export: Files, part: bytes) -> Files:
    lines = export[MESSAGES_FILE].splitlines(keepends=True)
    kept = [line for line in lines if part not in line]
    assert len(kept) < len(lines)
    return {**export, MESSAGES_FILE: b"".join(kept)}


@pytest.mark.parametrize(
    "kind",
    [
        "plan",
        "opening_key",
        "cohort",
        "mask_key",
        "contribution",
        "sum",
        "opened",
        "receipt",
        "ledger",
        "trained",
        "close",
        "transcript",
        "acceptance",
        "paths",
    ],
)
def test_a_message_that_was_taken_out_shows(export: Files, kind: str) -> None:
    assert _faults(_without(export, b'\\"kind\\":\\"' + kind.encode("ascii") + b'\\"'))


def test_a_ledger_cut_at_its_end_shows(export: Files) -> None:
    name = "ledgers/site-c.jsonl"
    lines = export[name].splitlines(keepends=True)
    assert "ledgers/site-c.jsonl" in _faults({**export, name: b"".join(lines[:-1])})


def test_a_ledger_of_another_site_shows(export: Files) -> None:
    swapped = {**export, "ledgers/site-a.jsonl": export["ledgers/site-b.jsonl"]}
    assert "ledgers/site-a.jsonl" in _faults(swapped)


def test_the_ca_of_another_study_shows(export: Files) -> None:
    other = make_cast(("site-a", "site-b", "site-c", "site-d"))
    assert "not the study CA that the roster names" in _faults({**export, CA_FILE: other.ca_pem})


def test_an_opening_swapped_for_another_shows(export: Files) -> None:
    swapped = {**export, "openings/0-statistics.json": export["openings/0-demand.json"]}
    assert "openings/0-statistics.json" in _faults(swapped)


def test_verification_never_raises_for_bad_content() -> None:
    for junk in (b"", b"{}", b"[]", b"\x00" * 100, b"null"):
        names = (CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE)
        assert not verify_evidence(dict.fromkeys(names, junk)).good
    assert not verify_evidence({}).good
