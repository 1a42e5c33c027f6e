"""The run loop: every task has its handler, and tells its operator when it began and ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from lada_clients.auditor.service import Auditor
from lada_clients.site.service import Site
from lada_protocol.events import EventLog
from lada_protocol.kinds import Kind, Role
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.tasks import Done, Post, Task, Wait
from lada_protocol.run_loop import ByteCounts, Handler, RunLoop, StudyFailed
from lada_secure.method.plan import STATISTICS
from lada_server.study.coordinator import Coordinator

ATTEMPT = Attempt(round_id=1, purpose=STATISTICS, number=0)


def dialling(kind: type[Any]) -> Mapping[Kind, Handler]:
    """The table of handlers of a party that has joined nothing yet."""
    party = object.__new__(kind)
    party.participant = SimpleNamespace(run_loop=lambda _next_task, handlers: handlers)
    table: Mapping[Kind, Handler] = party.loop
    return table


@pytest.mark.parametrize(
    ("role", "table", "on_the_way"),
    [
        (Role.SITE, dialling(Site), {Kind.FAILED}),
        (
            Role.AUDITOR,
            dialling(Auditor),
            {Kind.REFUSAL, Kind.OPENING_REFUSED, Kind.FAILED},
        ),
        (
            Role.COORDINATOR,
            Coordinator._handlers(object.__new__(Coordinator)),
            {Kind.POOL, Kind.CLUSTERS},
        ),
    ],
)
def test_every_kind_that_a_party_sends_has_its_handler_or_goes_with_another(
    role: Role, table: Mapping[Kind, Handler], on_the_way: set[Kind]
) -> None:
    assert set(table) == {kind for kind in Kind if role in kind.rules.senders} - on_the_way


def looped(steps: Iterable[Task], told: list[dict[str, Any]], *, fails: bool = False) -> RunLoop:
    """A loop over these tasks; its clock and its traffic move by one at every look."""
    following, ticks = iter(steps), iter(range(100))

    def carry_out(_task: Task) -> None:
        if fails:
            raise StudyFailed("no")

    return RunLoop(
        events=EventLog(
            party="site-a", sink=lambda line: told.append(json.loads(line)), clock=lambda: 0.0
        ),
        rounds=3,
        next_task=lambda: next(following),
        wait=lambda task: told.append({"event": "wait", "round": task.round_id}),
        handlers={
            Kind.ACCEPTANCE: Handler("plan", carry_out),
            Kind.CONTRIBUTION: Handler(None, carry_out),
            Kind.CLOSE: Handler("close", carry_out),
            Kind.FINISHED: Handler("close", carry_out),
        },
        traffic=lambda: ByteCounts(next(ticks), 0),
        clock=lambda: float(next(ticks)),
    )


def test_tasks_are_told_with_their_round_and_step_until_the_study_is_over() -> None:
    told: list[dict[str, Any]] = []
    waiting = Wait(step="plan", round_id=0, awaited="pool", parties=("coordinator",))
    steps = [
        Post(kind=Kind.ACCEPTANCE),
        waiting,
        Post(kind=Kind.CONTRIBUTION, attempt=ATTEMPT, sites=("site-a",)),
        Post(kind=Kind.CLOSE, attempt=Attempt(round_id=1)),
        Post(kind=Kind.FINISHED),
        Done(),
    ]
    looped(steps, told).run()
    assert [(row["event"], row["round"], row.get("step")) for row in told] == [
        ("step_started", 0, "plan"),
        ("step_finished", 0, "plan"),
        ("wait", 0, None),
        ("step_started", 1, STATISTICS),
        ("step_finished", 1, STATISTICS),
        ("step_started", 1, "close"),
        ("step_finished", 1, "close"),
        ("step_started", 2, "close"),
        ("step_finished", 2, "close"),
        ("finished", 2, "close"),
    ]
    assert (told[1]["seconds"], told[1]["bytes_up"], told[1]["bytes_down"]) == (3.0, 1, 0)


def test_a_task_that_fails_has_no_end_and_ends_the_loop() -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(StudyFailed, match="no"):
        looped([Post(kind=Kind.ACCEPTANCE), Done()], told, fails=True).run()
    assert [row["event"] for row in told] == ["step_started"]


def test_a_study_that_another_party_gave_up_is_a_failure_with_its_words() -> None:
    with pytest.raises(StudyFailed, match="two sites left"):
        looped([Done(failure="two sites left")], []).run()
