"""A site's review of a plan: by its policy, its budget and its people.

A refusal is a ledger entry before it is a message, and so is an acceptance. What people have
decided is read from the ledger, where another process of this site writes it: while this one waits
for them it holds no lock on that file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn

from lada_clients.net.outcomes import LeftStudy, Outdated
from lada_clients.net.participant import Participant
from lada_clients.site.approval import (
    DecisionRefused,
    Standing,
    deadline,
    decision_on,
    left_words,
    policy_name,
    standing,
    wait_for_people,
)
from lada_clients.site.gates.policy import plan_faults, plan_statement, planned_budget
from lada_clients.site.ledger.population import reused_name_faults
from lada_clients.site.settings import SitePolicy
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_time
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import PrivacyBudgetExceeded
from lada_secure.method.mechanisms import planned_events
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.carried_budget import spending
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry

LOG = logging.getLogger(__name__)
# Between two looks at the ledger and the board while people decide.
LOOK_S: Final = 2.0
_UNDECIDED: Final = "nobody had decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReview:
    """Whether this site takes part in the study that it has joined."""

    participant: Participant
    policy: SitePolicy
    book: LedgerBook
    now: Callable[[], datetime]
    outdated: Callable[[], bool]

    @property
    def _plan(self) -> StudyPlan:
        return self.participant.plan

    def passes(self) -> bool:
        """Whether policy, budget and people have nothing against the plan.

        Waits for people where the policy asks for one, to the deadline of the plan.

        Returns: False where the study ended meanwhile.
        Raises: StudyFailed: this site refuses. Outdated: people have changed settings or policy
            while they decided; what they decided stands.
        """
        self._check_policy()
        if self.policy.approval == "person" and self._stands() == "undecided":
            if not self._await_people():
                return False
            # That may have taken days.
            if self.outdated():
                raise Outdated("settings or policy were changed while people here decided")
            self._check_policy()
        self._check_people()
        return True

    def accept(self) -> None:
        """Have the acceptance in the ledger: a person's, or now the policy's.

        Raises: StudyFailed: a person has withdrawn meanwhile, or the budget is gone.
        """
        self._check_people()
        self._promise()
        if self.policy.approval != "policy" or self._stands() == "approved":
            return
        try:
            self._decide("approve", plan_statement(self._plan), check=self._check_nobody_decided)
        except DecisionRefused:
            # A person has, since it was looked at; what a person decided stands.
            self._check_people()

    def _check_nobody_decided(self, latest: DecisionEntry | None) -> None:
        """Raises: DecisionRefused: a person's decision on this plan is there."""
        decided = decision_on(latest, self._plan)
        if decided is not None and decided.decided_by != policy_name(self.participant.party):
            raise DecisionRefused(f"{decided.decided_by} has decided {decided.decision!r}")

    def withdrawn(self) -> bool:
        """Whether a person has withdrawn this site from the study."""
        return self._stands() == "withdrawn"

    def leave(self) -> NoReturn:
        """Tell the others that this site has withdrawn. Raises: StudyFailed."""
        self._tell(FailureCode.WITHDRAWN)

    def _stands(self) -> Standing:
        return standing(self.book.latest_decision(self._plan.study_id), self._plan)

    def _check_policy(self) -> None:
        """Raises: StudyFailed: policy or budget refuse the plan."""
        code, faults = self._faults()
        if not faults:
            return
        self._decide("refuse", "; ".join(faults))
        self._refuse(code, f"{self.participant.party} refuses the plan: {'; '.join(faults)}")

    def _faults(self) -> tuple[FailureCode, tuple[str, ...]]:
        """Why policy or budget refuse the plan, and the code of that; nothing where they do not."""
        plan, entries = self._plan, self.book.entries()
        faults = plan_faults(plan, self.policy, roster=self.participant.roster, now=self.now())
        faults += reused_name_faults(entries, plan)
        if faults:
            return FailureCode.POLICY, faults
        over = self._over_budget()
        return FailureCode.OVER_BUDGET, (over,) if over else ()

    def _over_budget(self) -> str:
        """Why the whole study does not fit into the population's budget; empty where it does."""
        plan = self._plan
        promised = self.book.promised(now=self.now(), besides=plan.hash)
        spent = spending(self.book.entries())
        return planned_budget(plan, self.policy, spent=spent, promised=promised).fault()

    def _promise(self) -> None:
        """Promise the study its whole budget before it is accepted.

        Other processes of this site may have joined another study while this one was looked at.

        Raises: StudyFailed: it is gone.
        """
        plan = self._plan
        try:
            self.book.promise(
                tuple(planned_events(plan).values()),
                study_id=plan.study_id,
                plan_hash=plan.hash,
                expires=parse_time(plan.expires),
            )
        except PrivacyBudgetExceeded as error:
            over = self._over_budget() or str(error)
            self._decide("refuse", over)
            said = f"{self.participant.party} refuses the plan: {over}"
            self._refuse(FailureCode.OVER_BUDGET, said)

    def _await_people(self) -> bool:
        """Wait until a person has decided, or nobody has in time, which is a refusal.

        Returns: False where the study ended first.
        """
        me, plan, now = self.participant, self._plan, self.now()
        until = deadline(plan, since=now)
        task = wait_for_people(me.party, until)
        LOG.warning(
            "study %s waits for a person here until %s (%s left): read it with `lada site show`, "
            "then `lada site approve %s` or `lada site refuse %s`",
            plan.study_id,
            task.until,
            left_words(until, now=now),
            plan.study_id,
            plan.study_id,
        )
        while self._stands() == "undecided":
            if isinstance(next_site_task(me.index, site=me.party), Done):
                return False
            left_s = (until - self.now()).total_seconds()
            if left_s > 0:
                me.wait(task, poll_s=min(LOOK_S, left_s))
            else:
                self._close_vote(until)
        return True

    def _close_vote(self, until: datetime) -> None:
        """Record that nobody has decided, unless somebody did at this very moment."""

        def check(latest: DecisionEntry | None) -> None:
            if standing(latest, self._plan) != "undecided":
                raise DecisionRefused("a person has decided at the last moment")

        try:
            self._decide("refuse", f"{_UNDECIDED} by {until:%Y-%m-%dT%H:%M:%SZ}", check=check)
        except DecisionRefused as error:
            LOG.info("study %s: %s", self._plan.study_id, error)

    def _check_people(self) -> None:
        """Raises: StudyFailed: a person has refused or withdrawn, or nobody decided in time."""
        stands = self._stands()
        if stands == "withdrawn":
            self.leave()
        if stands != "refused":
            return
        latest = self.book.latest_decision(self._plan.study_id)
        if latest is None or latest.decided_by != policy_name(self.participant.party):
            self._tell(FailureCode.REFUSED_BY_PERSON)
        if self.policy.approval == "person":
            in_time = not latest.statement.startswith(_UNDECIDED)
            self._tell(FailureCode.POLICY if in_time else FailureCode.UNDECIDED)

    def _tell(self, code: FailureCode) -> NoReturn:
        self._refuse(code, f"{self.participant.party} takes no part: {code.meaning}")

    def _refuse(self, code: FailureCode, said: str) -> NoReturn:
        """Others learn the code. What a policy allows, what is spent and people's reasons stay."""
        self.participant.post(Kind.REFUSAL, {"code": code.value, "message": ""})
        raise (LeftStudy if code is FailureCode.WITHDRAWN else StudyFailed)(said)

    def _decide(
        self,
        decision: Decision,
        statement: str,
        *,
        check: Callable[[DecisionEntry | None], None] = lambda _: None,
    ) -> None:
        plan = self._plan
        self.book.decide(
            decision,
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=parse_time(plan.expires),
            decided_by=policy_name(self.participant.party),
            statement=statement,
            check=check,
        )
