"""The ledger's rules, on the ledger in memory; every store passes the same suite elsewhere."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from lada_secure.privacy.countersignature import (
    Countersignature,
    check_countersignature,
    countersign,
    parse_countersignature,
)
from ledger_world import (
    AUDITOR_KEY,
    CAPS,
    DATA,
    IDENTITY,
    PLAN,
    SITE_KEY,
    START,
    Clock,
    approve,
    memory_ledger,
    raw_public_key,
    sample_ledger,
    statistics_spec,
    training_spec,
)

from lada_secure.errors import LedgerError, ParameterError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting import epsilon
from lada_secure.privacy.entries import (
    CommitEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    parse_ledger_lines,
    sign_entry,
)
from lada_secure.privacy.events import composed_event, dpsgd_event, gaussian_event
from lada_secure.privacy.ledger import BudgetCaps, LedgerHead, ReleaseSpec
from lada_secure.privacy.memory_ledger import MemoryLedger
from lada_secure.privacy.verification import LedgerSummary, verify_ledger

SITE = IDENTITY.public_key
AUDITOR = raw_public_key(AUDITOR_KEY)


def verify(
    entries: tuple[LedgerEntry, ...], *, caps: BudgetCaps | None = CAPS, **more: Any
) -> LedgerSummary:
    return verify_ledger(entries, public_key=SITE, caps=caps, **more)


def resigned(entry: LedgerEntry, **changes: Any) -> LedgerEntry:
    """What a dishonest site can make: any content, properly signed."""
    return sign_entry(dataclasses.replace(entry, **changes), SITE_KEY)


def rewritten(
    changes: dict[int, dict[str, Any]], *, drop: tuple[int, ...] = ()
) -> tuple[LedgerEntry, ...]:
    """The sample ledger with other content, properly linked and signed, commits following."""
    hashes: dict[str, str] = {}
    result: list[LedgerEntry] = []
    previous = IDENTITY.genesis_hash
    for position, entry in enumerate(sample_ledger().entries()):
        if position in drop:
            continue
        links: dict[str, Any] = {"index": len(result), "previous_hash": previous}
        if isinstance(entry, CommitEntry):
            links["reserve_hash"] = hashes[entry.reserve_hash]
        result.append(resigned(entry, **{**links, **changes.get(position, {})}))
        previous = hashes[entry.entry_hash] = result[-1].entry_hash
    return tuple(result)


def test_an_untouched_ledger_verifies_and_says_what_it_cost() -> None:
    ledger = sample_ledger()
    entries = parse_ledger_lines(ledger.export_lines())
    assert entries == ledger.entries()
    summary = verify(entries)
    events = [entry.event for entry in entries if isinstance(entry, ReserveEntry)]
    assert summary.epsilon == pytest.approx(epsilon(events, target_delta=1e-6))
    assert summary.epsilon == pytest.approx(ledger.epsilon_spent(1e-6), rel=1e-6)
    assert summary.epsilon < summary.epsilon_rdp
    assert (summary.reservations, summary.commits, summary.uncommitted) == (4, 2, 2)
    assert [(one.study_id, one.decision) for one in summary.studies] == [
        ("second", "withdraw"),
        ("study", "approve"),
    ]
    assert summary.head == ledger.head()
    by_study = {one.study_id: one.epsilon for one in summary.studies}
    assert by_study["study"] == pytest.approx(ledger.epsilon_spent(1e-6, study_id="study"))


def test_an_empty_ledger_verifies() -> None:
    assert parse_ledger_lines(b"") == ()
    summary = verify((), site="hospital-a", population="patients")
    assert (summary.epsilon, summary.head.index) == (0.0, -1)
    assert summary.head == memory_ledger().head()
    with pytest.raises(LedgerError, match="empty; name the site"):
        verify(())


def test_a_reservation_without_a_commit_stays_spent_and_a_retry_pays_again() -> None:
    ledger = memory_ledger()
    approve(ledger)
    first = ledger.reserve(training_spec())
    spent = ledger.epsilon_spent(1e-6)
    assert spent == first.entry.epsilon_after > 0
    second = ledger.reserve(training_spec())
    assert (first.entry.attempt, second.entry.attempt) == (0, 1)
    assert ledger.epsilon_spent(1e-6) > spent
    assert second.stored_output is None
    assert ledger.stored_output(training_spec().key) is None


def test_a_committed_key_returns_its_bytes_and_spends_nothing() -> None:
    ledger = memory_ledger()
    approve(ledger)
    entry = ledger.commit(ledger.reserve(training_spec()), b"weights")
    spent, head = ledger.epsilon_spent(1e-6), ledger.head()
    again = ledger.reserve(training_spec())
    assert again.stored_output == b"weights" == ledger.stored_output(training_spec().key)
    assert ledger.commit(again, b"weights") == entry, "committing the same again changes nothing"
    assert (ledger.epsilon_spent(1e-6), ledger.head()) == (spent, head)


def test_a_second_output_for_a_key_is_refused() -> None:
    ledger = memory_ledger()
    approve(ledger)
    first, second = ledger.reserve(training_spec()), ledger.reserve(training_spec())
    ledger.commit(first, b"weights")
    for reservation, output in ((first, b"other weights"), (second, b"weights")):
        with pytest.raises(LedgerError, match="committed another output already"):
            ledger.commit(reservation, output)
    with pytest.raises(LedgerError, match="another plan, mechanism or event"):
        ledger.reserve(training_spec(steps=21))
    for output in (b"", bytes(2**28 + 1)):
        with pytest.raises(ParameterError, match=r"^output: "):
            ledger.commit(second, output)


def test_a_reservation_of_another_ledger_cannot_be_committed() -> None:
    ledger, other = memory_ledger(), memory_ledger()
    approve(ledger)
    approve(other)
    other.reserve(statistics_spec())
    foreign = other.reserve(training_spec())
    with pytest.raises(LedgerError, match="no such reservation"):
        ledger.commit(foreign, b"weights")


def test_chunks_of_a_purpose_are_separate_releases() -> None:
    ledger = memory_ledger()
    approve(ledger)
    for chunk in range(3):
        ledger.commit(ledger.reserve(training_spec(chunk=chunk)), b"part %d" % chunk)
    assert ledger.stored_output(training_spec(chunk=1).key) == b"part 1"
    assert verify(ledger.entries()).commits == 3


def test_the_cap_of_a_study_and_of_all_studies_refuse_before_spending() -> None:
    caps = BudgetCaps(
        target_delta=1e-6, total_epsilon=1.0, study_epsilon=0.8, study_overrides={"small": 0.3}
    )
    ledger = memory_ledger(caps=caps)
    for study in ("small", "a", "b"):
        approve(ledger, study)
    with pytest.raises(PrivacyBudgetExceeded, match=r"epsilon of study small .* cap is 0\.3"):
        ledger.reserve(statistics_spec(study_id="small", noise_multiplier=10.0))
    refused_by: set[str] = set()
    for study in ("a", "b"):
        for round_id in range(20):
            head, spent = ledger.head(), ledger.epsilon_spent(1e-6)
            try:
                ledger.reserve(statistics_spec(round_id, study_id=study, noise_multiplier=15.0))
            except PrivacyBudgetExceeded as error:
                refused_by.add("study" if f"study {study} would" in str(error) else "all")
                assert (ledger.head(), ledger.epsilon_spent(1e-6)) == (head, spent)
                break
        assert ledger.epsilon_spent(1e-6, study_id=study) <= 0.8
    assert refused_by == {"study", "all"}
    assert 0.8 < ledger.epsilon_spent(1e-6) <= 1.0
    verify(ledger.entries(), caps=caps)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        pytest.param([], "has not approved", id="no decision"),
        pytest.param(["refuse"], "'refuse'", id="refused"),
        pytest.param(["approve", "withdraw"], "'withdraw'", id="withdrawn"),
        pytest.param(["approve", "refuse"], "'refuse'", id="refused after all"),
    ],
)
def test_only_an_approved_study_can_reserve(decisions: list[Any], message: str) -> None:
    ledger = memory_ledger()
    for decision in decisions:
        ledger.decide(
            decision,
            study_id="study",
            plan_hash=PLAN,
            expires=START + timedelta(days=1),
            decided_by="dr.weber",
        )
    with pytest.raises(LedgerError, match=message):
        ledger.reserve(statistics_spec())
    assert ledger.epsilon_spent(1e-6) == 0.0


def test_another_plan_than_the_approved_one_is_refused() -> None:
    ledger = memory_ledger()
    approve(ledger, plan_hash="b" * 64)
    with pytest.raises(LedgerError, match="the approved plan of study study is bbbb"):
        ledger.reserve(statistics_spec())


def test_an_expired_plan_can_neither_reserve_nor_commit_nor_be_approved() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    approve(ledger)
    reservation = ledger.reserve(statistics_spec())
    clock.advance(24 * 3600 + 1)
    with pytest.raises(LedgerError, match="expired on 2026-02-01T12:00:00"):
        ledger.reserve(statistics_spec(1))
    with pytest.raises(LedgerError, match="expired on"):
        ledger.commit(reservation, b"too late")
    with pytest.raises(LedgerError, match="expired on"):
        approve(ledger)


def test_a_withdrawal_between_reserve_and_commit_stops_the_output() -> None:
    ledger = memory_ledger()
    approve(ledger)
    reservation = ledger.reserve(statistics_spec())
    ledger.decide(
        "withdraw",
        study_id="study",
        plan_hash=PLAN,
        expires=START + timedelta(days=1),
        decided_by="dr.weber",
    )
    with pytest.raises(LedgerError, match="'withdraw'"):
        ledger.commit(reservation, b"noised")
    with pytest.raises(LedgerError, match="nothing to withdraw"):
        ledger.decide(
            "withdraw", study_id="study", plan_hash=PLAN, expires=START, decided_by="dr.weber"
        )


def test_a_clock_set_back_is_refused_and_a_small_step_is_not() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    approve(ledger)
    clock.advance(-1.5)
    entry = ledger.reserve(statistics_spec()).entry
    assert entry.time == ledger.entries()[0].time, "time never runs backwards in a ledger"
    clock.advance(-3600)
    head = ledger.head()
    with pytest.raises(LedgerError, match="clock was set back by 3602 s"):
        ledger.reserve(statistics_spec(1))
    assert ledger.head() == head


def test_a_clock_without_a_zone_is_refused() -> None:
    ledger = MemoryLedger(
        identity=IDENTITY,
        signing_key=SITE_KEY,
        caps=CAPS,
        data_fingerprint=DATA,
        clock=lambda: datetime(2026, 1, 31),
    )
    with pytest.raises(ParameterError, match="time zone"):
        approve(ledger)


GOOD: dict[str, Any] = {
    "study_id": "study",
    "plan_hash": PLAN,
    "round_id": 0,
    "purpose": "statistics",
    "mechanism": "discrete_gaussian",
    "event": gaussian_event(20.0),
    "parameters": {"l2_sensitivity": 100.0, "std": 2000.0},
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"mechanism": "laplace"}, "mechanism", id="an unknown mechanism"),
        pytest.param({"mechanism": "none"}, "mechanism", id="a non-private release"),
        pytest.param({"event": None}, "event", id="no event"),
        pytest.param(
            {"event": composed_event([gaussian_event(1.0), gaussian_event(2.0)])},
            "event",
            id="an event of another mechanism",
        ),
        pytest.param({"event": gaussian_event(21.0)}, "event", id="more noise claimed than added"),
        pytest.param({"parameters": {}}, "parameters", id="no parameters"),
        pytest.param(
            {"parameters": {"l2_sensitivity": 1.0, "std": 15.9}}, "std", id="below 16 steps"
        ),
        pytest.param(
            {"parameters": {"l2_sensitivity": 0.0, "std": 2000.0}},
            "l2_sensitivity",
            id="no sensitivity",
        ),
        pytest.param(
            {"parameters": {"l2_sensitivity": 1.0, "std": math.nan}}, "std", id="noise that is NaN"
        ),
        pytest.param(
            {"parameters": {"l2_sensitivity": 1.0, "std": math.inf}}, "std", id="infinite noise"
        ),
        pytest.param({"mechanism": "dp_sgd"}, "parameters", id="DP-SGD with others' parameters"),
        pytest.param({"round_id": -1}, "round_id", id="a negative round"),
        pytest.param({"round_id": True}, "round_id", id="a round that is a truth value"),
        pytest.param({"chunk": -1}, "chunk", id="a negative chunk"),
        pytest.param({"study_id": ""}, "study_id", id="an empty study"),
        pytest.param({"study_id": "a b"}, "study_id", id="a study with a space"),
        pytest.param({"purpose": "x" * 200}, "purpose", id="a long purpose"),
        pytest.param({"plan_hash": "A" * 64}, "plan_hash", id="a hash in capitals"),
        pytest.param({"adjacency": "replace_one"}, "adjacency", id="another adjacency"),
        pytest.param({"unit": ""}, "unit", id="an empty unit column"),
    ],
)
def test_a_release_that_is_not_understood_is_refused(change: dict[str, Any], field: str) -> None:
    ReleaseSpec(**GOOD)
    with pytest.raises(ParameterError, match=rf"^{field}: "):
        ReleaseSpec(**{**GOOD, **change})


GOOD_TRAINING: dict[str, Any] = {
    **GOOD,
    "purpose": "training",
    "mechanism": "dp_sgd",
    "event": dpsgd_event(noise_multiplier=1.0, sampling_probability=0.02, steps=5),
    "parameters": {"l2_clip_norm": 1.0, "expected_units": 20.0, "noise": "discrete_gaussian"},
}


@pytest.mark.parametrize("noise", ["discrete_gaussian", "float_gaussian"])
def test_training_says_which_noise_it_used_and_the_ledger_keeps_it(noise: str) -> None:
    ledger = memory_ledger()
    approve(ledger)
    parameters = {**GOOD_TRAINING["parameters"], "noise": noise}
    ledger.reserve(ReleaseSpec(**{**GOOD_TRAINING, "parameters": parameters}))
    (_, reserve) = parse_ledger_lines(ledger.export_lines())
    assert isinstance(reserve, ReserveEntry)
    assert reserve.parameters == parameters
    verify(ledger.entries())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"noise": "laplace"}, "noise", id="another noise"),
        pytest.param({"noise": ""}, "noise", id="an empty noise"),
        pytest.param({"noise": 1.0}, "noise", id="a number for the noise"),
        pytest.param({"l2_clip_norm": 0.0}, "l2_clip_norm", id="no clip norm"),
        pytest.param({"l2_clip_norm": math.nan}, "l2_clip_norm", id="a clip norm that is NaN"),
        pytest.param({"l2_clip_norm": "one"}, "l2_clip_norm", id="a clip norm in words"),
        pytest.param({"expected_units": math.inf}, "expected_units", id="infinite denominator"),
        pytest.param({"expected_units": -2.0}, "expected_units", id="negative denominator"),
        pytest.param({"seed": 1.0}, "parameters", id="a parameter too many"),
    ],
)
def test_training_that_is_not_understood_is_refused(change: dict[str, Any], field: str) -> None:
    ReleaseSpec(**GOOD_TRAINING)
    parameters = {**GOOD_TRAINING["parameters"], **change}
    with pytest.raises(ParameterError, match=rf"^{field}: "):
        ReleaseSpec(**{**GOOD_TRAINING, "parameters": parameters})


def test_training_without_its_noise_is_refused() -> None:
    parameters = {"l2_clip_norm": 1.0, "expected_units": 20.0}
    with pytest.raises(ParameterError, match=r"^parameters: .* and noise"):
        ReleaseSpec(**{**GOOD_TRAINING, "parameters": parameters})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 501.0])
def test_caps_that_are_none_are_refused(value: float) -> None:
    for name in ("total_epsilon", "study_epsilon"):
        good: dict[str, Any] = {"target_delta": 1e-6, "total_epsilon": 1.0, "study_epsilon": 1.0}
        with pytest.raises(ParameterError, match=rf"^{name}: "):
            BudgetCaps(**{**good, name: value})
    with pytest.raises(ParameterError, match=r"^s: "):
        BudgetCaps(
            target_delta=1e-6, total_epsilon=1.0, study_epsilon=1.0, study_overrides={"s": value}
        )
    if value != 501.0 and value != 0.0:
        with pytest.raises(ParameterError, match=r"^target_delta: "):
            BudgetCaps(target_delta=value, total_epsilon=1.0, study_epsilon=1.0)


# --- what a dishonest site could write, with its own key --------------------------------------


@pytest.mark.parametrize(
    "field",
    ["epsilon_after", "epsilon_rdp_after", "study_epsilon_after", "study_epsilon_rdp_after"],
)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_wrong_epsilon_is_named_even_if_signed(field: str, factor: float) -> None:
    honest = getattr(sample_ledger().entries()[3], field)
    with pytest.raises(LedgerError, match=rf"^entry 3: {field}: the entry says .* recomputed"):
        verify(rewritten({3: {field: honest * factor}}))


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        pytest.param(1, {"total_cap": 0.1}, "above the cap of 0.1", id="over the recorded cap"),
        pytest.param(1, {"study_cap": 0.1}, "above the cap of 0.1", id="over the study's cap"),
        pytest.param(1, {"plan_hash": "b" * 64}, "approved plan", id="another plan"),
        pytest.param(1, {"study_id": "other"}, "has not approved", id="a study not approved"),
        pytest.param(1, {"attempt": 1}, "attempt: expected 0", id="a wrong attempt"),
        pytest.param(1, {"mechanism": "laplace"}, "mechanism: expected", id="unknown mechanism"),
        pytest.param(1, {"adjacency": "replace_one"}, "adjacency", id="another adjacency"),
        pytest.param(
            1,
            {"parameters": {"l2_sensitivity": 100.0, "std": 10.0}},
            "std: expected at least 16",
            id="noise below 16 steps",
        ),
        pytest.param(
            3,
            {
                "parameters": {
                    "l2_clip_norm": 1.0,
                    "expected_units": 20.0,
                    "noise": "laplace",
                }
            },
            "noise: expected discrete_gaussian or float_gaussian, got 'laplace'",
            id="training with an unknown noise",
        ),
        pytest.param(
            3,
            {"parameters": {"l2_clip_norm": 1.0, "expected_units": 20.0}},
            "parameters: dp_sgd needs exactly",
            id="training that hides its noise",
        ),
        pytest.param(1, {"site": "hospital-b"}, "belongs to site 'hospital-b'", id="another site"),
        pytest.param(1, {"population": "staff"}, "population 'staff'", id="another population"),
        pytest.param(
            1,
            {"time": "2026-01-30T12:00:00.000000Z"},
            "is before the entry before it",
            id="time back",
        ),
        pytest.param(2, {"reserve_hash": "0" * 64}, "does not hold", id="a commit of nothing"),
        pytest.param(2, {"round_id": 7}, "it commits entry 1", id="a commit of another round"),
        pytest.param(2, {"output_bytes": 0}, "output_bytes", id="an empty output"),
        pytest.param(
            4, {"attempt": 0}, "attempt: expected 1", id="a retry that hides the first try"
        ),
        pytest.param(
            0, {"expires": "2026-01-31T11:59:59.000000Z"}, "expired on", id="approved after its end"
        ),
    ],
)
def test_a_broken_rule_is_named_even_if_signed(
    position: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LedgerError, match=rf"^entry {position}: .*{message}"):
        verify(rewritten({position: changes}))


def test_spending_without_saying_so_is_found() -> None:
    # The dishonest site drops the reservation that crashed and keeps the rest consistent.
    with pytest.raises(LedgerError, match=r"^entry 3: study_epsilon_after: "):
        verify(rewritten({4: {"attempt": 0}}, drop=(3,)))


def test_the_agreed_caps_count_and_not_only_the_recorded_ones() -> None:
    entries = sample_ledger().entries()
    tight = BudgetCaps(target_delta=1e-6, total_epsilon=0.5, study_epsilon=0.5)
    with pytest.raises(LedgerError, match=r"^entry \d: epsilon of .* above the cap of 0\.5"):
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
    with pytest.raises(LedgerError, match=r"^entry 0: previous_hash"):
        verify_ledger(entries, public_key=AUDITOR, caps=CAPS)
    with pytest.raises(LedgerError, match=r"^entry 0: it belongs to site 'hospital-a'"):
        verify(entries, site="hospital-b")
    with pytest.raises(ParameterError, match="public_key"):
        verify_ledger(entries, public_key=b"short", caps=CAPS)


# --- countersignatures ------------------------------------------------------------------------


def signed_head(ledger: MemoryLedger) -> Countersignature:
    return countersign(ledger.head(), auditor="auditor", signing_key=AUDITOR_KEY, time=START)


def test_a_countersigned_ledger_verifies_and_may_grow() -> None:
    ledger = sample_ledger()
    first = countersign(
        memory_ledger().head(), auditor="auditor", signing_key=AUDITOR_KEY, time=START
    )
    second = signed_head(ledger)
    length = len(ledger.entries())
    ledger.reserve(statistics_spec(5))
    summary = verify(ledger.entries(), countersignatures=[first, second], auditor_key=AUDITOR)
    assert summary.countersigned_length == length
    for one in (first, second):
        assert parse_countersignature(one.to_bytes()) == one


def test_a_cut_tail_shows() -> None:
    ledger = sample_ledger()
    seen = signed_head(ledger)
    for kept in range(1, len(ledger.entries())):
        entries = ledger.entries()[:kept]
        verify(entries)
        with pytest.raises(LedgerError, match=rf"^entry {kept}: missing.*tail was cut off"):
            verify(entries, countersignatures=[seen], auditor_key=AUDITOR)


def test_a_rewritten_history_shows() -> None:
    ledger = sample_ledger()
    seen = signed_head(ledger)
    forged = rewritten({0: {"statement": "another reason"}})
    verify(forged)
    with pytest.raises(LedgerError, match="rewritten or forked"):
        verify(forged, countersignatures=[seen], auditor_key=AUDITOR)


def test_a_countersignature_of_somebody_else_or_another_ledger_is_refused() -> None:
    ledger = sample_ledger()
    seen = signed_head(ledger)
    with pytest.raises(LedgerError, match="not the auditor's"):
        verify(ledger.entries(), countersignatures=[seen], auditor_key=SITE)
    with pytest.raises(LedgerError, match="public key is needed"):
        verify(ledger.entries(), countersignatures=[seen])
    head = dataclasses.replace(ledger.head(), site="hospital-b")
    other = countersign(head, auditor="auditor", signing_key=AUDITOR_KEY, time=START)
    with pytest.raises(LedgerError, match="it is for site 'hospital-b'"):
        verify(ledger.entries(), countersignatures=[other], auditor_key=AUDITOR)


def test_every_changed_byte_of_a_countersignature_is_found() -> None:
    raw = signed_head(sample_ledger()).to_bytes()
    for position in range(len(raw)):
        for flip in (1, 2, 128):
            changed = bytearray(raw)
            changed[position] ^= flip
            with pytest.raises(LedgerError):
                check_countersignature(parse_countersignature(bytes(changed)), auditor_key=AUDITOR)


def test_names_and_keys_of_a_ledger_are_checked() -> None:
    with pytest.raises(ParameterError, match=r"^site: "):
        LedgerIdentity(site="", population="patients", public_key=SITE)
    with pytest.raises(ParameterError, match=r"^public_key: "):
        LedgerIdentity(site="a", population="patients", public_key=b"")
    head = LedgerHead(site="a", population="b", index=-1, entry_hash="0" * 64)
    with pytest.raises(ParameterError, match=r"^auditor: "):
        countersign(head, auditor="", signing_key=AUDITOR_KEY, time=datetime.now(UTC))
