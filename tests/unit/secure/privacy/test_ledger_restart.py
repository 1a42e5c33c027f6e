"""A ledger that is lost for good begins again by two people's word, and what it had cost counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ledger_world import (
    AUDITOR,
    AUDITOR_KEY,
    CAPS,
    NEW_KEY,
    SITE,
    SITE_KEY,
    START,
    Clock,
    approve,
    grant_for,
    memory_ledger,
    restarted_ledger,
    sample_ledger,
    statistics_spec,
    training_spec,
)

from lada_secure.errors import LedgerError, ParameterError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting.accountant import epsilon, epsilon_rdp
from lada_secure.privacy.accounting.events import (
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    event_parts,
)
from lada_secure.privacy.ledger.carried_budget import (
    grant_restart,
    merged_event,
    spending,
)
from lada_secure.privacy.ledger.entries import (
    LedgerIdentity,
    ReserveEntry,
    RestartEntry,
    parse_entry,
    parse_ledger_lines,
    sign_entry,
)
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant, parse_grant
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.ledger.verification import verify_ledger

LOST = sample_ledger()
GRANT = grant_for(LOST)


def test_the_new_ledger_begins_with_what_the_lost_one_had_cost() -> None:
    ledger = restarted_ledger(GRANT)
    spent = LOST.epsilon_spent(1e-6)
    assert ledger.epsilon_spent(1e-6) == pytest.approx(spent, rel=1e-4)
    entries = parse_ledger_lines(ledger.export_lines())
    (first,) = entries
    assert isinstance(first, RestartEntry)
    grant = first.grant
    assert (grant.requested_by, grant.granted_by) == ("dr.weber", "ms.okafor")
    assert grant.previous_ledger_id == LOST.identity.ledger_id != grant.ledger_id
    assert (grant.previous_index, grant.previous_hash) == (11, LOST.entries()[-1].entry_hash)
    assert grant.studies == ("second", "study")
    summary = verify_ledger(entries, public_key=SITE, caps=None, auditor_key=AUDITOR)
    assert summary.restart == grant
    assert summary.target_delta == 1e-6
    assert summary.epsilon == pytest.approx(spent, rel=1e-4)
    assert summary.epsilon == pytest.approx(grant.carried_epsilon)
    assert summary.identity.ledger_id == ledger.identity.ledger_id == grant.ledger_id
    assert ledger.started_now


def test_later_spending_is_counted_on_top_of_what_was_carried() -> None:
    ledger = restarted_ledger(GRANT)
    approve(ledger, "third")
    entry = ledger.reserve(statistics_spec(study_id="third")).entry
    events = [*(event for _, event in spending(LOST.entries())), statistics_spec().event]
    assert entry.epsilon_after == pytest.approx(epsilon(events, target_delta=1e-6), rel=1e-4)
    assert entry.study_epsilon_after < entry.epsilon_after, "a new study did not spend before"
    ledger.commit(ledger.reserve(statistics_spec(study_id="third")), b"noised")
    summary = verify_ledger(ledger.entries(), public_key=SITE, caps=CAPS, auditor_key=AUDITOR)
    assert summary.epsilon == pytest.approx(entry.epsilon_after, rel=1e-4)
    by_study = {one.study_id: one.epsilon for one in summary.studies}
    assert by_study["third"] == pytest.approx(entry.study_epsilon_after)
    assert by_study["study"] == by_study["second"] == pytest.approx(GRANT.carried_epsilon)


def test_a_study_that_had_spent_before_has_all_of_it_counted_against_its_own_cap() -> None:
    ledger = restarted_ledger(GRANT)
    approve(ledger)
    entry = ledger.reserve(statistics_spec(7)).entry
    assert entry.study_epsilon_after == pytest.approx(entry.epsilon_after)
    assert entry.study_epsilon_after > GRANT.carried_epsilon
    verify_ledger(ledger.entries(), public_key=SITE, caps=CAPS)


def test_a_budget_that_was_spent_stays_spent() -> None:
    tight = BudgetCaps(
        target_delta=1e-6,
        total_epsilon=GRANT.carried_epsilon * 1.01,
        study_epsilon=GRANT.carried_epsilon * 1.01,
    )
    ledger = restarted_ledger(GRANT, caps=tight)
    approve(ledger, "third")
    with pytest.raises(PrivacyBudgetExceeded, match="all studies together"):
        ledger.reserve(training_spec(study_id="third"))


def test_a_ledger_lost_twice_carries_both() -> None:
    second = restarted_ledger(GRANT)
    approve(second, "third")
    second.reserve(statistics_spec(study_id="third"))
    again = grant_for(second)
    assert again.studies == ("second", "study", "third")
    third = restarted_ledger(again)
    assert third.epsilon_spent(1e-6) == pytest.approx(second.epsilon_spent(1e-6), rel=1e-4)


def test_a_ledger_that_had_spent_nothing_carries_nothing() -> None:
    grant = grant_for(memory_ledger())
    assert (grant.carried, grant.studies, grant.carried_epsilon) == (None, (), 0.0)
    ledger = restarted_ledger(grant)
    approve(ledger)
    ledger.reserve(statistics_spec())
    summary = verify_ledger(ledger.entries(), public_key=SITE, caps=CAPS, auditor_key=AUDITOR)
    assert summary.epsilon == epsilon([statistics_spec().event], target_delta=1e-6)


def test_only_the_auditor_that_is_known_grants() -> None:
    impostor = GRANT.signed(NEW_KEY)
    check_grant(impostor, where="restart")
    with pytest.raises(LedgerError, match="not by the auditor's key"):
        check_grant(impostor, where="restart", auditor_key=AUDITOR)
    ledger = begin(impostor)
    with pytest.raises(LedgerError, match=r"^entry 0: the restart was granted by auditor with"):
        verify_ledger(ledger.entries(), public_key=SITE, caps=None, auditor_key=AUDITOR)


@pytest.mark.parametrize(
    "change",
    [
        {"carried": GaussianEvent(1e6)},
        {"carried_epsilon": 0.01},
        {"studies": ("study",)},
        {"site": "hospital-b"},
        {"population": "staff"},
        {"ledger_id": "ab" * 32},
        {"previous_index": 3},
        {"requested_by": "somebody.else"},
        {"granted_by": "somebody.else"},
        {"time": "2027-01-31T12:00:00.000000Z"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_grant_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    changed = dataclasses.replace(GRANT, **change)
    with pytest.raises(LedgerError, match="signature is not the auditor's"):
        check_grant(changed, where="restart")
    with pytest.raises(LedgerError, match=r"^entry 0: the grant's signature is not the auditor's"):
        begin(changed)


def begin(grant: RestartGrant) -> MemoryLedger:
    """A ledger that believes a grant without knowing the auditor."""
    return MemoryLedger(
        identity=LedgerIdentity(
            site=grant.site, population=grant.population, ledger_id=grant.ledger_id
        ),
        signing_key=SITE_KEY,
        caps=CAPS,
        clock=Clock(),
        grant=grant,
    )


def test_a_grant_for_another_key_begins_nothing() -> None:
    grant = grant_for(LOST, key=NEW_KEY)
    with pytest.raises(LedgerError, match="it was granted to the key"):
        restarted_ledger(grant)


def test_a_restart_in_the_name_of_another_ledger_is_refused() -> None:
    for identity, message in (
        (dataclasses.replace(LOST.identity), "it begins the ledger"),
        (
            LedgerIdentity(site="b", population=GRANT.population, ledger_id=GRANT.ledger_id),
            "the restart was granted to site 'hospital-a'",
        ),
    ):
        with pytest.raises(LedgerError, match=message):
            MemoryLedger(
                identity=identity,
                signing_key=SITE_KEY,
                caps=CAPS,
                clock=Clock(),
                grant=GRANT,
            )


def test_what_the_auditor_says_was_carried_is_recomputed() -> None:
    low = dataclasses.replace(GRANT, carried_epsilon=0.01).signed(AUDITOR_KEY)
    with pytest.raises(LedgerError, match=r"^entry 0: carried_epsilon: the entry says 0\.01"):
        verify_ledger(restarted_ledger(low).entries(), public_key=SITE, caps=None)


def test_a_reservation_that_forgets_what_was_carried_is_found() -> None:
    ledger = restarted_ledger(GRANT)
    approve(ledger, "third")
    ledger.reserve(statistics_spec(study_id="third"))
    plain = memory_ledger()
    approve(plain, "third")
    alone = plain.reserve(statistics_spec(study_id="third")).entry.epsilon_after

    *before, entry = ledger.entries()
    assert isinstance(entry, ReserveEntry)
    forged = sign_entry(dataclasses.replace(entry, epsilon_after=alone), SITE_KEY)
    with pytest.raises(LedgerError, match=r"^entry 2: epsilon_after: "):
        verify_ledger((*before, forged), public_key=SITE, caps=CAPS)


def test_a_grant_survives_its_bytes_and_has_one_spelling() -> None:
    raw = GRANT.line()
    assert parse_grant(raw) == GRANT
    for changed in (raw + b" ", b" " + raw, raw.replace(b'"version":2', b'"version":3')):
        with pytest.raises(LedgerError, match="restart grant"):
            parse_grant(changed)


def test_every_changed_byte_of_a_grant_is_found() -> None:
    raw = GRANT.line()
    for position in range(len(raw)):
        for flip in (1, 32, 128):
            changed = bytearray(raw)
            changed[position] ^= flip
            with pytest.raises(LedgerError):
                check_grant(parse_grant(bytes(changed)), where="restart")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studies": ()}, "studies: expected those, and only those, that spent"),
        ({"studies": ("study", "second")}, "studies: expected different names, sorted"),
        ({"studies": ("study", "study")}, "studies: expected different names, sorted"),
        ({"carried": None}, "studies: expected those, and only those, that spent"),
        ({"ledger_id": LOST.identity.ledger_id}, "the new ledger has the lost one's"),
        (
            {"target_delta": 0.0},
            "target_delta: Input should be greater than or equal to 0.0000000001, got '0.0'",
        ),
        ({"granted_by": ""}, "granted_by"),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused_even_if_signed(
    change: dict[str, Any], message: str
) -> None:
    grant = dataclasses.replace(GRANT, **change).signed(AUDITOR_KEY)
    with pytest.raises(LedgerError, match=f"restart grant: .*{message}"):
        parse_grant(grant.line())


def test_nothing_can_be_granted_without_knowing_anything() -> None:
    def grant(known: Any, **more: Any) -> RestartGrant:
        good = {"requested_by": "a", "auditor": "b", "granted_by": "c", "target_delta": 1e-6}
        return grant_restart(
            known,
            public_key=SITE,
            signing_key=AUDITOR_KEY,
            time=START,
            **{**good, **more},
        )

    for known in ((), LOST.entries()[1:]):
        with pytest.raises(LedgerError, match="no entry of the lost ledger is known"):
            grant(known)
    for name in ("requested_by", "auditor", "granted_by"):
        with pytest.raises(ParameterError, match=f"^{name}: "):
            grant(LOST.entries(), **{name: "two words"})


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([GaussianEvent(20.0)] * 5 + [GaussianEvent(30.0, count=3)], id="gaussians"),
        pytest.param(
            [DpSgdEvent(noise_multiplier=1.0, sampling_probability=0.02, steps=9)] * 4
            + [GaussianEvent(25.0)],
            id="equal training",
        ),
        pytest.param([GaussianEvent(100.0 + n) for n in range(90)], id="many gaussians"),
        pytest.param(
            [
                DpSgdEvent(noise_multiplier=1.0 + n / 100, sampling_probability=0.01, steps=2)
                for n in range(70)
            ],
            id="many trainings",
        ),
    ],
)
def test_merging_costs_no_less_and_fits_into_one_event(events: list[PrivacyEvent]) -> None:
    merged = merged_event(events)
    assert merged is not None
    assert len(event_parts(merged)) <= 64
    # By RDP, because seventy different trainings take PLD ten seconds.
    exact, carried = (epsilon_rdp(some, target_delta=1e-6) for some in (events, [merged]))
    assert carried >= exact * (1 - 1e-9)
    assert carried <= exact * 1.05


def test_folding_trainings_takes_the_worst_of_each_setting() -> None:
    events = [
        DpSgdEvent(noise_multiplier=1.0 + n, sampling_probability=0.5 / (n + 1), steps=2)
        for n in range(70)
    ]
    merged = merged_event(events)
    assert merged is not None
    parts = event_parts(merged)
    assert all(isinstance(one, DpSgdEvent | GaussianEvent) for one in parts)
    assert sum(one.steps for one in parts if isinstance(one, DpSgdEvent)) == 140


def test_a_restart_entry_of_the_longest_kind_still_fits_into_a_line() -> None:
    studies = tuple(sorted(f"{number:03d}" + "x" * 125 for number in range(200)))
    events: list[PrivacyEvent] = [
        DpSgdEvent(
            noise_multiplier=1.0123456789012345 + n / 7,
            sampling_probability=0.012345678901234567,
            steps=2,
        )
        for n in range(64)
    ]
    grant = dataclasses.replace(GRANT, studies=studies, carried=merged_event(events))
    ledger = restarted_ledger(grant.signed(AUDITOR_KEY))
    line = ledger.entries()[0].line()
    assert parse_entry(line, where="entry 0") == ledger.entries()[0]
