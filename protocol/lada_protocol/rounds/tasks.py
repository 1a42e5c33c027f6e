"""What a party does next, as frozen values, and the view of a round from which its rules say so.

An adapter carries a task out. The rules of site, auditor and coordinator compute it from the
message index alone and hold no memory of their own: a task that was not carried out is returned
again, so a crash between any two messages loses nothing. They are lines of an `or`, as the tables
of SPEC.md, "State machines": the first that gives a task says what comes next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_time
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.transcript import ending_of
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import fault_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Make and post a message that the others wait for, and what has to go with it.

    attempt: where it belongs; a message of no secure aggregation has no purpose, and one of no
    round is in round 0. sites: whom it is about: the cohort of the attempt, or who is missing in an
    `abort`.
    """

    kind: Kind
    attempt: Attempt = field(default_factory=Attempt)
    to: str = ""
    sites: tuple[str, ...] = ()

    @property
    def round_id(self) -> int:
        """The round of the message."""
        return self.attempt.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp(Post):
    """Post `failed`: the study cannot go on."""

    kind: Kind = Kind.FAILED
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do until others have sent something; shown to the operator.

    attempt: of a secure aggregation, where the wait is for its messages: the next attempt is
    another wait. until: ISO 8601 in UTC, where people have time until then; None where the wait is
    for programs alone.
    """

    step: str
    round_id: int
    awaited: str
    parties: tuple[str, ...]
    attempt: Attempt | None = None
    until: str | None = None

    def is_overdue(self, waited_s: float, *, timeout_s: float, now: datetime) -> bool:
        """Whether those who are waited for have had their time.

        What people have decided at the last moment still has to be carried out, by programs that
        load models; so they have `timeout_s` after `until` as well.

        Args: waited_s: seconds of waiting for the same thing. timeout_s: the plan's
            `phase_timeout_s`. now: with a zone.
        """
        since = now - timedelta(seconds=waited_s)
        return now > end_of_wait(since, until=self.until, timeout_s=timeout_s)

    def is_like(self, other: Wait) -> bool:
        """Whether both are for the same thing, perhaps from fewer parties."""
        return replace(self, parties=()) == replace(other, parties=())


def end_of_wait(since: datetime, *, until: str | None, timeout_s: float) -> datetime:
    """When those who are waited for have had their time; see `Wait.is_overdue`."""
    begun = since if until is None else max(since, parse_time(until))
    return begun + timedelta(seconds=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The study is over, or failed with a reason that another party gave.

    told: what the others are to know of a failure of this party's own.
    """

    failure: str | None = None
    told: FailureCode | None = None


Task: TypeAlias = Post | Wait | Done


def place_of(task: Task) -> Attempt | None:
    """Round, purpose and attempt of what a party is at; None at the end of its study."""
    if isinstance(task, Done):
        return None
    if isinstance(task, Post):
        return task.attempt
    return task.attempt or Attempt(round_id=task.round_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """What a party, `me`, sees of one round; what comes before the rounds stands in round 0."""

    index: MessageIndex
    me: str
    round_id: int = 0

    @property
    def plan(self) -> StudyPlan:
        """The plan of the study."""
        return self.index.plan

    @property
    def coordinator(self) -> str:
        """The coordinator's id."""
        return self.index.coordinator

    @property
    def auditor(self) -> str:
        """The auditor's id."""
        return self.index.auditor

    def round_task(self) -> Task | None:
        """The party's task in this round; None where it has none, or none any more."""
        raise NotImplementedError

    def first_of_rounds(self) -> Task | None:
        """The task in the first round that has one."""
        rounds = (replace(self, round_id=round_id) for round_id in range(self.plan.rounds))
        return next((task for view in rounds if (task := view.round_task()) is not None), None)

    def over(self) -> Done | None:
        """Whether the coordinator has ended the study; "finished" counts only where it was."""
        failed = self.index.find(Kind.FAILED, sender=self.coordinator)
        if failed is not None:
            return Done(failure=fault_of(failed))
        if self.index.find(Kind.FINISHED, sender=self.coordinator) is not None:
            return Done(failure=ending_of(self.index).reason or None)
        return None

    def find(self, kind: Kind, sender: str, *, to: str = "", purpose: str = "") -> Envelope | None:
        """A message of this round that belongs to no attempt."""
        return self.index.find(kind, sender=sender, to=to, purpose=purpose, round_id=self.round_id)

    def owed(self, kind: Kind, *, to: str = "") -> Post | None:
        """Post a message of this round; None once it is there."""
        if self.find(kind, self.me, to=to) is not None:
            return None
        return Post(kind=kind, attempt=self.attempt("", 0), to=to)

    def silent(self, kind: Kind, senders: Iterable[str], *, to: str = "") -> tuple[str, ...]:
        """Those that have not sent a message of this kind in this round."""
        return tuple(sender for sender in senders if self.find(kind, sender, to=to) is None)

    def wait(
        self,
        step: str,
        awaited: str,
        *parties: str,
        attempt: Attempt | None = None,
        until: str | None = None,
    ) -> Wait:
        """Wait for these parties."""
        return Wait(
            step=step,
            round_id=self.round_id,
            awaited=awaited,
            parties=parties,
            attempt=attempt,
            until=until,
        )

    def attempt(self, purpose: str, number: int) -> Attempt:
        """One attempt of this round."""
        return Attempt(round_id=self.round_id, purpose=purpose, number=number)

    def attempts(self, kind: Kind, purpose: str) -> list[Attempt]:
        """Attempts of this round for which a message of this kind is there, ascending."""
        numbers = self.index.attempts(kind, round_id=self.round_id, purpose=purpose)
        return [self.attempt(purpose, number) for number in numbers]
