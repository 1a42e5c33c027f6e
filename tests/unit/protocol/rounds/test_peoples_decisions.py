"""What the others do about people at a site: wait for them, and go on without who has left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from protocol_world import SLM, Cast, make_cast, make_plan, signed

from lada_protocol.events import Waiting, parse_event
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.tasks import GiveUp, Post, Task, Wait
from lada_protocol.wire.messages import FaultBody
from lada_secure.errors import ParameterError
from lada_secure.method.plan import STATISTICS

A, C = "auditor", "coordinator"
FOUR = ("site-a", "site-b", "site-c", "site-d")
BY = "2026-05-08T12:00:00Z"
ENDS = datetime(2026, 5, 8, 12, 0, tzinfo=UTC)
FIRST = Attempt(round_id=0, purpose=STATISTICS, number=0)
SECOND = Attempt(round_id=0, purpose=STATISTICS, number=1)
ACCEPTED: dict[str, Any] = {
    "certificate": "PEM",
    "population": "patients",
    "ledger_id": "0" * 64,
    "head_index": 1,
    "head_hash": "0" * 64,
    "new_ledger": True,
    "slm": SLM.model_dump(),
}


class Board:
    """The coordinator's view of a study of four sites, of which three are needed."""

    def __init__(self, *, sites: tuple[str, ...] = FOUR, approve_by: str | None = BY) -> None:
        self.cast: Cast = make_cast(sites)
        self.sites = sites
        self.plan: StudyPlan = make_plan(max_cohort=len(sites), approve_by=approve_by)
        self.index = MessageIndex(self.plan, self.cast.roster)
        for kind in (Kind.PLAN, Kind.POOL, Kind.CLUSTERS):
            self.post(kind, C)
        for purpose in purposes_of(self.plan):
            self.post(Kind.OPENING_KEY, A, purpose=purpose)

    def post(
        self, kind: Kind, sender: str, body: dict[str, Any] | None = None, **place: Any
    ) -> str:
        key = self.cast.keys[sender]
        one = signed(self.cast.roster, key, self.plan, kind, sender, body, **place)
        self.index.add(one)
        return one.message_hash

    def admit(self, site: str) -> None:
        self.post(Kind.LEDGER, site, {"first_index": 0, "head_index": 1, "head_hash": "0" * 64})
        acceptance = self.post(Kind.ACCEPTANCE, site, ACCEPTED)
        self.post(Kind.ADMISSION, A, {"acceptance": acceptance, "known_entries": 0}, to=site)

    def leave(self, site: str, code: FailureCode = FailureCode.WITHDRAWN) -> None:
        self.post(Kind.REFUSAL, site, {"code": code.value, "message": ""})

    def start(self, *sites: str) -> None:
        self.post(Kind.COHORT, C, {"sites": list(sites)}, purpose=STATISTICS, round_id=0, attempt=0)

    def task(self, *given_up: tuple[int, str]) -> Task:
        return next_coordinator_task(self.index, given_up=frozenset(given_up))


def test_who_may_still_decide_is_waited_for_to_the_time_of_the_plan() -> None:
    board = Board()
    for site in ("site-a", "site-b"):
        board.admit(site)
    assert board.task() == Wait(
        step="plan",
        round_id=0,
        awaited="answers to the plan",
        parties=("site-c", "site-d"),
        until=BY,
    )
    plain = Board(approve_by=None)
    task = plain.task()
    assert isinstance(task, Wait)
    assert task.until is None


@pytest.mark.parametrize(
    ("until", "waited_s", "now", "overdue"),
    [
        pytest.param(None, 60.0, ENDS, False, id="the timeout itself is in time"),
        pytest.param(None, 60.1, ENDS, True, id="programs have the timeout alone"),
        pytest.param(BY, 1e6, ENDS, False, id="people have until their time"),
        pytest.param(BY, 1e6, ENDS + timedelta(seconds=60), False, id="and programs after it"),
        pytest.param(BY, 1e6, ENDS + timedelta(seconds=61), True, id="and no longer"),
        pytest.param(BY, 10.0, ENDS + timedelta(days=1), False, id="a restart gives time again"),
    ],
)
def test_a_wait_for_people_is_over_a_timeout_after_their_time(
    until: str | None, waited_s: float, now: datetime, overdue: bool
) -> None:
    wait = Wait(step="plan", round_id=0, awaited="answers", parties=("site-a",), until=until)
    assert wait.is_overdue(waited_s, timeout_s=60.0, now=now) is overdue


def test_a_study_goes_on_with_those_who_are_enough() -> None:
    board = Board()
    for site in ("site-a", "site-b", "site-c"):
        board.admit(site)
    board.leave("site-d", FailureCode.UNDECIDED)
    assert board.task() == Post(
        kind=Kind.COHORT, attempt=FIRST, sites=("site-a", "site-b", "site-c")
    )


def test_a_study_that_is_too_small_says_who_decided_what_and_who_was_silent() -> None:
    board = Board()
    for site in ("site-a", "site-b"):
        board.admit(site)
    board.leave("site-c", FailureCode.REFUSED_BY_PERSON)
    task = board.task((-1, "site-d"))
    assert isinstance(task, GiveUp)
    assert task.code == "cohort_too_small"
    assert task.message == (
        "2 sites take part, 3 are needed (site-c: a person there decided against the plan; "
        "site-d: no answer in time)"
    )


def test_what_many_sites_say_still_fits_into_a_message() -> None:
    board = Board(sites=tuple(f"hospital-with-a-long-name-{at:02d}" for at in range(30)))
    task = board.task(*((-1, site) for site in board.sites))
    assert isinstance(task, GiveUp)
    assert FaultBody(code=task.code, message=task.message).message.startswith("0 sites take part")


def test_a_site_that_withdraws_is_left_out_of_the_attempt_at_once_and_of_all_later_ones() -> None:
    board = Board()
    for site in FOUR:
        board.admit(site)
    board.start(*FOUR)
    board.leave("site-b")
    assert board.task() == Post(kind=Kind.ABORT, attempt=FIRST, sites=("site-b",))
    board.post(
        Kind.ABORT, C, {"code": "timeout", "message": "no answer"}, purpose=STATISTICS, round_id=0
    )
    three = ("site-a", "site-c", "site-d")
    assert board.task() == Post(kind=Kind.COHORT, attempt=SECOND, sites=three)


def test_withdrawals_that_leave_too_few_end_the_study_and_name_who_left() -> None:
    board = Board(sites=FOUR[:3])
    for site in board.sites:
        board.admit(site)
    board.start(*board.sites)
    board.leave("site-b")
    board.post(
        Kind.ABORT, C, {"code": "timeout", "message": "no answer"}, purpose=STATISTICS, round_id=0
    )
    task = board.task()
    assert isinstance(task, GiveUp)
    assert task.message == "round 0: 2 sites are left, 3 are needed (site-b withdrew)"


def test_until_when_people_may_decide_is_in_an_event_only_where_there_is_a_time() -> None:
    told = Waiting(1.0, C, round_id=0, step="plan", awaited=("a",), waited_s=0.0, because="x")
    lines = []
    from lada_protocol.events import EventLog

    log = EventLog(party=C, sink=lines.append, clock=lambda: 1.0)
    for until in (None, BY):
        wait = Wait(step="plan", round_id=0, awaited="x", parties=("a",), until=until)
        log.waiting(wait, since_s=0.0)
    assert b"until" not in lines[0]
    second = parse_event(lines[1])
    assert isinstance(second, Waiting)
    assert (told.until, second.until) == (None, BY)
    with pytest.raises(ParameterError):
        parse_event(lines[1].replace(BY.encode(), b"", 1).replace(b'""', b"1"))
