"""One round of a study as its messages show it: what the rules of all three parties ask.

The rules of a party are lines of an `or`: the first that gives a task says what comes next, as in
the tables of SPEC.md, "State machines".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.completion import ending_of
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.tasks import Done, Task, Wait
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import fault_of

T = TypeVar("T", bound=Task)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """The messages of one round, for the rules of a party."""

    index: MessageIndex
    plan: StudyPlan
    roster: Roster
    round_id: int

    @property
    def coordinator(self) -> str:
        """The coordinator's id."""
        return self.roster.coordinator.id

    @property
    def auditor(self) -> str:
        """The auditor's id."""
        return self.roster.auditor.id

    def find(self, kind: Kind, sender: str, *, to: str = "") -> Envelope | None:
        """A message of this round that belongs to no attempt."""
        return self.index.find(kind, sender=sender, to=to, round_id=self.round_id)

    def until(self, kind: Kind, sender: str, task: T, *, to: str = "") -> T | None:
        """The task until that message is there."""
        return task if self.find(kind, sender, to=to) is None else None

    def silent(self, kind: Kind, senders: Iterable[str], *, to: str = "") -> tuple[str, ...]:
        """Those that have not sent a message of this kind in this round."""
        return tuple(sender for sender in senders if self.find(kind, sender, to=to) is None)

    def wait(self, step: str, awaited: str, *parties: str, attempt: Attempt | None = None) -> Wait:
        """Wait for these parties."""
        return Wait(
            step=step, round_id=self.round_id, awaited=awaited, parties=parties, attempt=attempt
        )

    def newest_attempt(self, purpose: str) -> Attempt | None:
        """The attempt at an opening that the coordinator started last."""
        numbers = self.index.attempts(Kind.COHORT, round_id=self.round_id, purpose=purpose)
        return self.attempt(purpose, numbers[-1]) if numbers else None

    def attempt(self, purpose: str, number: int) -> Attempt:
        """One attempt of this round."""
        return Attempt(round_id=self.round_id, purpose=purpose, number=number)


def study_over(index: MessageIndex, *, plan: StudyPlan, roster: Roster) -> Done | None:
    """Whether the coordinator has ended the study; "finished" counts only where it was."""
    coordinator = roster.coordinator.id
    failed = index.find(Kind.FAILED, sender=coordinator)
    if failed is not None:
        return Done(failure=fault_of(failed))
    if index.find(Kind.FINISHED, sender=coordinator) is not None:
        return Done(failure=ending_of(index, plan=plan, roster=roster).reason or None)
    return None
