"""A site spends nothing before the auditor has seen that its ledger goes on where it was.

Every study here is a whole one in memory; site-a's ledger changes between two of them.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from federation_world import SITE, Federation, backup_of, forged, granted
from protocol_world import NOW, SLM, make_cast, make_ledger
from simulated_parties import World, exported
from simulated_site import FOUR, Outgoing, owes

from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import check_ledger_claim
from lada_protocol.rounds.tasks import Done, GiveUp, Post, Wait
from lada_protocol.wire.messages import AcceptanceBody, AdmissionBody, FaultBody, parse_body
from lada_secure.errors import PeerError
from lada_secure.privacy.ledger.entries import ReserveEntry


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """After a first study."""
    made = Federation(folder=tmp_path)
    made.finished()
    return made


def _refused(world: World) -> FaultBody:
    """The auditor's answer to site-a, which has spent nothing since and goes on no more."""
    message = world.coordinator.index.find(Kind.REFUSAL, sender="auditor", to=SITE)
    assert message is not None
    assert world.coordinator.index.find(Kind.ADMISSION, sender="auditor", to=SITE) is None
    fault = parse_body(message, FaultBody)
    assert world.sites[SITE].step() == Done(failure=fault.message)
    assert not world.coordinator.index.all(Kind.TRAINED, round_id=0).get(SITE)
    return fault


def test_a_second_study_goes_on_with_the_same_ledgers(federation: Federation) -> None:
    spent = federation.spent()

    world = federation.finished()

    assert federation.spent() > spent
    for name in FOUR:
        found = world.coordinator.index.find(Kind.ADMISSION, sender="auditor", to=name)
        assert found is not None
        acceptance = world.coordinator.index.find(Kind.ACCEPTANCE, sender=name)
        assert acceptance is not None
        body = parse_body(found, AdmissionBody)
        assert body.acceptance == acceptance.message_hash
        assert body.known_entries == parse_body(acceptance, AcceptanceBody).head_index
    verdict = verify_evidence(exported(world, federation.folder / "out"))
    assert verdict.faults == ()
    assert [one.study_id for one in verdict.ledgers[SITE].studies] == ["study-1", "study-2"]


def test_a_new_ledger_is_admitted_and_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Federation(folder=tmp_path).finished()
    said = [one.message for one in caplog.records if one.name == "lada_clients.auditor.service"]
    assert said == [
        f"{name} starts a new ledger with the whole budget, population patients" for name in FOUR
    ]
    caplog.clear()


def test_a_ledger_that_was_put_back_is_refused_before_anything_is_spent(
    federation: Federation,
) -> None:
    whole = federation.books[SITE]
    federation.books[SITE] = backup_of(federation.cast, whole, 4)
    spent = federation.spent()

    world = federation.finished()

    fault = _refused(world)
    assert fault.code == "ledger_behind"
    assert "ends at entry 4, the auditor has seen it up to entry 5" in fault.message
    assert "lada auditor grant-restart" in fault.message
    assert federation.spent() == spent
    # Put back in full, it is admitted in the next study.
    federation.books[SITE] = whole
    admitted = federation.finished().coordinator.index
    assert admitted.find(Kind.ADMISSION, sender="auditor", to=SITE) is not None


def test_a_forked_ledger_is_refused(federation: Federation) -> None:
    fork = backup_of(federation.cast, federation.books[SITE], 2)
    for number in range(9):
        fork.decide(
            "approve",
            study_id="elsewhere",
            plan_hash=f"{number:064x}",
            expires=NOW + timedelta(days=1),
            decided_by="policy",
        )
    federation.books[SITE] = fork
    spent = federation.spent()
    # Longer than the copy: the head alone would not show it, the ledger that comes with it does.
    fault = _refused(federation.finished())
    assert fault.code == "ledger_forked"
    assert federation.spent() == spent, "nothing was reserved under this study"
    federation.books[SITE] = backup_of(federation.cast, fork, 5)
    fault = _refused(federation.finished())
    assert fault.code == "ledger_forked"
    assert "written in two places" in fault.message


def test_a_new_state_folder_is_refused(federation: Federation) -> None:
    federation.books[SITE] = make_ledger(federation.cast, SITE)
    world = federation.finished()
    fault = _refused(world)
    assert fault.code == "other_ledger"
    assert "a new state folder has a new ledger" in fault.message
    assert federation.spent() == 0.0


def test_a_ledger_goes_on_under_a_renewed_key(federation: Federation) -> None:
    # A new roster with other keys for everybody, as after a renewal.
    renewed = make_cast.__wrapped__(FOUR)
    federation.cast = renewed
    for name in FOUR:
        federation.books[name].renew_key(renewed.keys[name], decided_by="dr-meyer")
    world = federation.finished()
    verdict = verify_evidence(exported(world, federation.folder / "out"))
    assert verdict.faults == ()
    assert (
        verdict.ledgers[SITE].public_key == renewed.keys[SITE].public_key().public_bytes_raw().hex()
    )


def test_a_ledger_whose_key_was_not_renewed_pays_for_nothing(federation: Federation) -> None:
    federation.cast = make_cast.__wrapped__(FOUR)
    for name in FOUR[1:]:
        federation.books[name].renew_key(federation.cast.keys[name], decided_by="dr-meyer")
    fault = _refused(federation.finished())
    assert fault.code == "bad_ledger"
    assert "lada site renew-key" in fault.message


def test_a_lost_ledger_restarted_by_two_people_goes_on_with_its_epsilon(
    federation: Federation,
) -> None:
    spent = federation.spent()
    lost = federation.books[SITE]
    grant, federation.books[SITE] = granted(federation, federation.study())
    assert grant.carried_epsilon == pytest.approx(spent)

    world = federation.finished()

    assert federation.spent() > spent
    verdict = verify_evidence(exported(world, federation.folder / "out"))
    assert verdict.faults == ()
    assert verdict.ledgers[SITE].restart == grant
    assert verdict.ledgers[SITE].epsilon > spent
    # The lost one is not lost: it is another ledger now.
    federation.books[SITE] = lost
    assert _refused(federation.finished()).code == "other_ledger"


def test_a_grant_is_no_second_budget_once_the_lost_ledger_went_on(federation: Federation) -> None:
    lost = federation.books[SITE]
    _, restarted = granted(federation, federation.study())
    assert federation.books[SITE] is lost
    federation.finished()
    federation.books[SITE] = restarted
    fault = _refused(federation.finished())
    assert fault.code == "other_ledger"
    assert "that ledger went on" in fault.message


def test_without_the_auditor_s_grant_a_restart_is_another_ledger(federation: Federation) -> None:
    world = federation.study()
    grant, federation.books[SITE] = granted(federation, world)
    (world.auditor.state_dir / "grants" / f"{grant.ledger_id}.json").unlink()
    assert _refused(federation.finished()).code == "other_ledger"


def test_a_site_that_signs_a_grant_of_its_own_loses_no_spending(federation: Federation) -> None:
    world = federation.study()
    grant, _ = granted(federation, world)
    _, federation.books[SITE] = forged(federation, grant)
    before = world.auditor.ledgers.raw(SITE, "patients")
    world = federation.finished()
    assert "another grant than the one" in _refused(world).message
    assert world.auditor.ledgers.raw(SITE, "patients") == before


def test_nobody_spends_before_the_admission_and_the_coordinator_waits_for_it(
    tmp_path: Path,
) -> None:
    federation = Federation(folder=tmp_path)
    world = federation.study()
    for site in world.sites.values():
        assert owes(site.step(), Kind.ACCEPTANCE)
        task = site.step()
        assert isinstance(task, Wait)
        assert (task.awaited, task.parties) == ("the admission", ("auditor",))
        assert not any(isinstance(one, ReserveEntry) for one in site.book.entries())
    world.auditor_step()
    world.auditor_step()
    assert world.auditor_step() == Post(kind=Kind.RECEIPT, to=SITE)
    assert owes(world.auditor_step(), Kind.ADMISSION)
    task = world.coordinator.next()
    assert isinstance(task, Wait)
    assert (task.awaited, task.parties) == ("admissions", ("auditor",))

    world.coordinator.given_up.add((-1, "auditor"))

    ended = world.coordinator.next()
    assert isinstance(ended, GiveUp)
    assert "1 sites take part, 3 are needed" in ended.message


def test_a_study_of_too_few_admitted_sites_ends_with_the_reasons(tmp_path: Path) -> None:
    federation = Federation(folder=tmp_path)
    federation.finished()
    for name in FOUR[:2]:
        federation.books[name] = make_ledger(federation.cast, name)
    world = federation.study()
    world.run()
    ended = world.coordinator.next()
    assert isinstance(ended, Done)
    assert ended.failure is not None
    assert (
        "2 sites can take part, 3 are needed (site-a: site-a, population patients: "
        in ended.failure
    )


def test_an_admission_of_another_acceptance_is_refused(tmp_path: Path) -> None:
    world = Federation(folder=tmp_path).study()
    site = world.sites[SITE]
    site.step()
    site.me.sync()
    other = world.auditor.participant

    other.post(Kind.ADMISSION, {"acceptance": "0" * 64, "known_entries": 0}, to=SITE)
    with pytest.raises(PeerError) as caught:
        site.step()
    assert caught.value.reason == "wrong_admission"


def test_a_ledger_without_the_accepted_entry_is_refused(tmp_path: Path) -> None:
    federation = Federation(folder=tmp_path)
    world = federation.study()
    world.admit_all()
    # Another new ledger than the one that was admitted.
    replaced = make_ledger(federation.cast, SITE)
    replaced.decide(
        "approve",
        study_id=world.plan.study_id,
        plan_hash=world.plan.hash,
        expires=NOW + timedelta(days=30),
        decided_by="policy",
    )
    world.sites[SITE].book = replaced
    world.run()
    message = world.coordinator.index.find(
        Kind.REFUSAL, sender="auditor", to=SITE, round_id=0, purpose="statistics"
    )
    assert message is not None
    assert "history was forked here" in parse_body(message, FaultBody).message


def test_an_acceptance_with_another_head_than_its_ledger_is_refused(tmp_path: Path) -> None:
    federation = Federation(folder=tmp_path)
    world = federation.study()

    def other_head(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.ACCEPTANCE:
            return outgoing
        return Outgoing(body={**outgoing.body, "head_hash": "e" * 64})

    world.sites[SITE].tamper = other_head
    world.run()
    fault = _refused(world)
    assert fault.code == "bad_ledger"
    assert "does not hold the entry 1" in fault.message


def test_a_part_of_a_ledger_is_no_ledger_to_join_with(tmp_path: Path) -> None:
    world = Federation(folder=tmp_path).study()

    def tail(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.LEDGER or outgoing.body["first_index"]:
            return outgoing
        last = outgoing.payload.splitlines(keepends=True)[-1]
        return Outgoing(body={**outgoing.body, "first_index": 1}, payload=last)

    world.sites[SITE].tamper = tail
    world.run()
    assert "the whole ledger is shown" in _refused(world).message


def test_any_ledger_is_fine_where_none_is_known() -> None:
    claim = AcceptanceBody(
        certificate="",
        population="patients",
        ledger_id="a" * 64,
        head_index=70,
        head_hash="b" * 64,
        new_ledger=False,
        slm=SLM,
    )
    check_ledger_claim(claim, (), (), site=SITE, granted=None)
