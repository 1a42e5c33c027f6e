"""A site's next task, from the message index alone (DESIGN section 3)."""

from __future__ import annotations

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, StudyPlan
from lada_protocol.rounds.admission import admission_of, refused_admission
from lada_protocol.rounds.completion import ending_of
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import check_cohort
from lada_protocol.rounds.tasks import (
    AnswerInquiry,
    AskScores,
    CloseRound,
    Contribute,
    Distil,
    Done,
    PostMaskKey,
    ReviewPlan,
    SiteTask,
    Wait,
)
from lada_protocol.wire.messages import InquiryBody, fault_of, parse_body
from lada_secure.errors import PeerError


def next_site_task(index: MessageIndex, *, plan: StudyPlan, roster: Roster, site: str) -> SiteTask:
    """What the site does next.

    Raises: PeerError where the coordinator's messages break the protocol.
    """
    # First of all: whoever was left out has failed, however the study of the others ended.
    refused = refused_admission(index, site, roster=roster)
    if refused is not None:
        return Done(failure=fault_of(refused))
    over = study_over(index, plan=plan, roster=roster)
    if over is not None:
        return over
    if index.find(Kind.REFUSAL, sender=site) is not None:
        return Done(failure=f"{site} refused the plan")
    if index.find(Kind.ACCEPTANCE, sender=site) is None:
        return ReviewPlan()
    coordinator, auditor = roster.coordinator.id, roster.auditor.id
    if admission_of(index, site, roster=roster) is None:
        return Wait(step="plan", round_id=0, awaited="the admission", parties=(auditor,))
    for round_id in range(plan.rounds):
        if index.find(Kind.CLOSE, sender=site, round_id=round_id) is not None:
            continue
        task = _round_task(index, plan, roster, site, round_id)
        if task is not None:
            return task
    return Wait(step="close", round_id=plan.rounds - 1, awaited="the end", parties=(coordinator,))


def study_over(index: MessageIndex, *, plan: StudyPlan, roster: Roster) -> Done | None:
    """Whether the coordinator has ended the study; "finished" counts only where it was."""
    coordinator = roster.coordinator.id
    failed = index.find(Kind.FAILED, sender=coordinator)
    if failed is not None:
        return Done(failure=fault_of(failed))
    if index.find(Kind.FINISHED, sender=coordinator) is not None:
        return Done(failure=ending_of(index, plan=plan, roster=roster).reason or None)
    return None


def _round_task(
    index: MessageIndex, plan: StudyPlan, roster: Roster, site: str, round_id: int
) -> SiteTask | None:
    """The site's task in one round; None where the round goes on, or went on, without it."""
    coordinator = roster.coordinator.id
    transcript = index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id)
    took_part = index.find(Kind.TRAINED, sender=site, round_id=round_id) is not None
    if transcript is not None:
        return CloseRound(round_id=round_id) if took_part else None
    task = _aggregation_task(index, plan, roster, site, round_id, STATISTICS)
    if task is not None:
        return task
    if index.find(Kind.QUERY, sender=site, to=coordinator, round_id=round_id) is None:
        return AskScores(round_id=round_id)
    if index.find(Kind.SCORES, sender=coordinator, to=site, round_id=round_id) is None:
        return _wait("scoring", round_id, "blind scores", coordinator)
    task = _aggregation_task(index, plan, roster, site, round_id, DEMAND)
    if task is not None:
        return task
    if index.find(Kind.PATHS, sender=coordinator, round_id=round_id) is None:
        return _wait("paths", round_id, "reasoning paths", coordinator)
    if not took_part:
        return Distil(round_id=round_id)
    if plan.transfer_in(round_id) is not None:
        task = _transfer_task(index, plan, roster, site, round_id)
        if task is not None:
            return task
    return _wait("close", round_id, "the transcript", coordinator)


def _transfer_task(
    index: MessageIndex, plan: StudyPlan, roster: Roster, site: str, round_id: int
) -> SiteTask | None:
    """The site's task in the LLM transfer; None once it has answered, or nothing is asked."""
    coordinator = roster.coordinator.id
    task = _aggregation_task(index, plan, roster, site, round_id, CONFIDENCE_EXCESS)
    if task is not None:
        return task
    inquiry = index.find(Kind.INQUIRY, sender=coordinator, round_id=round_id)
    if inquiry is None:
        return _wait("uplink", round_id, "the inquiry", coordinator)
    nothing = parse_body(inquiry, InquiryBody).samples == 0
    answer = index.find(Kind.SITE_PATHS, sender=site, to=coordinator, round_id=round_id)
    return None if nothing or answer is not None else AnswerInquiry(round_id=round_id)


def _aggregation_task(
    index: MessageIndex,
    plan: StudyPlan,
    roster: Roster,
    site: str,
    round_id: int,
    purpose: str,
) -> SiteTask | None:
    """The site's task in a secure aggregation; None once the sum is opened with it inside."""
    coordinator, auditor = roster.coordinator.id, roster.auditor.id
    attempts = index.attempts(Kind.COHORT, round_id=round_id, purpose=purpose)
    if not attempts:
        return _wait("opening", round_id, "the cohort", coordinator)
    attempt = Attempt(round_id=round_id, purpose=purpose, number=attempts[-1])
    _check_not_opened_before(index, attempt, auditor=auditor)
    cohort_message = index.at(Kind.COHORT, attempt, sender=coordinator)
    if cohort_message is None:
        return _wait("opening", round_id, "the cohort", coordinator)
    cohort = check_cohort(cohort_message, plan=plan, roster=roster)
    if site not in cohort:
        return _wait("opening", round_id, "the next round (not in this cohort)", coordinator)
    if index.at(Kind.OPENED, attempt, sender=auditor) is not None:
        return None
    if index.at(Kind.ABORT, attempt, sender=coordinator) is not None:
        return _wait("opening", round_id, "a new attempt", coordinator)
    if index.at(Kind.MASK_KEY, attempt, sender=site) is None:
        return PostMaskKey(attempt=attempt, cohort=cohort)
    keys = index.all_at(Kind.MASK_KEY, attempt)
    missing = tuple(one for one in cohort if one not in keys)
    if missing:
        return Wait(
            step="opening",
            round_id=round_id,
            awaited="mask keys",
            parties=missing,
            attempt=attempt,
        )
    if index.at(Kind.CONTRIBUTION, attempt, sender=site) is None:
        return Contribute(attempt=attempt, cohort=cohort)
    return _wait("opening", round_id, "the opened sum", auditor)


def _check_not_opened_before(index: MessageIndex, attempt: Attempt, *, auditor: str) -> None:
    """A new attempt after a sum was opened would open a second subset: their difference is a
    site.

    Raises: PeerError(reason="already_opened").
    """
    opened = index.attempts(Kind.OPENED, round_id=attempt.round_id, purpose=attempt.purpose)
    for number in opened:
        earlier = Attempt(round_id=attempt.round_id, purpose=attempt.purpose, number=number)
        if number != attempt.number and index.at(Kind.OPENED, earlier, sender=auditor):
            raise PeerError(
                f"round {attempt.round_id}, {attempt.purpose}: attempt {attempt.number} was "
                f"started although attempt {number} is opened; nothing is sent to it",
                reason="already_opened",
                round_id=attempt.round_id,
            )


def _wait(step: str, round_id: int, awaited: str, party: str) -> Wait:
    return Wait(step=step, round_id=round_id, awaited=awaited, parties=(party,))
