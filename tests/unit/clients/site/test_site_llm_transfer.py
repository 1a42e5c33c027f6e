"""The site's own LLM transfer code on a real board: what it sends, pays and refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from protocol_world import UPLINK, make_plan, training_spec
from simulated_parties import World, make_world
from simulated_site import owes

from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.exchanges import SiteExchanges
from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import SiteMemory
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import SiteRationale, parse_site_rationales
from lada_protocol.wire.messages import InquiryBody, SitePathsBody, parse_body
from lada_secure.arrays import IntArray
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, TRAINING, split_pool
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.released import Released, require_released

PLAN = make_plan(uplink=UPLINK)


@dataclass
class LearnerWithoutModel:
    """What the LLM transfer asks of the learner; counts how often the model would have run."""

    plan: StudyPlan
    book: LedgerBook
    memory: SiteMemory
    runs: int = 0
    asked: list[int] = field(default_factory=list)

    def released_adapters(self, round_id: int) -> Released[bytes]:
        """The release that the simulated training committed."""
        return self.book.release(
            training_spec(self.plan, round_id),
            compute=lambda _paid: b"never",
            encode=lambda raw: raw,
            decode=lambda raw: raw,
        )

    def confidence_excess(self, round_id: int) -> tuple[int, ...]:
        """As the real one keeps it; differs from run to run of the model."""
        state = self.memory.load()
        if round_id not in state.excess:
            self.runs += 1
            state = state.with_excess(round_id, [self.runs] * self.plan.pool_size)
            self.memory.keep(state)
        return state.excess[round_id]

    def solved(self, places: tuple[int, ...]) -> list[SiteRationale]:
        """The last of the samples only."""
        self.asked = list(places)
        return [SiteRationale(sample=places[-1], path="because 7")]


@dataclass
class Uplink:
    """A simulated site's real exchanges, with a learner that needs no model."""

    exchanges: SiteExchanges
    learner: LearnerWithoutModel

    def vector(self) -> Released[IntArray]:
        """What the site contributes in round 0."""
        return self.exchanges.confidence_excess(0, cast(SiteLearner, self.learner))

    def answer(self) -> None:
        """Answer the inquiry of round 0."""
        self.exchanges.answer_inquiry(0, cast(SiteLearner, self.learner))


def uplink_of_site(world: World, folder: Path, name: str = "site-a") -> Uplink:
    """The real LLM transfer of a simulated site."""
    site = world.sites[name]
    site.me.sync()
    secrets = SecretFolder(folder=folder / "secrets")
    return Uplink(
        exchanges=SiteExchanges(participant=site.me, secrets=secrets),
        learner=LearnerWithoutModel(plan=PLAN, book=site.book, memory=SiteMemory(folder=folder)),
    )


def at_the_inquiry(tmp_path: Path) -> World:
    """A study in which the coordinator is about to ask."""
    world = make_world(tmp_path, plan=PLAN)
    world.run(until=lambda one: owes(one.coordinator.next(), Kind.INQUIRY))
    return world


def test_the_vector_is_released_paid_for_by_training_and_the_same_at_every_call(
    tmp_path: Path,
) -> None:
    world = at_the_inquiry(tmp_path)
    uplink = uplink_of_site(world, tmp_path / "memory")
    spent = world.sites["site-a"].book.epsilon_spent(1e-5)

    first = uplink.vector()
    # A restart computes nothing again, and a retry of the secure aggregation sends the same.
    again = uplink_of_site(world, tmp_path / "memory").vector()

    require_released(first, what="advantages")
    assert first.paid_by == world.sites["site-a"].reservation(0, TRAINING).entry_hash
    assert first.value.tolist() == again.value.tolist()
    assert first.value.tolist() == [1] * PLAN.pool_size
    assert world.sites["site-a"].book.epsilon_spent(1e-5) == spent


def test_a_damaged_memory_is_refused(tmp_path: Path) -> None:
    world = at_the_inquiry(tmp_path)
    uplink = uplink_of_site(world, tmp_path / "memory")
    uplink.vector()
    (tmp_path / "memory" / "site-state.json").write_text("{}")
    with pytest.raises(ParameterError, match="damaged"):
        uplink.vector()


def test_it_answers_an_inquiry_once_with_what_it_solves(tmp_path: Path) -> None:
    world = at_the_inquiry(tmp_path)
    inquiry = world.coordinator.inquire(0)
    uplink = uplink_of_site(world, tmp_path / "memory")

    uplink.answer()

    asked = parse_body(inquiry, InquiryBody).samples
    learner = uplink.learner
    assert len(learner.asked) == asked == UPLINK.budget
    world.coordinator.sync()
    sent = world.coordinator.index.find(
        Kind.SITE_PATHS, sender="site-a", to="coordinator", round_id=0
    )
    assert sent is not None
    body = parse_body(sent, SitePathsBody)
    assert (body.inquiry, body.written) == (inquiry.message_hash, 1)
    paths = parse_site_rationales(world.board.payload(sent.message_hash), asked=learner.asked)
    assert paths == (SiteRationale(sample=learner.asked[-1], path="because 7"),)
    uplink.answer()
    world.run(until=lambda one: owes(one.coordinator.next(), Kind.LLM_UPDATE))


def test_it_writes_nothing_for_an_inquiry_outside_the_plan(tmp_path: Path) -> None:
    world = at_the_inquiry(tmp_path)
    world.coordinator.inquire(0, samples=[split_pool(PLAN).holdout[0]])
    uplink = uplink_of_site(world, tmp_path / "memory")

    with pytest.raises(PeerError) as caught:
        uplink.answer()

    assert caught.value.reason == "bad_inquiry"
    assert uplink.learner.asked == []


def test_it_computes_on_no_sum_that_leaves_it_out(tmp_path: Path) -> None:
    world = at_the_inquiry(tmp_path)
    world.coordinator.inquire(0)
    uplink = uplink_of_site(world, tmp_path / "memory")
    opened = uplink.exchanges.participant.index.opened(0, CONFIDENCE_EXCESS)
    opened.header.body["contributions"]["site-a"] = "5" * 64

    with pytest.raises(PeerError) as caught:
        uplink.answer()

    assert caught.value.reason == "not_in_opening"


def test_an_answer_before_the_inquiry_is_our_own_mistake(tmp_path: Path) -> None:
    uplink = uplink_of_site(at_the_inquiry(tmp_path), tmp_path / "memory")
    with pytest.raises(LocalProtocolError):
        uplink.answer()
