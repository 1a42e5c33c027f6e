"""The ledger's rules, on the ledger in memory; every store passes the same suite elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from datetime import timedelta
from typing import Any

import pytest
from ledger_world import (
    CAPS,
    IDENTITY,
    NEW_KEY,
    PLAN,
    SITE,
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
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent, composed_event
from lada_secure.privacy.ledger.entries import (
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    ResumeEntry,
    commit_to_output,
    parse_ledger_lines,
)
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger


def verify(
    entries: tuple[LedgerEntry, ...],
    *,
    key: bytes = SITE,
    caps: BudgetCaps | None = CAPS,
    **more: Any,
) -> LedgerSummary:
    return verify_ledger(entries, public_key=key, caps=caps, **more)


def test_an_untouched_ledger_verifies_and_says_what_it_cost() -> None:
    ledger = sample_ledger()
    entries = parse_ledger_lines(ledger.export_lines())
    assert entries == ledger.entries()
    summary = verify(entries, key=raw_public_key(NEW_KEY))
    events = [entry.event for entry in entries if isinstance(entry, ReserveEntry)]
    assert summary.epsilon == pytest.approx(epsilon(events, target_delta=1e-6))
    assert summary.epsilon == pytest.approx(ledger.epsilon_spent(1e-6), rel=1e-6)
    assert summary.epsilon < summary.epsilon_rdp
    counts = (summary.reservations, summary.resumes, summary.commits, summary.uncommitted)
    assert counts == (4, 1, 2, 2)
    assert [(one.study_id, one.decision, one.resumes) for one in summary.studies] == [
        ("second", "withdraw", 0),
        ("study", "approve", 1),
    ]
    assert summary.entries == ledger.entries()
    assert summary.identity == ledger.identity == IDENTITY
    assert summary.public_key == NEW_KEY.public_key().public_bytes_raw().hex()
    assert (summary.started, summary.restart) == (entries[0].time, None)
    by_study = {one.study_id: one.epsilon for one in summary.studies}
    assert by_study["study"] == pytest.approx(ledger.epsilon_spent(1e-6, study_id="study"))


def test_a_ledger_without_any_entry_is_none() -> None:
    assert parse_ledger_lines(b"") == ()
    with pytest.raises(LedgerError, match="expected at least its start or restart entry"):
        verify(())
    with pytest.raises(LedgerError, match=r"^entry 0: expected the start or restart entry"):
        verify(sample_ledger().entries()[1:])


def test_a_new_ledger_says_so_and_holds_its_start_only() -> None:
    ledger = memory_ledger()
    assert ledger.started_now
    assert [entry.kind for entry in ledger.entries()] == ["start"]
    assert verify(ledger.entries()).epsilon == 0.0
    assert ledger.public_key == SITE


def test_two_ledgers_of_one_site_and_population_are_not_the_same() -> None:
    first, second = (LedgerIdentity.new(site="a", population="p") for _ in range(2))
    assert first.ledger_id != second.ledger_id
    assert first.genesis_hash != second.genesis_hash


def test_a_retry_of_what_left_no_output_resumes_its_reservation_and_costs_nothing() -> None:
    ledger = memory_ledger()
    approve(ledger)
    first = ledger.reserve(training_spec())
    spent = ledger.epsilon_spent(1e-6)
    assert spent == first.entry.epsilon_after > 0
    for attempt in (1, 2):
        assert ledger.reserve(training_spec()) == first
        assert ledger.epsilon_spent(1e-6) == spent
        newest = ledger.entries()[-1]
        assert isinstance(newest, ResumeEntry)
        assert (newest.reserve_hash, newest.attempt) == (first.entry_hash, attempt)
    ledger.commit(first, b"weights")
    summary = verify(ledger.entries())
    assert (summary.reservations, summary.resumes, summary.uncommitted) == (1, 2, 0)


def test_another_release_under_the_same_key_pays_and_the_first_stays_spent() -> None:
    ledger = memory_ledger()
    approve(ledger)
    first = ledger.reserve(training_spec())
    second = ledger.reserve(training_spec(steps=21))
    assert (first.entry.attempt, second.entry.attempt) == (0, 1)
    assert ledger.epsilon_spent(1e-6) == second.entry.epsilon_after > first.entry.epsilon_after
    again = ledger.reserve(training_spec())
    assert again == first, "each of them can be used again"
    assert ledger.epsilon_spent(1e-6) == second.entry.epsilon_after
    ledger.commit(again, b"weights")
    with pytest.raises(LedgerError, match="committed another output already"):
        ledger.commit(second, b"weights")
    assert verify(ledger.entries()).uncommitted == 1


@pytest.mark.parametrize(
    "change",
    [
        {"event": GaussianEvent(19.0)},
        {"parameters": {"l2_sensitivity": 100.0, "std": 2001.0}},
        {"unit": "household"},
        {"plan_hash": "b" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_not_the_very_same_release_pays(change: dict[str, Any]) -> None:
    ledger = memory_ledger()
    approve(ledger)
    spec = ReleaseSpec(**GOOD)
    first = ledger.reserve(spec)
    other = dataclasses.replace(spec, **change)
    approve(ledger, plan_hash=other.plan_hash)
    second = ledger.reserve(other)
    assert second.entry_hash != first.entry_hash
    assert second.entry.attempt == 1
    assert ledger.epsilon_spent(1e-6) > first.entry.epsilon_after
    assert ledger.reserve(other) == second


def test_a_resume_needs_an_approval_as_a_reservation_does() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    approve(ledger)
    ledger.reserve(training_spec())
    clock.advance(24 * 3600 + 1)
    before = ledger.export_lines()
    with pytest.raises(LedgerError, match="expired on"):
        ledger.reserve(training_spec())
    assert ledger.export_lines() == before


def test_a_resume_is_free_even_where_the_caps_would_not_allow_another_release() -> None:
    spent = epsilon([training_spec().event], target_delta=1e-6)
    caps = BudgetCaps(target_delta=1e-6, total_epsilon=spent * 1.001, study_epsilon=spent * 1.001)
    ledger = memory_ledger(caps=caps)
    approve(ledger)
    paid = ledger.reserve(training_spec())
    assert ledger.reserve(training_spec()) == paid
    with pytest.raises(PrivacyBudgetExceeded):
        ledger.reserve(training_spec(1))


def test_a_committed_key_returns_its_bytes_and_spends_nothing() -> None:
    ledger = memory_ledger()
    approve(ledger)
    entry = ledger.keep(ledger.reserve(training_spec()), b"weights")
    spent, head = ledger.epsilon_spent(1e-6), ledger.entries()[-1]
    again = ledger.reserve(training_spec())
    assert again.stored_output == b"weights" == ledger.stored_output(training_spec().key)
    assert ledger.keep(again, b"weights") == entry, "committing the same again changes nothing"
    assert (ledger.epsilon_spent(1e-6), ledger.entries()[-1]) == (spent, head)


def test_nothing_of_an_output_can_be_told_from_the_ledger() -> None:
    commitments = set()
    for _ in range(2):
        ledger = memory_ledger()
        approve(ledger)
        entry = ledger.keep(ledger.reserve(training_spec()), b"weights")
        commitments.add(entry.output_commitment)
        exported = ledger.export_lines()
        for size in (b"%d" % len(b"weights"), b"output_bytes"):
            assert b":" + size not in exported.splitlines()[-1]
        for digest in (hashlib.sha256, hashlib.sha512, hashlib.blake2b):
            assert digest(b"weights").hexdigest().encode() not in exported
    assert len(commitments) == 2, "equal outputs are not seen to be equal"


def test_a_commitment_opens_with_its_salt_and_its_output_only() -> None:
    salt = bytes(range(32))
    commitment = commit_to_output(b"weights", salt=salt)
    assert commitment == commit_to_output(b"weights", salt=salt)
    assert commitment != commit_to_output(b"weight", salt=salt)
    assert commitment != commit_to_output(b"weights", salt=bytes(32))
    with pytest.raises(ParameterError, match="salt: expected 32 bytes, got 31"):
        commit_to_output(b"weights", salt=salt[1:])


def test_a_second_output_for_a_key_is_refused() -> None:
    ledger = memory_ledger()
    approve(ledger)
    first, second = ledger.reserve(training_spec()), ledger.reserve(training_spec())
    ledger.commit(first, b"weights")
    with pytest.raises(LedgerError, match="committed another output already"):
        ledger.commit(second, b"other weights")
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
            head, spent = ledger.entries()[-1], ledger.epsilon_spent(1e-6)
            try:
                ledger.reserve(statistics_spec(round_id, study_id=study, noise_multiplier=15.0))
            except PrivacyBudgetExceeded as error:
                refused_by.add("study" if f"study {study} would" in str(error) else "all")
                assert (ledger.entries()[-1], ledger.epsilon_spent(1e-6)) == (head, spent)
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


GOOD: dict[str, Any] = {
    "study_id": "study",
    "plan_hash": PLAN,
    "round_id": 0,
    "purpose": "statistics",
    "mechanism": "discrete_gaussian",
    "event": GaussianEvent(20.0),
    "parameters": {"l2_sensitivity": 100.0, "std": 2000.0},
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"mechanism": "laplace"}, "mechanism", id="an unknown mechanism"),
        pytest.param({"mechanism": "none"}, "mechanism", id="a non-private release"),
        pytest.param({"event": None}, "event", id="no event"),
        pytest.param(
            {"event": composed_event([GaussianEvent(1.0), GaussianEvent(2.0)])},
            "event",
            id="an event of another mechanism",
        ),
        pytest.param({"event": GaussianEvent(21.0)}, "event", id="more noise claimed than added"),
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
    "event": DpSgdEvent(noise_multiplier=1.0, sampling_probability=0.02, steps=5),
    "parameters": {"l2_clip_norm": 1.0, "expected_units": 20.0, "noise": "discrete_gaussian"},
}


@pytest.mark.parametrize("noise", ["discrete_gaussian", "float_gaussian"])
def test_training_says_which_noise_it_used_and_the_ledger_keeps_it(noise: str) -> None:
    ledger = memory_ledger()
    approve(ledger)
    parameters = {**GOOD_TRAINING["parameters"], "noise": noise}
    ledger.reserve(ReleaseSpec(**{**GOOD_TRAINING, "parameters": parameters}))
    (_, _, reserve) = parse_ledger_lines(ledger.export_lines())
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
