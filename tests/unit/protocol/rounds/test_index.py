"""The message index: one message per place, nothing of another study or plan."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt, MessageIndex, Slot, slot_of
from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import PeerError
from lada_secure.method.plan import DEMAND, STATISTICS

CAST, PLAN = make_cast(), make_plan()
ATTEMPT = Attempt(round_id=1, purpose=STATISTICS, number=2)


def _index() -> MessageIndex:
    return MessageIndex(PLAN, CAST.roster)


def _message(kind: Kind, sender: str, body: dict[str, Any] | None = None, **place: Any) -> Envelope:
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, **place)


def _at(kind: Kind, sender: str, attempt: Attempt = ATTEMPT, **body: Any) -> Envelope:
    return _message(
        kind,
        sender,
        body,
        round_id=attempt.round_id,
        purpose=attempt.purpose,
        attempt=attempt.number,
    )


def test_messages_are_found_by_place_and_by_hash() -> None:
    index = _index()
    message = _at(Kind.MASK_KEY, "site-a")
    index.add(message)

    assert index.at(Kind.MASK_KEY, ATTEMPT, sender="site-a") is message
    assert index.at(Kind.MASK_KEY, ATTEMPT, sender="site-b") is None
    assert index.by_hash(message.message_hash) is message
    assert index.all_at(Kind.MASK_KEY, ATTEMPT) == {"site-a": message}
    assert index.attempts(Kind.MASK_KEY, round_id=1, purpose=STATISTICS) == [2]
    assert index.attempts(Kind.MASK_KEY, round_id=1, purpose=DEMAND) == []
    assert list(index.of_round(1)) == [message]
    assert slot_of(message) == Slot(Kind.MASK_KEY, 1, STATISTICS, 2, "site-a", "")


def test_the_same_message_twice_is_one_message() -> None:
    index = _index()
    message = _message(Kind.ACCEPTANCE, "site-a")
    index.add(message)
    index.add(message)
    assert len(index) == 1


def test_two_messages_in_one_place_are_equivocation_and_the_first_stays() -> None:
    index = _index()
    first = _message(Kind.ACCEPTANCE, "site-a", {"population": "one"})
    second = _message(Kind.ACCEPTANCE, "site-a", {"population": "two"})
    index.add(first)

    with pytest.raises(PeerError) as caught:
        index.add(second)

    assert (caught.value.reason, caught.value.peer) == ("equivocation", "site-a")
    assert list(index) == [first]
    assert index.by_hash(second.message_hash) is None


@pytest.mark.parametrize(
    "place",
    [
        {"round_id": 1},
        {"attempt": 1},
        {"purpose": DEMAND},
        {"to": "site-b"},
    ],
)
def test_every_part_of_the_place_counts(place: dict[str, Any]) -> None:
    index = _index()
    index.add(_message(Kind.RECEIPT, "auditor", {"a": 1}))
    index.add(_message(Kind.RECEIPT, "auditor", {"a": 2}, **place))
    assert len(index) == 2


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("study_id", "study-2", "wrong_study"), ("plan_hash", "0" * 64, "wrong_plan")],
)
def test_messages_of_another_study_or_plan_change_nothing(
    field: str, value: str, reason: str
) -> None:
    index = _index()
    with pytest.raises(PeerError) as caught:
        index.add(_message(Kind.ACCEPTANCE, "site-a", **{field: value}))
    assert caught.value.reason == reason
    assert len(index) == 0


def test_the_opened_sum_is_the_only_one_of_its_round_and_purpose() -> None:
    index = _index()
    with pytest.raises(PeerError) as caught:
        index.opened(1, STATISTICS)
    assert caught.value.reason == "missing_message"

    first = _at(Kind.OPENED, "auditor")
    index.add(first)
    assert index.opened(1, STATISTICS) is first

    index.add(_at(Kind.OPENED, "auditor", Attempt(round_id=1, purpose=STATISTICS, number=3)))
    with pytest.raises(PeerError) as caught:
        index.opened(1, STATISTICS)
    assert caught.value.reason == "already_opened"
