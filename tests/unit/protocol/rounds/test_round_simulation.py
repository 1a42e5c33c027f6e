"""A whole study over a board in memory: who does what next, and what happens when one vanishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from protocol_world import make_cast, make_plan
from simulated_parties import World, make_world
from simulated_site import FOUR, ROUND_0, owes

from lada_clients.auditor.runner import write_export
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.rounds.tasks import Done, GiveUp, Wait
from lada_protocol.wire.messages import CohortBody, MaskKeyBody, parse_body
from lada_secure.method.plan import DEMAND, STATISTICS


def _sum_of(world: World, attempt: Attempt, sites: tuple[str, ...]) -> list[int]:
    return np.sum([world.sites[one].vector(attempt) for one in sites], axis=0).tolist()


@pytest.mark.parametrize("sites", [("site-a", "site-b", "site-c"), (*FOUR, "site-e")])
def test_a_study_runs_to_its_end_and_every_opened_sum_is_exact(
    tmp_path: Path, sites: tuple[str, ...]
) -> None:
    world = make_world(tmp_path, sites=sites)

    world.run()

    assert world.coordinator.next() == Done()
    assert world.auditor_step() == Done()
    assert all(site.step() == Done() for site in world.sites.values())
    index = world.coordinator.index
    for round_id in range(world.plan.rounds):
        for purpose in (STATISTICS, DEMAND):
            attempt = Attempt(round_id=round_id, purpose=purpose, number=0)
            opened = index.opened(round_id, purpose)
            values = opened_values(world.board.payload(opened.message_hash), world.plan, purpose)
            assert values == _sum_of(world, attempt, sites)
        closes = index.all(Kind.CLOSE, round_id=round_id)
        assert set(closes) == {"coordinator", "auditor", *sites}
        assert len({one.header.body["transcript_sha256"] for one in closes.values()}) == 1


def test_a_site_that_vanishes_before_the_opening_leads_to_a_new_attempt_with_fresh_keys(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS)
        )
    )
    gone = world.sites.pop("site-d")
    world.run()
    waiting = world.coordinator.next()
    assert isinstance(waiting, Wait)
    assert waiting.parties == ("site-d",)
    assert waiting.attempt == ROUND_0
    spent = {name: one.book.epsilon_spent(1e-5) for name, one in world.sites.items()}

    world.coordinator.given_up.add((0, "site-d"))
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS)
        )
    )

    index = world.coordinator.index
    assert index.at(Kind.ABORT, ROUND_0, sender="coordinator") is not None
    assert index.at(Kind.OPENED, ROUND_0, sender="auditor") is None
    second = Attempt(round_id=0, purpose=STATISTICS, number=1)
    cohort = index.at(Kind.COHORT, second, sender="coordinator")
    assert cohort is not None
    assert parse_body(cohort, CohortBody).sites == ["site-a", "site-b", "site-c"]
    for name in world.sites:
        keys = [
            parse_body(found, MaskKeyBody).public_key
            for attempt in (ROUND_0, second)
            if (found := index.at(Kind.MASK_KEY, attempt, sender=name)) is not None
        ]
        assert len(set(keys)) == 2
    opened = index.opened(0, STATISTICS)
    values = opened_values(world.board.payload(opened.message_hash), world.plan, STATISTICS)
    assert values == _sum_of(world, second, ("site-a", "site-b", "site-c"))
    assert {name: one.book.epsilon_spent(1e-5) for name, one in world.sites.items()} == spent
    assert gone.me.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS) == []


def test_the_survivors_finish_the_study_and_the_evidence_verifies(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS)
        )
    )
    world.sites.pop("site-d")
    world.coordinator.given_up.update({(0, "site-d"), (1, "site-d")})

    world.run()

    assert world.coordinator.next() == Done()
    assert set(world.coordinator.index.all(Kind.TRAINED, round_id=1)) == set(world.sites)


def test_a_cohort_below_the_minimum_ends_the_study_with_its_reason(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS)
        )
    )
    world.sites.pop("site-c")
    world.run()
    world.coordinator.given_up.add((0, "site-c"))
    world.coordinator.step()

    task = world.coordinator.step()

    assert isinstance(task, GiveUp)
    assert task.code == "cohort_too_small"
    assert "2 sites are left, 3 are needed" in task.message
    assert world.auditor_step() == Done(failure=task.message)
    assert all(site.step() == Done(failure=task.message) for site in world.sites.values())
    assert not world.coordinator.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS)


def test_sites_that_never_answer_the_plan_are_given_up_and_counted(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    silent = [world.sites.pop(name) for name in ("site-c", "site-d")]
    world.run()
    assert isinstance(world.coordinator.next(), Wait)
    world.coordinator.given_up.add((-1, "site-d"))
    assert isinstance(world.coordinator.next(), Wait)

    world.coordinator.given_up.add((-1, "site-c"))

    task = world.coordinator.next()
    assert isinstance(task, GiveUp)
    assert task.code == "cohort_too_small"
    assert len(silent) == 2


def test_one_silent_site_of_four_does_not_hold_the_study_up(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.sites.pop("site-b")
    world.run()
    world.coordinator.given_up.add((-1, "site-b"))

    task = world.coordinator.next()

    assert owes(task, Kind.COHORT)
    assert task.sites == ("site-a", "site-c", "site-d")


def test_an_auditor_that_vanishes_before_its_keys_ends_the_study(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    assert isinstance(world.coordinator.next(), Wait)
    world.coordinator.given_up.add((-1, "auditor"))

    task = world.coordinator.next()

    assert isinstance(task, GiveUp)
    assert task.code == "timeout"


def test_an_auditor_that_vanishes_at_the_opening_ends_the_study(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.to_sum()
    world.coordinator.step()
    waiting = world.coordinator.next()
    assert isinstance(waiting, Wait)
    assert waiting.parties == ("auditor",)
    world.coordinator.given_up.add((0, "auditor"))

    task = world.coordinator.next()

    assert isinstance(task, GiveUp)
    assert task.code == "timeout"


def test_a_refused_opening_ends_the_study_with_the_auditor_s_reason(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites, names={})

    world.auditor_step()

    task = world.coordinator.next()
    assert isinstance(task, GiveUp)
    assert task.code == "opening_refused"
    assert "the sum names []" in task.message


def test_a_site_outside_the_cohort_waits_and_sends_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.admit_all()
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": ["site-a", "site-b", "site-c"]})

    task = world.sites["site-d"].step()

    assert isinstance(task, Wait)
    assert "not in this cohort" in task.awaited


def test_every_party_stands_where_it_was_after_reading_the_board_again(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.to_sum(DEMAND)
    for name, site in world.sites.items():
        before = site.step()
        site.me._sequence = 0
        site.me.join(wait_s=5.0)
        assert site.step() == before, name


def test_a_finished_study_leaves_evidence_that_verifies(tmp_path: Path) -> None:
    cast_ = make_cast()
    world = make_world(tmp_path, cast_=cast_, plan=make_plan(rounds=1))
    world.run()
    identity = tmp_path / "identity"
    identity.mkdir()
    (identity / "ca.crt").write_bytes(cast_.ca_pem)

    write_export(
        tmp_path / "export", world.auditor.participant, world.auditor.ledgers, identity=identity
    )

    files = {
        str(path.relative_to(tmp_path / "export")): path.read_bytes()
        for path in (tmp_path / "export").rglob("*")
        if path.is_file()
    }
    verdict = verify_evidence(files)
    assert verdict.faults == ()
    assert (verdict.rounds, verdict.openings) == (1, 2)
    assert set(verdict.ledgers) == set(world.sites)
