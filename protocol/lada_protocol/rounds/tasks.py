"""What a party does next, as frozen values; an adapter carries them out.

The functions in `site_round`, `auditor_round` and `coordinator_round` compute one of these from
the message index alone. They hold no memory of their own: a task that was not carried out is
returned again, so a crash between any two messages loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lada_protocol.rounds.index import Attempt


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPlan:
    """Site: accept or refuse the plan under the own policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostMaskKey:
    """Site: make a fresh X25519 key for this attempt."""

    attempt: Attempt
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribute:
    """Site: release (once), mask and seal the vector of this purpose."""

    attempt: Attempt
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskScores:
    """Site: train the reward model, encrypt the cell utilities, ask for blind scores."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distil:
    """Site: train on the picked paths and the private records."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerInquiry:
    """Site: let the released SLM write paths for the samples that the coordinator asks about."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRound:
    """Everyone: check and sign the transcript."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PostOpeningKey:
    """Auditor: make the BFV key of one purpose."""

    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitSite:
    """Auditor: compare the ledger that a site accepts with to the own copy; admit or refuse."""

    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLedger:
    """Auditor: verify and countersign what a site appended to its ledger."""

    site: str
    round_id: int
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSum:
    """Auditor: verify and open one sum, or refuse."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposePlan:
    """Coordinator: post plan, pool and clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt:
    """Coordinator: name the cohort of a new attempt."""

    attempt: Attempt
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortAttempt:
    """Coordinator: give an attempt up before anything of it was opened."""

    attempt: Attempt
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddUp:
    """Coordinator: add the sealed contributions."""

    attempt: Attempt
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostMatrix:
    """Coordinator: commit to the matrix that every query of the round is answered from."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Coordinator: answer one site's blind query."""

    round_id: int
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRationales:
    """Coordinator: let the LLM write rationales for the samples in demand."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquire:
    """Coordinator: choose the samples on which sites know more than the LLM, and ask for paths."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImproveModel:
    """Coordinator: train the LLM on the sites' paths; keep it only if the hold-out agrees."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTranscript:
    """Coordinator: list the messages of the round."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Coordinator: say that the study is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Coordinator: the study cannot go on."""

    code: str
    message: str


SiteTask = (
    Wait
    | Done
    | ReviewPlan
    | PostMaskKey
    | Contribute
    | AskScores
    | Distil
    | AnswerInquiry
    | CloseRound
)
AuditorTask = Wait | Done | PostOpeningKey | AdmitSite | CheckLedger | OpenSum | CloseRound
CoordinatorTask = (
    Wait
    | Done
    | ProposePlan
    | StartAttempt
    | AbortAttempt
    | AddUp
    | PostMatrix
    | Score
    | WriteRationales
    | Inquire
    | ImproveModel
    | PostTranscript
    | CloseRound
    | Finish
    | GiveUp
)
