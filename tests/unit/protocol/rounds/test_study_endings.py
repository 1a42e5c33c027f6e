"""A study that too few sites carried out has failed, for everybody and for whoever verifies it."""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_world import make_plan
from simulated_parties import World, exported, make_world
from simulated_site import FOUR, owes

from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.tasks import Done, Post, Task


def _all_but_one_vanish(world: World, before: Kind) -> Task:
    """Run until the coordinator is about to do this; all sites but one vanish and are given up."""
    world.run(until=lambda one: owes(one.coordinator.next(), before))
    gone = sorted(world.sites)[1:]
    for name in gone:
        world.sites.pop(name)
    world.run()
    world.coordinator.given_up.update((0, name) for name in gone)
    world.run()
    return world.coordinator.next()


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (Kind.PATHS, "round 0: 1 sites have trained, 3 are needed"),
        (Kind.TRANSCRIPT, "round 0: 1 sites have trained and signed its transcript, 3 are needed"),
    ],
)
def test_sites_that_die_after_paying_make_the_study_fail_for_everybody(
    tmp_path: Path, before: Kind, reason: str
) -> None:
    world = make_world(tmp_path, plan=make_plan(rounds=1))

    ended = _all_but_one_vanish(world, before)

    assert ended == Done(failure=reason)
    failed = world.coordinator.index.find(Kind.FAILED, sender="coordinator")
    assert failed is not None
    assert failed.header.body == {"code": "cohort_too_small", "message": reason}
    assert world.coordinator.index.find(Kind.FINISHED, sender="coordinator") is None
    assert world.auditor_step() == Done(failure=reason)
    assert [site.step() for site in world.sites.values()] == [Done(failure=reason)]
    verdict = verify_evidence(exported(world, tmp_path / "out"))
    assert verdict.outcome == "failed"
    assert not verdict.good
    assert f"messages.jsonl: the study failed: {reason}" in verdict.faults


def test_enough_sites_are_enough(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR, plan=make_plan(rounds=1))
    world.run(until=lambda one: bool(one.coordinator.index.all(Kind.PATHS, round_id=0)))
    world.sites.pop("site-d")
    world.run()
    world.coordinator.given_up.add((0, "site-d"))
    world.run()
    assert world.coordinator.next() == Done()
    assert verify_evidence(exported(world, tmp_path / "out")).outcome == "finished"


def test_nobody_believes_a_coordinator_that_ends_a_study_early(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=make_plan(rounds=1))
    world.run(until=lambda one: owes(one.coordinator.next(), Kind.TRANSCRIPT))
    world.settle_auditor()
    world.coordinator.carry_out(Post(kind=Kind.FINISHED))
    early = "coordinator ended it early; round 0: 0 sites have trained and signed its transcript, "
    expected = Done(failure=f"{early}3 are needed")
    assert world.auditor_step() == expected
    assert [site.step() for site in world.sites.values()] == [expected] * 3
    verdict = verify_evidence(exported(world, tmp_path / "out"))
    assert verdict.outcome == "failed"
    assert any(early in one for one in verdict.faults)


def test_evidence_of_a_study_without_an_end_is_not_all_good(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=make_plan(rounds=2))
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=1, purpose="statistics")
        )
    )
    world.auditor.participant.sync()
    verdict = verify_evidence(exported(world, tmp_path / "out"))
    assert verdict.outcome == "unfinished"
    assert verdict.faults == (
        "messages.jsonl: the study did not finish: coordinator never ended it; "
        "round 1: 0 sites have trained, 3 are needed",
    )
