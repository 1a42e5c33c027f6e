"""What sites and auditor share: joining a study, posting once, checking transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from protocol_world import MemoryBoard, MemoryClient, make_cast, make_participant, make_plan, signed
from simulated_parties import make_world

from lada_clients.net.participant import Participant
from lada_protocol.kinds import Kind
from lada_protocol.party_files import read_roster
from lada_protocol.rounds.tasks import Done
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError

CAST, PLAN = make_cast(), make_plan()


def _plan_message(payload: bytes, **header: object) -> Envelope:
    return signed(
        CAST.roster,
        CAST.keys["coordinator"],
        PLAN,
        Kind.PLAN,
        "coordinator",
        {"certificate": "PEM"},
        payload,
        **header,
    )


def test_without_a_plan_a_participant_says_whom_it_waited_for(tmp_path: Path) -> None:
    me = make_participant(CAST, MemoryBoard(CAST.roster), "site-a", tmp_path)
    with pytest.raises(TransportError, match="no study plan from coordinator"):
        me.join(wait_s=0.0)


@pytest.mark.parametrize(
    ("plan", "header", "match"),
    [
        (PLAN, {"plan_hash": "0" * 64}, "names another plan or study"),
        (PLAN, {"study_id": "study-2"}, "names another plan or study"),
        (make_plan(coordinator="somebody"), {}, "names another"),
    ],
    ids=["another hash", "another study", "another coordinator"],
)
def test_a_plan_that_its_header_does_not_name_is_refused(
    tmp_path: Path, plan: object, header: dict[str, str], match: str
) -> None:
    board = MemoryBoard(CAST.roster)
    raw = plan.to_bytes()  # type: ignore[attr-defined]
    board.insert(_plan_message(raw, **header), raw)
    me = make_participant(CAST, board, "site-a", tmp_path)
    with pytest.raises(PeerError, match=match) as caught:
        me.join(wait_s=5.0)
    assert caught.value.reason == "bad_plan"


def test_a_plan_signed_for_another_coordinator_is_refused(tmp_path: Path) -> None:
    other = make_plan(coordinator="somebody")
    board = MemoryBoard(CAST.roster)
    raw = other.to_bytes()
    board.insert(_plan_message(raw, plan_hash=other.hash), raw)
    with pytest.raises(PeerError, match="another coordinator"):
        make_participant(CAST, board, "site-a", tmp_path).join(wait_s=5.0)


def test_a_message_is_made_once_and_sent_again_after_a_restart(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    board, calls = world.board, []

    def make() -> bytes:
        calls.append(1)
        return b"call %d" % len(calls)

    def query(me: Participant) -> Envelope:
        return me.post(Kind.QUERY, {"cells": len(calls)}, make, to="coordinator")

    first = query(world.sites["site-a"].me)
    restarted = make_participant(world.cast, board, "site-a", tmp_path / "site-a")
    restarted.join(wait_s=5.0)
    again = query(restarted)

    assert len(calls) == 1
    assert again.message_hash == first.message_hash
    assert restarted.payload(again) == b"call 1"


def test_messages_of_another_study_on_the_same_board_are_left_alone(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    other = make_plan(study_id="study-2")
    foreign = signed(world.cast.roster, world.cast.keys["site-b"], other, Kind.ACCEPTANCE, "site-b")
    world.board.insert(foreign)
    me = world.sites["site-a"].me
    me.sync()
    assert me.index.by_hash(foreign.message_hash) is None


def test_a_transcript_that_leaves_out_an_own_message_is_not_signed(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run(until=lambda one: any(row.kind is Kind.TRAINED for row, _ in one.board.rows))
    coordinator, site = world.coordinator, world.sites["site-a"]
    coordinator.sync()
    site.me.sync()
    with pytest.raises(LocalProtocolError, match="no transcript"):
        site.me.checked_transcript(0)
    complete = build_transcript(coordinator.index, 0, previous=FIRST)
    cut = complete.model_copy(
        update={"entries": [one for one in complete.entries if one.kind != "query"]}
    )
    coordinator.post(Kind.TRANSCRIPT, {"messages": 1}, payload=cut.to_bytes())
    with pytest.raises(PeerError, match="leaves out") as caught:
        site.step()
    assert caught.value.reason == "bad_transcript"


def test_a_roster_file_must_be_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    with pytest.raises(ParameterError, match="there is no such file"):
        read_roster(path, pinned=CAST.roster.hash)
    path.write_bytes(CAST.roster.to_bytes())
    assert read_roster(path, pinned=CAST.roster.hash) == CAST.roster
    with pytest.raises(ParameterError, match="roster_sha256 pins 1111"):
        read_roster(path, pinned="1" * 64)
    with pytest.raises(ParameterError, match=r"none is pinned yet, .* run `lada init join`"):
        read_roster(path, pinned="0" * 64)
    path.write_bytes(CAST.roster.to_bytes() + b"\n")
    with pytest.raises(ParameterError, match="canonical"):
        read_roster(path, pinned=CAST.roster.hash)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("kind", [Kind.FINISHED, Kind.FAILED])
def test_the_board_hears_that_the_end_was_read_by_the_goodbye_alone(
    tmp_path: Path, kind: Kind, restarted: bool
) -> None:
    board, key = MemoryBoard(CAST.roster), CAST.keys["coordinator"]
    raw = PLAN.to_bytes()
    board.insert(_plan_message(raw), raw)
    me = make_participant(CAST, board, "auditor", tmp_path)
    body = {"rounds": 1} if kind is Kind.FINISHED else {"code": "cohort", "message": "few"}
    if not restarted:
        me.join(wait_s=5.0)
    board.insert(signed(CAST.roster, key, PLAN, kind, "coordinator", body))
    if restarted:
        me.join(wait_s=5.0)
    loop = me.run_loop(lambda: Done(), {})
    for _ in range(2):
        loop.next_task()
    assert me.index.find(kind, sender="coordinator") is not None
    # An export may take minutes now, and fetches from the board.
    client = cast(MemoryClient, me.client)
    assert client.read_to < len(board.rows)
    me.say_goodbye()
    assert client.read_to == len(board.rows)
