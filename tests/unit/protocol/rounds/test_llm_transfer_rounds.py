"""A study with an LLM transfer over a board in memory: who does what, and refuses what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_world import UPLINK, make_cast, make_plan
from simulated_parties import World, make_world, refusal
from simulated_site import FOUR, Outgoing, owes

from lada_clients.auditor.runner import write_export
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS, llm_version
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.rounds.tasks import Done, GiveUp, Post, Wait
from lada_protocol.rounds.transcript import parse_transcript
from lada_protocol.wire.messages import InquiryBody, LlmUpdateBody, parse_body
from lada_secure.errors import PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, STATISTICS

PLAN = make_plan(uplink=UPLINK)
SUM = Attempt(round_id=0, purpose=CONFIDENCE_EXCESS, number=0)


def world_at(tmp_path: Path, kind: Kind, *, sites: tuple[str, ...] = FOUR[:3]) -> World:
    """A study run until the coordinator's next task is of this kind."""
    world = make_world(tmp_path, sites=sites, plan=PLAN)
    world.run(until=lambda one: owes(one.coordinator.next(), kind))
    return world


def site_refuses(world: World) -> PeerError:
    """What the first site says to what it was shown."""
    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()
    return caught.value


def export_of(world: World, folder: Path) -> dict[str, bytes]:
    """The auditor's export."""
    identity = folder / "identity"
    identity.mkdir()
    (identity / "ca.crt").write_bytes(world.cast.ca_pem)
    out = folder / "export"
    me = world.auditor.participant
    write_export(out, me, world.auditor.ledgers, identity=identity)
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_every_round_opens_the_exact_sum_of_the_advantages_and_ends_with_a_decision(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, plan=PLAN, cast_=make_cast())

    world.run()

    assert world.coordinator.next() == Done()
    index = world.coordinator.index
    for round_id in range(PLAN.rounds):
        attempt = Attempt(round_id=round_id, purpose=CONFIDENCE_EXCESS, number=0)
        opened = index.opened(round_id, CONFIDENCE_EXCESS)
        values = opened_values(world.board.payload(opened.message_hash), PLAN, CONFIDENCE_EXCESS)
        assert values == sum(one.vector(attempt) for one in world.sites.values()).tolist()
        assert max(values) > 0
        answers = [
            index.find(Kind.SITE_PATHS, sender=site, to="coordinator", round_id=round_id)
            for site in world.sites
        ]
        assert None not in answers
        listed = index.find(Kind.TRANSCRIPT, sender="coordinator", round_id=round_id)
        assert listed is not None
        kinds = [
            one.kind for one in parse_transcript(world.board.payload(listed.message_hash)).entries
        ]
        assert {"inquiry", "site_paths", "llm_update"} <= set(kinds)
    kept = f"{1:064x}"
    assert llm_version(index, before_round=0) == NO_ADAPTERS
    assert llm_version(index, before_round=1) == kept
    assert llm_version(index, before_round=2) == kept
    verdict = verify_evidence(export_of(world, tmp_path))
    assert verdict.faults == ()
    assert verdict.openings == 3 * PLAN.rounds


def test_the_uplink_costs_no_privacy(tmp_path: Path) -> None:
    spent = []
    for name, plan in (("with", PLAN), ("without", make_plan())):
        world = make_world(tmp_path / name, plan=plan)
        world.run()
        spent.append(world.sites["site-a"].book.epsilon_spent(1e-5))
    assert spent[0] == spent[1] > 0


def test_a_last_round_without_uplink_has_none(tmp_path: Path) -> None:
    plan = make_plan(uplink=UPLINK.model_copy(update={"last_round": False}))
    world = make_world(tmp_path, plan=plan)

    world.run()

    assert world.coordinator.next() == Done()
    index = world.coordinator.index
    assert index.find(Kind.LLM_UPDATE, sender="coordinator", round_id=0) is not None
    assert index.find(Kind.LLM_UPDATE, sender="coordinator", round_id=1) is None
    assert index.attempts(Kind.COHORT, round_id=1, purpose=CONFIDENCE_EXCESS) == []


def test_nobody_answers_an_inquiry_about_nothing_and_the_round_still_decides(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path, Kind.INQUIRY)
    world.coordinator.inquire(0, samples=[])

    assert world.coordinator.next() == Post(kind=Kind.LLM_UPDATE)
    waiting = world.sites["site-a"].step()
    assert isinstance(waiting, Wait)
    assert waiting.awaited == "the transcript"
    assert not world.coordinator.index.all(Kind.SITE_PATHS, round_id=0)


def test_another_site_and_the_auditor_never_see_a_site_s_paths(tmp_path: Path) -> None:
    world = world_at(tmp_path, Kind.TRANSCRIPT)
    for site in world.sites.values():
        site.me.sync()
        senders = [one.header.sender for one in site.me.index if one.kind is Kind.SITE_PATHS]
        assert senders == [site.me.party]
    world.auditor.participant.sync()
    assert not [one for one in world.auditor.participant.index if one.kind is Kind.SITE_PATHS]


def test_a_site_that_is_silent_in_the_uplink_is_left_behind_and_the_rest_go_on(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, sites=FOUR, plan=PLAN)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=0, purpose=CONFIDENCE_EXCESS)
        )
    )
    world.sites.pop("site-d")
    world.run()
    waiting = world.coordinator.next()
    assert isinstance(waiting, Wait)
    assert waiting.parties == ("site-d",)
    world.coordinator.given_up.update({(0, "site-d"), (1, "site-d")})

    world.run()

    index = world.coordinator.index
    assert index.at(Kind.ABORT, SUM, sender="coordinator") is not None
    assert index.opened(0, CONFIDENCE_EXCESS).header.attempt == 1
    assert world.coordinator.next() == Done()


def test_too_few_sites_for_a_sum_end_the_uplink_and_not_the_study(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=PLAN)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=0, purpose=CONFIDENCE_EXCESS)
        )
    )
    gone = world.sites.pop("site-c")
    world.run()
    world.coordinator.given_up.add((0, "site-c"))

    assert not isinstance(world.coordinator.step(), GiveUp)
    world.coordinator.step()

    index = world.coordinator.index
    assert index.find(Kind.TRANSCRIPT, sender="coordinator", round_id=0) is not None
    assert index.attempts(Kind.OPENED, round_id=0, purpose=CONFIDENCE_EXCESS) == []
    world.sites["site-c"] = gone
    world.run()
    assert index.attempts(Kind.OPENED, round_id=1, purpose=CONFIDENCE_EXCESS) == [0]
    assert world.coordinator.next() == Done()


def test_a_site_that_never_answers_the_inquiry_is_given_up_with_its_paths(tmp_path: Path) -> None:
    world = world_at(tmp_path, Kind.INQUIRY)
    world.coordinator.step()
    world.sites.pop("site-b")
    world.run()
    waiting = world.coordinator.next()
    assert isinstance(waiting, Wait)
    assert (waiting.step, waiting.awaited, waiting.parties) == ("uplink", "site paths", ("site-b",))

    world.coordinator.given_up.add((0, "site-b"))

    assert world.coordinator.next() == Post(kind=Kind.LLM_UPDATE)


def test_every_party_stands_where_it_was_in_the_uplink_after_reading_again(tmp_path: Path) -> None:
    world = world_at(tmp_path, Kind.INQUIRY)
    world.coordinator.step()
    for name, site in world.sites.items():
        site.me.sync()
        site.me._sequence = 0
        site.me.join(wait_s=5.0)
        assert site.step() == Post(kind=Kind.SITE_PATHS, to="coordinator"), name


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ("hold-out", "bad_inquiry"),
        ("no advantage", "bad_inquiry"),
        ("over the budget", "bad_inquiry"),
    ],
)
def test_a_site_refuses_to_be_asked_about_other_samples(
    tmp_path: Path, samples: str, reason: str
) -> None:
    from lada_secure.method.plan import split_pool

    world = world_at(tmp_path, Kind.INQUIRY)
    split = split_pool(PLAN)
    # The simulated sites have no confidence excess on the first candidate, and one on all others.
    wanted = {
        "hold-out": [split.holdout[0]],
        "no advantage": [split.candidates[0]],
        "over the budget": list(split.candidates[1:4]),
    }[samples]
    world.coordinator.inquire(0, samples=wanted)

    assert site_refuses(world).reason == reason
    assert not world.coordinator.index.all(Kind.SITE_PATHS, round_id=0)


def test_a_site_refuses_an_inquiry_whose_body_counts_otherwise(tmp_path: Path) -> None:
    world = world_at(tmp_path, Kind.INQUIRY)
    opened = world.coordinator.index.opened(0, CONFIDENCE_EXCESS)
    body = {"opened": opened.message_hash, "samples": 2}
    world.coordinator.post(Kind.INQUIRY, body, payload=b"[4]", round_id=0)
    assert parse_body_samples(world) == 2

    assert site_refuses(world).reason == "malformed"


def parse_body_samples(world: World) -> int:
    """Samples that the inquiry on the board speaks of."""
    found = world.coordinator.index.find(Kind.INQUIRY, sender="coordinator", round_id=0)
    assert found is not None
    return parse_body(found, InquiryBody).samples


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted": False},
        {"right_after": 0},
        {"certainty_after": 9},
        {"llm_after": NO_ADAPTERS},
        {"llm_before": "5" * 64},
        {"inquiry": "5" * 64},
        {"holdout": 4},
        {"used": 7},
        {"used": 0},
        {"right_after": 4},
        {"certainty_after": 31},
    ],
    ids=str,
)
def test_nobody_signs_a_round_whose_update_breaks_the_rules(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    world = world_at(tmp_path, Kind.LLM_UPDATE)
    update = world.coordinator.improve(0, **changes)
    assert parse_body(update, LlmUpdateBody).inquiry
    world.coordinator.step()
    assert world.coordinator.index.find(Kind.TRANSCRIPT, sender="coordinator", round_id=0)

    assert site_refuses(world).reason == "wrong_update"
    with pytest.raises(PeerError) as caught:
        world.auditor_step()
    assert caught.value.reason == "wrong_update"


def test_an_update_against_the_rule_shows_in_the_evidence(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=make_plan(uplink=UPLINK, rounds=1))
    world.run(until=lambda one: owes(one.coordinator.next(), Kind.LLM_UPDATE))
    world.coordinator.improve(0, right_after=0)
    world.coordinator.step()
    world.auditor.participant.sync()

    verdict = verify_evidence(export_of(world, tmp_path))

    assert any("against the hold-out's rule" in fault for fault in verdict.faults)


def test_an_update_without_an_uplink_in_the_plan_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=make_plan())
    world.run(until=lambda one: owes(one.coordinator.next(), Kind.TRANSCRIPT))
    body = {"opened": "5" * 64, "samples": 0}
    world.coordinator.post(Kind.INQUIRY, body, payload=b"[]", round_id=0)
    world.coordinator.step()

    assert site_refuses(world).reason == "wrong_update"


def test_an_inquiry_that_rests_on_another_opening_is_not_signed(tmp_path: Path) -> None:
    world = world_at(tmp_path, Kind.INQUIRY)
    other = world.coordinator.index.opened(0, STATISTICS)
    body = {"opened": other.message_hash, "samples": 0}
    world.coordinator.post(Kind.INQUIRY, body, payload=b"[]", round_id=0)
    world.coordinator.step()
    world.coordinator.step()

    assert site_refuses(world).reason == "bad_inquiry"


def test_the_auditor_refuses_an_advantage_that_training_has_not_paid_for(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=PLAN)

    def unpaid(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is Kind.CONTRIBUTION and len(world.sites["site-b"].book.entries()) > 3:
            paid = world.sites["site-b"].reservation(0).entry_hash
            return Outgoing(body={**outgoing.body, "paid_by": paid}, payload=outgoing.payload)
        return outgoing

    world.sites["site-b"].tamper = unpaid
    world.to_sum(CONFIDENCE_EXCESS)
    world.coordinator.step()

    fault = refusal(world, SUM)
    assert fault.code == "unpaid"
    assert "site-b" in fault.message


@pytest.mark.parametrize("where", ["hold-out", "above the clip", "negative"])
def test_the_auditor_refuses_advantages_out_of_range(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulated_parties import SimulatedSite

    from lada_secure.method.plan import split_pool

    world = make_world(tmp_path, plan=PLAN)
    split = split_pool(PLAN)
    honest = SimulatedSite.vector

    def crafted(self: SimulatedSite, attempt: Attempt) -> np.ndarray:
        vector = honest(self, attempt)
        if attempt.purpose == CONFIDENCE_EXCESS:
            vector = np.zeros_like(vector)
            if where == "hold-out":
                vector[split.holdout[0]] = 1
            elif where == "negative":
                vector[split.candidates[0]] = -1
            else:
                vector[split.candidates[0]] = UPLINK.site_bound
        return vector

    monkeypatch.setattr(SimulatedSite, "vector", crafted)
    if where == "above the clip":
        # In range for six sites, which the plan allows, and not for the three of this cohort.
        plan_bound = world.plan.max_cohort * UPLINK.site_bound
        assert 3 * UPLINK.site_bound < plan_bound
        monkeypatch.setattr("simulated_site.site_bound_of", lambda _plan, _purpose: plan_bound)
        inner = crafted

        def more(self: SimulatedSite, attempt: Attempt) -> np.ndarray:
            doubled = 2 if attempt.purpose == CONFIDENCE_EXCESS else 1
            return inner(self, attempt) * doubled

        monkeypatch.setattr(SimulatedSite, "vector", more)
    world.to_sum(CONFIDENCE_EXCESS)
    world.coordinator.step()

    assert refusal(world, SUM).code == "out_of_range"
