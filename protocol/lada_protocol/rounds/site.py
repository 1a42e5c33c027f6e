"""A site's next task, from the message index alone (SPEC.md, "State machines", Site)."""

from __future__ import annotations

from dataclasses import dataclass

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import ADVANTAGE, DEMAND, STATISTICS, StudyPlan
from lada_protocol.rounds.admission import admission_of, refused_admission
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
    Task,
    Wait,
)
from lada_protocol.rounds.view import RoundView, study_over
from lada_protocol.wire.messages import InquiryBody, fault_of, parse_body
from lada_secure.errors import PeerError


def next_site_task(index: MessageIndex, *, plan: StudyPlan, roster: Roster, site: str) -> Task:
    """What the site does next.

    Raises: PeerError where the coordinator's messages break the protocol.
    """
    # First of all: whoever was left out has failed, however the study of the others ended.
    refused = refused_admission(index, site, roster=roster)
    if refused is not None:
        return Done(failure=fault_of(refused))
    coordinator, auditor = roster.coordinator.id, roster.auditor.id
    over = study_over(index, plan=plan, roster=roster)
    if over is not None:
        return over
    if index.find(Kind.REFUSAL, sender=site) is not None:
        return Done(failure=f"{site} refused the plan")
    if index.find(Kind.ACCEPTANCE, sender=site) is None:
        return ReviewPlan()
    if admission_of(index, site, roster=roster) is None:
        return Wait(step="plan", round_id=0, awaited="the admission", parties=(auditor,))
    for round_id in range(plan.rounds):
        see = _SiteRound(index=index, plan=plan, roster=roster, round_id=round_id, site=site)
        task = see.task()
        if task is not None:
            return task
    return Wait(step="close", round_id=plan.rounds - 1, awaited="the end", parties=(coordinator,))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SiteRound(RoundView):
    site: str

    def task(self) -> Task | None:
        """The site's task in the round; None where it is over for the site, or goes on without."""
        site, coordinator, round_id = self.site, self.coordinator, self.round_id
        if self.find(Kind.CLOSE, site) is not None:
            return None
        if self.find(Kind.TRANSCRIPT, coordinator) is not None:
            took_part = self.find(Kind.TRAINED, site) is not None
            return CloseRound(round_id=round_id) if took_part else None
        scores = self.wait("scoring", "blind scores", coordinator)
        paths = self.wait("paths", "reasoning paths", coordinator)
        return (
            self.opening(STATISTICS)
            or self.until(Kind.QUERY, site, AskScores(round_id=round_id), to=coordinator)
            or self.until(Kind.SCORES, coordinator, scores, to=site)
            or self.opening(DEMAND)
            or self.until(Kind.PATHS, coordinator, paths)
            or self.until(Kind.TRAINED, site, Distil(round_id=round_id))
            or (self.uplink() if self.plan.uplink_in(round_id) is not None else None)
            or self.wait("close", "the transcript", coordinator)
        )

    def uplink(self) -> Task | None:
        """The site's task in the uplink; None once it has answered, or nothing is asked."""
        task = self.opening(ADVANTAGE)
        if task is not None:
            return task
        inquiry = self.find(Kind.INQUIRY, self.coordinator)
        if inquiry is None:
            return self.wait("uplink", "the inquiry", self.coordinator)
        if parse_body(inquiry, InquiryBody).samples == 0:
            return None
        answer = AnswerInquiry(round_id=self.round_id)
        return self.until(Kind.SITE_PATHS, self.site, answer, to=self.coordinator)

    def opening(self, purpose: str) -> Task | None:
        """The site's task in a collective opening; None once it is opened with the site inside."""
        site, coordinator, index = self.site, self.coordinator, self.index
        attempt = self.newest_attempt(purpose)
        if attempt is None:
            return self.wait("opening", "the cohort", coordinator)
        self.check_not_opened_before(attempt)
        named = index.at(Kind.COHORT, attempt, sender=coordinator)
        if named is None:
            return self.wait("opening", "the cohort", coordinator)
        cohort = check_cohort(named, plan=self.plan, roster=self.roster)
        if site not in cohort:
            return self.wait("opening", "the next round (not in this cohort)", coordinator)
        if index.at(Kind.OPENED, attempt, sender=self.auditor) is not None:
            return None
        if index.at(Kind.ABORT, attempt, sender=coordinator) is not None:
            return self.wait("opening", "a new attempt", coordinator)
        keys = index.all_at(Kind.MASK_KEY, attempt)
        if site not in keys:
            return PostMaskKey(attempt=attempt, cohort=cohort)
        missing = [party for party in cohort if party not in keys]
        if missing:
            return self.wait("opening", "mask keys", *missing, attempt=attempt)
        if index.at(Kind.CONTRIBUTION, attempt, sender=site) is None:
            return Contribute(attempt=attempt, cohort=cohort)
        return self.wait("opening", "the opened sum", self.auditor)

    def check_not_opened_before(self, attempt: Attempt) -> None:
        """A new attempt after an opening would open a second subset: their difference is a site.

        Raises: PeerError(reason="already_opened").
        """
        purpose = attempt.purpose
        for number in self.index.attempts(Kind.OPENED, round_id=self.round_id, purpose=purpose):
            earlier = self.attempt(purpose, number)
            if earlier != attempt and self.index.at(Kind.OPENED, earlier, sender=self.auditor):
                raise PeerError(
                    f"round {self.round_id}, {purpose}: attempt {attempt.number} was started "
                    f"although attempt {number} is opened; nothing is sent to it",
                    reason="already_opened",
                    round_id=self.round_id,
                )
