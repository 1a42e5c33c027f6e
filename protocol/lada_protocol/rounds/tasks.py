"""What a party does next, as frozen values; an adapter carries them out.

The functions in `site_round`, `auditor_round` and `coordinator_round` compute one of these from
the message index alone. They hold no memory of their own: a task that was not carried out is
returned again, so a crash between any two messages loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lada_protocol.rounds.index import Attempt


class Task:
    """What a party does next; each one's docstring begins with whose it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask(Task):
    """Work on one round."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTask(Task):
    """Work on one attempt at a secure aggregation."""

    attempt: Attempt

    @property
    def round_id(self) -> int:
        """The round of the attempt."""
        return self.attempt.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTask(AttemptTask):
    """Work on an attempt among the sites of its cohort."""

    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Task):
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
class Done(Task):
    """The study is over, or failed with a reason that another party gave."""

    failure: str | None = None


class CloseRound(RoundTask):
    """Everyone: check and sign the transcript."""


class ReviewPlan(Task):
    """Site: accept or refuse the plan under the own policy."""


class PostMaskKey(CohortTask):
    """Site: make a fresh X25519 key for this attempt."""


class Contribute(CohortTask):
    """Site: release (once), mask and seal the vector of this purpose."""


class AskScores(RoundTask):
    """Site: train the reward model, encrypt the cell utilities, ask for blind scores."""


class Distil(RoundTask):
    """Site: train on the picked paths and the private records."""


class AnswerInquiry(RoundTask):
    """Site: let the released SLM write paths for the samples that the coordinator asks about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostOpeningKey(Task):
    """Auditor: make the BFV key of one purpose."""

    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitSite(Task):
    """Auditor: compare the ledger that a site accepts with to the own copy; admit or refuse."""

    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLedger(RoundTask):
    """Auditor: verify and countersign what a site appended to its ledger."""

    site: str
    purpose: str


class OpenSum(AttemptTask):
    """Auditor: verify and open one sum, or refuse."""


class ProposePlan(Task):
    """Coordinator: post plan, pool and clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt(AttemptTask):
    """Coordinator: name the cohort of a new attempt."""

    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortAttempt(AttemptTask):
    """Coordinator: give an attempt up before anything of it was opened."""

    missing: tuple[str, ...]


class AddUp(CohortTask):
    """Coordinator: add the sealed contributions."""


class PostMatrix(RoundTask):
    """Coordinator: commit to the matrix that every query of the round is answered from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(RoundTask):
    """Coordinator: answer one site's blind query."""

    site: str


class WriteRationales(RoundTask):
    """Coordinator: let the LLM write rationales for the samples in demand."""


class Inquire(RoundTask):
    """Coordinator: choose the samples on which sites know more than the LLM, and ask for paths."""


class ImproveModel(RoundTask):
    """Coordinator: train the LLM on the sites' paths; keep it only if the hold-out agrees."""


class PostTranscript(RoundTask):
    """Coordinator: list the messages of the round."""


class Finish(Task):
    """Coordinator: say that the study is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp(Task):
    """Coordinator: the study cannot go on."""

    code: str
    message: str
