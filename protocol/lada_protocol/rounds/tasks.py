"""What a party does next, as frozen values; an adapter carries them out.

The rules of site, auditor and coordinator compute one of these from the message index alone. They
hold no memory of their own: a task that was not carried out is returned again, so a crash between
any two messages loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt


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
    another wait.
    """

    step: str
    round_id: int
    awaited: str
    parties: tuple[str, ...]
    attempt: Attempt | None = None

    def is_like(self, other: Wait) -> bool:
        """Whether both are for the same thing, perhaps from fewer parties."""
        return replace(self, parties=()) == replace(other, parties=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The study is over, or failed with a reason that another party gave."""

    failure: str | None = None


Task: TypeAlias = Post | Wait | Done
