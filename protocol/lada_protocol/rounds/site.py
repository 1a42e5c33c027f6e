"""A site's next task, from the message index alone (SPEC.md, "State machines", Site)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import admission_of
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import check_cohort
from lada_protocol.rounds.tasks import Done, Post, RoundView, Task, Wait
from lada_protocol.wire.messages import InquiryBody, fault_of, parse_body
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, TRAINING


def next_site_task(index: MessageIndex, *, site: str, unshown: int | None = None) -> Task:
    """What the site does next.

    Args: unshown: the round of the newest reservation for this study that the site's ledger holds
        and the auditor was not shown; None where there is none.
    Raises: PeerError where the coordinator's messages break the protocol.
    """
    return _SiteView(index=index, me=site, unshown=unshown).task()


@dataclass(frozen=True, slots=True, kw_only=True)
class _SiteView(RoundView):
    unshown: int | None = None

    def task(self) -> Task:
        # First of all: whoever was left out has failed, however the study of the others ended.
        refused = self.find(Kind.REFUSAL, self.auditor, to=self.me)
        if refused is not None:
            return Done(failure=fault_of(refused))
        over = self.over()
        if over is not None:
            return self.late_ledger() or (over if over.failure else self.left_out()) or over
        left = self.find(Kind.REFUSAL, self.me)
        if left is not None:
            return Done(failure=f"{self.me} takes no part: {fault_of(left)}")
        owed = self.owed(Kind.ACCEPTANCE)
        if owed is not None:
            return owed
        if admission_of(self.index, self.me) is None:
            return self.wait("plan", "the admission", self.auditor)
        last = replace(self, round_id=self.plan.rounds - 1)
        return self.first_of_rounds() or last.wait("close", "the end", self.coordinator)

    def round_task(self) -> Task | None:
        if self.find(Kind.CLOSE, self.me) is not None:
            return None
        if self.find(Kind.TRANSCRIPT, self.coordinator) is not None:
            if self.find(Kind.TRAINED, self.me) is not None:
                return self.owed(Kind.CLOSE)
            return self.late_ledger() if self.round_id == self.unshown else None
        return (
            self.opening(STATISTICS)
            or self.owed(Kind.QUERY, to=self.coordinator)
            or self.awaited(Kind.SCORES, "scoring", "blind scores", to=self.me)
            or self.opening(DEMAND)
            or self.awaited(Kind.PATHS, "paths", "reasoning paths")
            or self.owed(Kind.TRAINED)
            or (self.uplink() if self.plan.transfer_in(self.round_id) is not None else None)
            or self.wait("close", "the transcript", self.coordinator)
        )

    def late_ledger(self) -> Post | None:
        """Show the auditor what was spent on a round that went on without this site.

        It stands in the ledger, whatever became of it; unshown, it is missing from the evidence.
        """
        if self.unshown is None:
            return None
        place = Attempt(round_id=self.unshown, purpose=TRAINING)
        there = self.index.at(Kind.LEDGER, place, sender=self.me) is not None
        return None if there else Post(kind=Kind.LEDGER, attempt=place)

    def left_out(self) -> Done | None:
        """The end of a study that was carried out, but not in all rounds by this site."""
        if self.find(Kind.REFUSAL, self.me) is not None:
            return Done(failure=f"{self.me} refused the plan")
        closed = [
            one.header.round_id
            for one in self.index.sent(Kind.CLOSE)
            if one.header.sender == self.me
        ]
        missed = sorted(set(range(self.plan.rounds)) - set(closed))
        if not missed:
            return None
        return Done(
            failure=f"the study went through {len(missed)} of its {self.plan.rounds} rounds "
            f"without {self.me} (round {', '.join(map(str, missed))}); what it has spent on them "
            "stays spent",
            told=FailureCode.MISSED_ROUND,
        )

    def awaited(self, kind: Kind, step: str, awaited: str, *, to: str = "") -> Wait | None:
        """Wait for a message of the coordinator; None once it is there."""
        there = self.find(kind, self.coordinator, to=to) is not None
        return None if there else self.wait(step, awaited, self.coordinator)

    def uplink(self) -> Task | None:
        """The site's task in the LLM transfer; None once it has answered, or nothing is asked."""
        task = self.opening(CONFIDENCE_EXCESS)
        if task is not None:
            return task
        inquiry = self.find(Kind.INQUIRY, self.coordinator)
        if inquiry is None:
            return self.wait("uplink", "the inquiry", self.coordinator)
        if parse_body(inquiry, InquiryBody).samples == 0:
            return None
        return self.owed(Kind.SITE_PATHS, to=self.coordinator)

    def opening(self, purpose: str) -> Task | None:
        """The site's task in a secure aggregation; None once it is opened with the site inside."""
        coordinator, index = self.coordinator, self.index
        attempts = self.attempts(Kind.COHORT, purpose)
        if not attempts:
            return self.wait("opening", "the cohort", coordinator)
        attempt = attempts[-1]
        self.check_not_opened_before(attempt)
        named = index.at(Kind.COHORT, attempt, sender=coordinator)
        if named is None:
            return self.wait("opening", "the cohort", coordinator)
        cohort = check_cohort(named, plan=self.plan, roster=self.index.roster)
        if self.me not in cohort:
            return self.wait("opening", "the next round (not in this cohort)", coordinator)
        if index.at(Kind.OPENED, attempt, sender=self.auditor) is not None:
            return None
        if index.at(Kind.ABORT, attempt, sender=coordinator) is not None:
            return self.wait("opening", "a new attempt", coordinator)
        keys = index.all_at(Kind.MASK_KEY, attempt)
        if self.me not in keys:
            return Post(kind=Kind.MASK_KEY, attempt=attempt, sites=cohort)
        missing = [party for party in cohort if party not in keys]
        if missing:
            return self.wait("opening", "mask keys", *missing, attempt=attempt)
        if index.at(Kind.CONTRIBUTION, attempt, sender=self.me) is None:
            return Post(kind=Kind.CONTRIBUTION, attempt=attempt, sites=cohort)
        return self.wait("opening", "the opened sum", self.auditor)

    def check_not_opened_before(self, attempt: Attempt) -> None:
        """A new attempt after a sum was opened would open a second subset: their difference is
        a site.

        Raises: PeerError(reason="already_opened").
        """
        for earlier in self.attempts(Kind.OPENED, attempt.purpose):
            if earlier != attempt and self.index.at(Kind.OPENED, earlier, sender=self.auditor):
                raise attempt.fault(
                    f"attempt {attempt.number} was started although attempt {earlier.number} is "
                    "opened; nothing is sent to it",
                    reason="already_opened",
                )
