"""What a dishonest site could write with its own keys, and what verification says to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ledger_world import (
    AUDITOR,
    CAPS,
    IDENTITY,
    NEW_KEY,
    SITE,
    SITE_KEY,
    raw_public_key,
    sample_ledger,
)

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    KeyEntry,
    LedgerEntry,
    LedgerIdentity,
    ResumeEntry,
    sign_entry,
    sign_with_new_key,
)
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger

RENEWED = raw_public_key(NEW_KEY)


def verify(
    entries: tuple[LedgerEntry, ...], *, caps: BudgetCaps | None = CAPS, **more: Any
) -> LedgerSummary:
    return verify_ledger(entries, **{"public_key": RENEWED, "caps": caps, **more})


def rewritten(
    changes: dict[int, dict[str, Any]], *, drop: tuple[int, ...] = ()
) -> tuple[LedgerEntry, ...]:
    """The sample ledger with other content, properly linked and signed by the keys in force.

    What names a reservation follows it, unless `changes` says otherwise.
    """
    hashes: dict[str, str] = {}
    result: list[LedgerEntry] = []
    previous, key = IDENTITY.genesis_hash, SITE_KEY
    for position, entry in enumerate(sample_ledger().entries()):
        if position in drop:
            continue
        links: dict[str, Any] = {"index": len(result), "previous_hash": previous}
        if isinstance(entry, CommitEntry | ResumeEntry):
            links["reserve_hash"] = hashes[entry.reserve_hash]
        changed = dataclasses.replace(entry, **{**links, **changes.get(position, {})})
        if isinstance(changed, KeyEntry):
            changed = sign_with_new_key(changed, NEW_KEY)
        result.append(sign_entry(changed, key))
        if isinstance(changed, KeyEntry):
            key = NEW_KEY
        previous = hashes[entry.entry_hash] = result[-1].entry_hash
    return tuple(result)


def test_the_sample_rewritten_without_a_change_is_a_whole_ledger() -> None:
    assert verify(rewritten({})).reservations == 4
    assert [entry.kind for entry in rewritten({})] == [
        "start",
        "decision",
        "reserve",
        "commit",
        "reserve",
        "resume",
        "commit",
        "key",
        "decision",
        "reserve",
        "reserve",
        "decision",
    ]


@pytest.mark.parametrize(
    "field",
    ["epsilon_after", "epsilon_rdp_after", "study_epsilon_after", "study_epsilon_rdp_after"],
)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_wrong_epsilon_is_named_even_if_signed(field: str, factor: float) -> None:
    honest = getattr(sample_ledger().entries()[4], field)
    with pytest.raises(LedgerError, match=rf"^entry 4: {field}: the entry says .* recomputed"):
        verify(rewritten({4: {field: honest * factor}}))


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        pytest.param(0, {"ledger_id": "ab" * 32}, "previous_hash", id="another ledger"),
        pytest.param(
            1, {"expires": "2026-01-31T11:59:59.000000Z"}, "expired on", id="approved after its end"
        ),
        pytest.param(2, {"total_cap": 0.1}, "above the cap of 0.1", id="over the recorded cap"),
        pytest.param(2, {"study_cap": 0.1}, "above the cap of 0.1", id="over the study's cap"),
        pytest.param(2, {"plan_hash": "b" * 64}, "approved plan", id="another plan"),
        pytest.param(2, {"study_id": "other"}, "has not approved", id="a study not approved"),
        pytest.param(2, {"attempt": 1}, "attempt: expected 0", id="a wrong attempt"),
        pytest.param(2, {"mechanism": "laplace"}, "mechanism: expected", id="unknown mechanism"),
        pytest.param(2, {"adjacency": "replace_one"}, "adjacency", id="another adjacency"),
        pytest.param(
            2,
            {"parameters": {"l2_sensitivity": 100.0, "std": 10.0}},
            "std: expected at least 16",
            id="noise below 16 steps",
        ),
        pytest.param(2, {"site": "hospital-b"}, "belongs to site 'hospital-b'", id="another site"),
        pytest.param(2, {"population": "staff"}, "population 'staff'", id="another population"),
        pytest.param(
            2,
            {"time": "2026-01-30T12:00:00.000000Z"},
            "is before the entry before it",
            id="time back",
        ),
        pytest.param(3, {"reserve_hash": "0" * 64}, "does not hold", id="a commit of nothing"),
        pytest.param(3, {"round_id": 7}, "it names entry 2", id="a commit of another round"),
        pytest.param(
            3,
            {"time": "2026-01-31T12:02:00.000000Z"},
            "a commit has that of its reservation's newest try",
            id="a commit that says how long the records took",
        ),
        pytest.param(
            4,
            {"parameters": {"l2_clip_norm": 1.0, "expected_units": 20.0, "noise": "laplace"}},
            "noise: expected discrete_gaussian or float_gaussian, got 'laplace'",
            id="training with an unknown noise",
        ),
        pytest.param(
            4,
            {"parameters": {"l2_clip_norm": 1.0, "expected_units": 20.0}},
            "parameters: dp_sgd needs exactly",
            id="training that hides its noise",
        ),
        pytest.param(5, {"attempt": 2}, "attempt: expected 1", id="a hidden resume"),
        pytest.param(5, {"reserve_hash": "0" * 64}, "does not hold", id="a resume of nothing"),
        pytest.param(5, {"study_id": "other"}, "has not approved", id="a resume without approval"),
        pytest.param(
            5,
            {"time": "2026-01-31T12:00:00.000000Z"},
            "is before the entry before it",
            id="a resume before its reservation",
        ),
        pytest.param(
            6,
            {"time": "2026-01-31T12:02:00.000000Z"},
            "a commit has that of its reservation's newest try",
            id="a commit at the time of the first try",
        ),
        pytest.param(
            7,
            {"new_public_key": SITE.hex()},
            "the one that is in force already",
            id="a key renewed by itself",
        ),
        pytest.param(
            7,
            {"new_public_key": AUDITOR.hex()},
            "new_signature is not the new key's",
            id="a key that did not agree",
        ),
        pytest.param(
            10, {"attempt": 0}, "attempt: expected 1", id="a payment that hides the first one"
        ),
    ],
)
def test_a_broken_rule_is_named_even_if_signed(
    position: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LedgerError, match=rf"^entry {position}: .*{message}"):
        verify(rewritten({position: changes}))


def test_spending_without_saying_so_is_found() -> None:
    # The dishonest site drops a payment that led to nothing and keeps the rest consistent.
    with pytest.raises(LedgerError, match=r"^entry 9: study_epsilon_after: "):
        verify(rewritten({10: {"attempt": 0}}, drop=(9,)))


def test_a_committed_reservation_is_neither_resumed_nor_reserved_again() -> None:
    entries = rewritten({})
    resume, reserve = entries[5], entries[4]
    for extra, words in ((resume, "was committed before"), (reserve, "is reserved again")):
        link = {"index": 7, "previous_hash": entries[6].entry_hash, "time": resume.time}
        with pytest.raises(LedgerError, match=rf"^entry 7: .*{words}"):
            verify((*entries[:7], sign_entry(dataclasses.replace(extra, **link), SITE_KEY)))


def test_a_second_start_in_the_middle_is_refused() -> None:
    entries = rewritten({})
    link = {"index": 4, "previous_hash": entries[3].entry_hash, "time": entries[2].time}
    again = sign_entry(dataclasses.replace(entries[0], **link), SITE_KEY)
    with pytest.raises(LedgerError, match=r"^entry 4: a start entry is only ever the first one"):
        verify((*entries[:4], again))


def test_the_agreed_caps_count_and_not_only_the_recorded_ones() -> None:
    entries = sample_ledger().entries()
    tight = BudgetCaps(target_delta=1e-6, total_epsilon=0.5, study_epsilon=0.5)
    with pytest.raises(LedgerError, match=r"^entry \d+: epsilon of .* above the cap of 0\.5"):
        verify(entries, caps=tight)
    other_delta = BudgetCaps(target_delta=1e-9, total_epsilon=0.5, study_epsilon=6.0)
    with pytest.raises(LedgerError, match=r"all studies is .* above the cap of 0\.5"):
        verify(entries, caps=other_delta)
    small = BudgetCaps(target_delta=1e-9, total_epsilon=8.0, study_epsilon=0.3)
    with pytest.raises(LedgerError, match=r"study study is .* above the cap of 0\.3"):
        verify(entries, caps=small)
    assert verify(entries, caps=None).target_delta == 1e-6


def test_a_ledger_checked_with_another_key_or_name_is_refused() -> None:
    entries = sample_ledger().entries()
    for other in (AUDITOR, SITE):
        with pytest.raises(LedgerError, match=r"^entry 11: the ledger's key in force is"):
            verify(entries, public_key=other)
    with pytest.raises(LedgerError, match=r"^entry 0: it belongs to site 'hospital-a'"):
        verify(entries, site="hospital-b")
    with pytest.raises(LedgerError, match=r"^entry 11: the ledger's key in force is"):
        verify(entries, public_key=b"short")


def test_names_of_a_ledger_are_checked() -> None:
    with pytest.raises(ParameterError, match=r"^site: "):
        LedgerIdentity(site="", population="patients", ledger_id="0" * 64)
    with pytest.raises(ParameterError, match=r"^ledger_id: "):
        LedgerIdentity(site="a", population="patients", ledger_id="0" * 63)
