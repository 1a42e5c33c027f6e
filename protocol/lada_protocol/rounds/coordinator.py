"""The coordinator's next task, from the message index alone (DESIGN section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, StudyPlan
from lada_protocol.rounds.admission import admission_of, refused_admission, shown_with_acceptance
from lada_protocol.rounds.completion import missing_from_round
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.site import study_over
from lada_protocol.rounds.tasks import (
    AbortAttempt,
    AddUp,
    CloseRound,
    CoordinatorTask,
    Finish,
    GiveUp,
    ImproveModel,
    Inquire,
    PostMatrix,
    PostTranscript,
    ProposePlan,
    Score,
    StartAttempt,
    Wait,
    WriteRationales,
)
from lada_protocol.wire.messages import CohortBody, InquiryBody, fault_of, parse_body


def next_coordinator_task(
    index: MessageIndex,
    *,
    plan: StudyPlan,
    roster: Roster,
    given_up: frozenset[tuple[int, str]],
) -> CoordinatorTask:
    """What the coordinator does next.

    Args: given_up: (round, party) pairs that did not answer within the plan's phase timeout, or
        answered with something that cannot be used; round -1 stands for the time before the
        first round.
    """
    coordinator, auditor = roster.coordinator.id, roster.auditor.id
    over = study_over(index, plan=plan, roster=roster)
    if over is not None:
        return over
    if index.find(Kind.CLUSTERS, sender=coordinator) is None:
        return ProposePlan()
    refused = index.find(Kind.REFUSAL, sender=auditor)
    if refused is not None:
        return GiveUp(code="refused", message=fault_of(refused))
    keys = [index.find(Kind.OPENING_KEY, sender=auditor, purpose=one) for one in purposes_of(plan)]
    if None in keys:
        if (-1, auditor) in given_up:
            return GiveUp(code="timeout", message="the auditor never posted its opening keys")
        return Wait(step="plan", round_id=0, awaited="opening keys", parties=(auditor,))
    accepted = _accepted(index, plan, roster, given_up)
    if not isinstance(accepted, tuple):
        return accepted
    for round_id in range(plan.rounds):
        task = _round_task(index, plan, roster, round_id, accepted, given_up)
        if task is not None:
            return task
    return Finish()


def _accepted(
    index: MessageIndex, plan: StudyPlan, roster: Roster, given_up: frozenset[tuple[int, str]]
) -> tuple[str, ...] | Wait | GiveUp:
    """The sites that take part: admitted by the auditor, once all have answered or are given up."""
    auditor = roster.auditor.id
    accepted, refused, silent, unanswered = [], [], [], []
    for party in roster.sites:
        refusal = index.find(Kind.REFUSAL, sender=party.id)
        refusal = refusal or refused_admission(index, party.id, roster=roster)
        if refusal is not None:
            refused.append(f"{party.id}: {fault_of(refusal)}")
        elif admission_of(index, party.id, roster=roster) is not None:
            accepted.append(party.id)
        elif (
            index.find(Kind.ACCEPTANCE, sender=party.id) is not None
            and shown_with_acceptance(index, party.id) is not None
        ):
            unanswered.append(party.id)
        elif (-1, party.id) not in given_up:
            silent.append(party.id)
    if silent and len(accepted) + len(unanswered) < plan.max_cohort:
        return Wait(step="plan", round_id=0, awaited="answers to the plan", parties=tuple(silent))
    if unanswered and (-1, auditor) not in given_up:
        return Wait(step="plan", round_id=0, awaited="admissions", parties=(auditor,))
    if len(accepted) < plan.min_cohort:
        reasons = f" ({'; '.join(refused)})" if refused else ""
        return GiveUp(
            code="cohort_too_small",
            message=f"{len(accepted)} sites take part, {plan.min_cohort} are needed{reasons}",
        )
    return tuple(sorted(accepted))


def _round_task(
    index: MessageIndex,
    plan: StudyPlan,
    roster: Roster,
    round_id: int,
    accepted: tuple[str, ...],
    given_up: frozenset[tuple[int, str]],
) -> CoordinatorTask | None:
    coordinator = roster.coordinator.id
    alive = tuple(site for site in accepted if (round_id, site) not in given_up)
    task = _aggregation_task(index, plan, roster, round_id, STATISTICS, alive, given_up)
    if task is not None:
        return task
    cohort = _opened_cohort(index, roster, round_id, STATISTICS)
    if index.find(Kind.MATRIX, sender=coordinator, round_id=round_id) is None:
        # Before any query is answered, and before there need be one.
        return PostMatrix(round_id=round_id)
    asking = [site for site in cohort if site in alive]
    for site in asking:
        query = index.find(Kind.QUERY, sender=site, to=coordinator, round_id=round_id)
        scores = index.find(Kind.SCORES, sender=coordinator, to=site, round_id=round_id)
        if query is not None and scores is None:
            return Score(round_id=round_id, site=site)
    if not index.attempts(Kind.COHORT, round_id=round_id, purpose=DEMAND):
        late = _without(index, Kind.QUERY, asking, round_id, to=coordinator)
        if late:
            return Wait(step="scoring", round_id=round_id, awaited="queries", parties=late)
    task = _aggregation_task(index, plan, roster, round_id, DEMAND, tuple(asking), given_up)
    if task is not None:
        return task
    if index.find(Kind.PATHS, sender=coordinator, round_id=round_id) is None:
        return WriteRationales(round_id=round_id)
    return _closing_task(index, plan, roster, round_id, given_up)


def _closing_task(
    index: MessageIndex,
    plan: StudyPlan,
    roster: Roster,
    round_id: int,
    given_up: frozenset[tuple[int, str]],
) -> CoordinatorTask | None:
    coordinator = roster.coordinator.id
    cohort = _opened_cohort(index, roster, round_id, DEMAND)
    present = [site for site in cohort if (round_id, site) not in given_up]
    if index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id) is None:
        late = _without(index, Kind.TRAINED, present, round_id)
        if late:
            return Wait(step="distillation", round_id=round_id, awaited="training", parties=late)
        if len(cohort) - len(_without(index, Kind.TRAINED, cohort, round_id)) < plan.min_cohort:
            # What was paid for is spent, and nobody may take it for a study that was carried out.
            missing = missing_from_round(index, round_id, plan=plan, roster=roster)
            return GiveUp(code="cohort_too_small", message=missing)
        if plan.transfer_in(round_id) is not None:
            task = _transfer_task(index, plan, roster, round_id, tuple(present), given_up)
            if task is not None:
                return task
        return PostTranscript(round_id=round_id)
    if index.find(Kind.CLOSE, sender=coordinator, round_id=round_id) is None:
        return CloseRound(round_id=round_id)
    trained = [one for one in present if index.find(Kind.TRAINED, sender=one, round_id=round_id)]
    signers = [*trained, roster.auditor.id]
    signers = [one for one in signers if (round_id, one) not in given_up]
    late = _without(index, Kind.CLOSE, signers, round_id)
    if late:
        return Wait(step="close", round_id=round_id, awaited="signatures", parties=late)
    missing = missing_from_round(index, round_id, plan=plan, roster=roster)
    return GiveUp(code="cohort_too_small", message=missing) if missing else None


def _transfer_task(
    index: MessageIndex,
    plan: StudyPlan,
    roster: Roster,
    round_id: int,
    trained: tuple[str, ...],
    given_up: frozenset[tuple[int, str]],
) -> CoordinatorTask | None:
    """The coordinator's task in the LLM transfer; None once it is over, or where it cannot be.

    The round is complete without it, so too few sites for a sum end the LLM transfer and not the
    study.
    """
    coordinator = roster.coordinator.id
    task = _aggregation_task(index, plan, roster, round_id, CONFIDENCE_EXCESS, trained, given_up)
    if task is not None:
        too_few = isinstance(task, GiveUp) and task.code == "cohort_too_small"
        return None if too_few else task
    if index.find(Kind.LLM_UPDATE, sender=coordinator, round_id=round_id) is not None:
        return None
    inquiry = index.find(Kind.INQUIRY, sender=coordinator, round_id=round_id)
    if inquiry is None:
        return Inquire(round_id=round_id)
    if parse_body(inquiry, InquiryBody).samples:
        cohort = _opened_cohort(index, roster, round_id, CONFIDENCE_EXCESS)
        asked = [site for site in cohort if (round_id, site) not in given_up]
        late = _without(index, Kind.SITE_PATHS, asked, round_id, to=coordinator)
        if late:
            return Wait(step="uplink", round_id=round_id, awaited="site paths", parties=late)
    return ImproveModel(round_id=round_id)


def _without(
    index: MessageIndex, kind: Kind, senders: Sequence[str], round_id: int, *, to: str = ""
) -> tuple[str, ...]:
    """Those of `senders` that have not sent a message of this kind in this round."""
    return tuple(
        one for one in senders if index.find(kind, sender=one, to=to, round_id=round_id) is None
    )


def _opened_cohort(
    index: MessageIndex, roster: Roster, round_id: int, purpose: str
) -> tuple[str, ...]:
    for number in index.attempts(Kind.OPENED, round_id=round_id, purpose=purpose):
        cohort = index.find(
            Kind.COHORT,
            sender=roster.coordinator.id,
            round_id=round_id,
            purpose=purpose,
            attempt=number,
        )
        if cohort is not None:
            return tuple(parse_body(cohort, CohortBody).sites)
    return ()


def _aggregation_task(
    index: MessageIndex,
    plan: StudyPlan,
    roster: Roster,
    round_id: int,
    purpose: str,
    alive: tuple[str, ...],
    given_up: frozenset[tuple[int, str]],
) -> CoordinatorTask | None:
    """The coordinator's task in a secure aggregation; None once it is opened."""
    coordinator, auditor = roster.coordinator.id, roster.auditor.id
    attempts = index.attempts(Kind.COHORT, round_id=round_id, purpose=purpose)
    number = attempts[-1] if attempts else -1
    attempt = Attempt(round_id=round_id, purpose=purpose, number=number)
    if not attempts or index.at(Kind.ABORT, attempt, sender=coordinator) is not None:
        if len(alive) < plan.min_cohort:
            return GiveUp(
                code="cohort_too_small",
                message=f"round {round_id}: {len(alive)} sites are left, "
                f"{plan.min_cohort} are needed",
            )
        return StartAttempt(
            attempt=Attempt(round_id=round_id, purpose=purpose, number=number + 1),
            sites=tuple(sorted(alive)),
        )
    if index.at(Kind.OPENED, attempt, sender=auditor) is not None:
        return None
    refused = index.at(Kind.OPENING_REFUSED, attempt, sender=auditor)
    if refused is not None:
        return GiveUp(code="opening_refused", message=fault_of(refused))
    if index.at(Kind.SUM, attempt, sender=coordinator) is not None:
        if (round_id, auditor) in given_up:
            # A second attempt would not help: whether the first was opened is not known here.
            return GiveUp(
                code="timeout", message=f"round {round_id}: the auditor did not answer the sum"
            )
        return _aggregation_wait(attempt, "the opened sum", (auditor,))
    cohort_message = index.at(Kind.COHORT, attempt, sender=coordinator)
    cohort = tuple(parse_body(cohort_message, CohortBody).sites) if cohort_message else ()
    gone = tuple(site for site in cohort if site not in alive)
    if gone:
        # Late, or what it sent cannot be used: go on among the others, with fresh keys.
        return AbortAttempt(attempt=attempt, missing=gone)
    for kind, awaited in ((Kind.MASK_KEY, "mask keys"), (Kind.CONTRIBUTION, "contributions")):
        sent = index.all_at(kind, attempt)
        missing = tuple(site for site in cohort if site not in sent)
        if missing:
            return _aggregation_wait(attempt, awaited, missing)
    return AddUp(attempt=attempt, cohort=cohort)


def _aggregation_wait(attempt: Attempt, awaited: str, parties: tuple[str, ...]) -> Wait:
    return Wait(
        step="opening",
        round_id=attempt.round_id,
        awaited=awaited,
        parties=parties,
        attempt=attempt,
    )
