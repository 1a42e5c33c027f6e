"""Transcripts: sorted, chained, complete for whoever signs them."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.transcript import (
    FIRST,
    Transcript,
    build_transcript,
    check_transcript,
    parse_transcript,
    stands_outside,
)
from lada_protocol.wire.envelope import Envelope
from lada_secure.canonical import canonical_json
from lada_secure.errors import PeerError
from lada_secure.method.plan import STATISTICS

CAST, PLAN = make_cast(), make_plan()


def _message(kind: Kind, sender: str, **place: Any) -> Envelope:
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, **place)


COHORT = _message(Kind.COHORT, "coordinator", purpose=STATISTICS)
OPENED = _message(Kind.OPENED, "auditor", purpose=STATISTICS)
MINE = _message(Kind.CONTRIBUTION, "site-a", purpose=STATISTICS)
THEIRS = _message(Kind.CONTRIBUTION, "site-b", purpose=STATISTICS)
LATER = _message(Kind.COHORT, "coordinator", purpose=STATISTICS, round_id=1)


def _index(*messages: Envelope) -> MessageIndex:
    index = MessageIndex(PLAN, CAST.roster)
    for message in messages:
        index.add(message)
    return index


def _check(transcript: Transcript, index: MessageIndex, **changes: Any) -> None:
    arguments: dict[str, Any] = {"round_id": 0, "previous": FIRST, "reader": "site-a", **changes}
    check_transcript(transcript, index, **arguments)


def test_the_same_messages_give_the_same_transcript_in_any_order() -> None:
    messages = [COHORT, OPENED, MINE, THEIRS, LATER]
    one = build_transcript(_index(*messages), 0, previous=FIRST)
    other = build_transcript(_index(*reversed(messages)), 0, previous=FIRST)
    assert one.hash == other.hash
    assert len(one.entries) == 4
    assert parse_transcript(one.to_bytes()) == one


def test_the_transcript_before_is_bound() -> None:
    index = _index(COHORT)
    assert (
        build_transcript(index, 0, previous=FIRST).hash
        != build_transcript(index, 0, previous="1" * 64).hash
    )


def test_messages_about_the_end_of_the_round_stand_outside() -> None:
    outside = [
        _message(Kind.TRANSCRIPT, "coordinator"),
        _message(Kind.CLOSE, "site-a"),
        _message(Kind.FINISHED, "coordinator"),
        _message(Kind.FAILED, "coordinator"),
        _message(Kind.RECEIPT, "auditor", to="site-a"),
        _message(Kind.REFUSAL, "auditor", to="site-a"),
    ]
    assert all(stands_outside(one) for one in outside)
    assert not stands_outside(_message(Kind.REFUSAL, "site-a"))
    assert build_transcript(_index(*outside), 0, previous=FIRST).entries == []


def test_a_reader_needs_its_own_messages_and_what_its_work_rested_on() -> None:
    complete = _index(COHORT, OPENED, MINE, THEIRS)
    _check(build_transcript(complete, 0, previous=FIRST), complete)
    # Another site's contribution may come after the transcript: not demanded.
    _check(build_transcript(_index(COHORT, OPENED, MINE), 0, previous=FIRST), complete)


@pytest.mark.parametrize("left_out", [COHORT, OPENED, MINE], ids=["cohort", "opened", "own"])
def test_a_transcript_that_leaves_out_what_counts_is_refused(left_out: Envelope) -> None:
    messages = [one for one in (COHORT, OPENED, MINE) if one is not left_out]
    transcript = build_transcript(_index(*messages), 0, previous=FIRST)
    with pytest.raises(PeerError, match="leaves out") as caught:
        _check(transcript, _index(COHORT, OPENED, MINE))
    assert caught.value.reason == "bad_transcript"


def test_a_transcript_with_another_message_in_a_place_is_refused() -> None:
    other = signed(
        CAST.roster,
        CAST.keys["site-b"],
        PLAN,
        Kind.CONTRIBUTION,
        "site-b",
        {"changed": 1},
        purpose=STATISTICS,
    )
    transcript = build_transcript(_index(MINE, other), 0, previous=FIRST)
    with pytest.raises(PeerError, match="changes"):
        _check(transcript, _index(MINE, THEIRS))


@pytest.mark.parametrize(
    "changes", [{"round_id": 1}, {"previous": "1" * 64}], ids=["round", "previous"]
)
def test_a_transcript_that_does_not_follow_is_refused(changes: dict[str, Any]) -> None:
    index = _index(MINE)
    with pytest.raises(PeerError, match="does not follow"):
        _check(build_transcript(index, 0, previous=FIRST), index, **changes)


def test_a_transcript_of_another_study_is_refused() -> None:
    index = _index(MINE)
    other = build_transcript(index, 0, previous=FIRST).model_copy(update={"study_id": "study-2"})
    with pytest.raises(PeerError, match="another study"):
        _check(other, index)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: {**value, "entries": list(reversed(value["entries"]))},
        lambda value: {**value, "extra": 1},
        lambda value: {**value, "round_id": -1},
        lambda value: {**value, "entries": [{**value["entries"][0], "message_hash": "x"}]},
        lambda value: [],
    ],
    ids=["unsorted", "extra field", "negative round", "no hash", "no object"],
)
def test_a_transcript_of_another_form_is_refused(spoil: Any) -> None:
    good = build_transcript(_index(COHORT, MINE, THEIRS), 0, previous=FIRST).model_dump()
    with pytest.raises(PeerError) as caught:
        parse_transcript(canonical_json(spoil(good)))
    assert caught.value.reason == "bad_transcript"
