"""One party's way through a study: its next task, that task's handler, until the study is over.

Site, auditor and coordinator differ in their handlers and in how they wait, not in this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from lada_protocol.events import EventLog, Finished, StepFinished, StepStarted
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.tasks import Done, Post, Task, Wait
from lada_secure.errors import LadaError


class StudyFailed(LadaError):
    """The study ended before its last round, or without this party.

    told: what the others are to know of it; None where they know already.
    """

    code = "study_failed"

    def __init__(self, message: str, *, told: FailureCode | None = None) -> None:
        super().__init__(message)
        self.told = told


class ByteCounts(NamedTuple):
    """Bytes of headers, signatures and payloads so far; TLS and HTTP/2 come on top."""

    up_bytes: int
    down_bytes: int


class Handler(NamedTuple):
    """How a message is made and posted. step: for events; None: the purpose of its attempt."""

    step: str | None
    carry_out: Callable[[Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLoop:
    """Carries out a party's tasks and tells its operator when each began and ended.

    Args: rounds: of the study. next_task: after a look at the board. wait: until there may be
      something new. handlers: of every kind that the party may have to post. traffic: of the party
      so far.
      clock: monotonic seconds. entered: told round and step before a task begins.
    """

    events: EventLog
    rounds: int
    next_task: Callable[[], Task]
    wait: Callable[[Wait], None]
    handlers: Mapping[Kind, Handler]
    traffic: Callable[[], ByteCounts]
    clock: Callable[[], float]
    entered: Callable[[int, str], None] = lambda _round_id, _step: None

    def run(self) -> None:
        """Go on until the study is over.

        Raises: StudyFailed: another party gave up; and whatever a handler raises.
        """
        while True:
            task = self.next_task()
            if isinstance(task, Done):
                if task.failure is not None:
                    raise StudyFailed(task.failure, told=task.told)
                self.events.write(Finished, round_id=self.rounds - 1, step="close")
                return
            if isinstance(task, Wait):
                self.wait(task)
            else:
                self.carry_out(task)

    def carry_out(self, task: Post) -> None:
        """Carry out one task by its handler."""
        handler = self.handlers[task.kind]
        step = handler.step or task.attempt.purpose
        round_id = self.rounds - 1 if task.kind is Kind.FINISHED else task.round_id
        self.entered(round_id, step)
        with self.step(round_id, step):
            handler.carry_out(task)

    @contextmanager
    def step(self, round_id: int, step: str) -> Iterator[None]:
        """Tell of one piece of work, with its seconds and bytes; one that fails has no end."""
        began, before = self.clock(), self.traffic()
        self.events.write(StepStarted, round_id=round_id, step=step)
        yield
        after = self.traffic()
        self.events.write(
            StepFinished,
            round_id=round_id,
            step=step,
            seconds=round(self.clock() - began, 3),
            bytes_up=after.up_bytes - before.up_bytes,
            bytes_down=after.down_bytes - before.down_bytes,
        )
