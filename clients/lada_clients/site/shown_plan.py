"""A waiting plan for the people who decide about it: everything that follows from saying yes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lada_clients.site.approval import decision_on, left_words, standing
from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.gates.policy import (
    PlannedBudget,
    describe_budget,
    describe_plan,
    planned_budget,
)
from lada_clients.site.gates.slm import describe_slm
from lada_clients.site.settings import SitePolicy
from lada_protocol.identity.roster import Roster
from lada_protocol.plan import StudyPlan, parse_time
from lada_secure.data.records import PoolSample, pool_hash
from lada_secure.method.mechanisms import planned_epsilon
from lada_secure.models.identity import ModelIdentity
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.ledger.entries import DecisionEntry
from lada_secure.privacy.ledger.promises import BudgetPromise
from lada_secure.screen_text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPlan:
    """A plan beside what it would take from this site.

    Args:
        site: this party. spent, promised: see `planned_budget`. latest: the newest decision on the
            study.
        pool: what the coordinator has posted, empty before that. faults: what policy and models
            have against the plan. memory, ledger: sentences about the SLM's memory and, where the
            ledger would be new, about that.
        now: with a zone.
    """

    site: str
    plan: StudyPlan
    roster: Roster
    policy: SitePolicy
    files: SiteFiles
    model: ModelIdentity
    pool: tuple[PoolSample, ...]
    spent: tuple[tuple[str, PrivacyEvent], ...]
    promised: tuple[BudgetPromise, ...]
    latest: DecisionEntry | None
    faults: tuple[str, ...]
    memory: str
    ledger: tuple[str, ...]
    now: datetime

    @property
    def budget(self) -> PlannedBudget:
        """Of the population, before and after the whole study."""
        return planned_budget(self.plan, self.policy, spent=self.spent, promised=self.promised)

    @property
    def people(self) -> int:
        """How many people the study would be about, rounded up as the policy says."""
        bound = self.plan.privacy.max_records_per_unit
        return self._rounded(len(self.files.units(self.policy, max_records_per_unit=bound)))

    @property
    def records(self) -> int:
        """How many of their records would take part, rounded likewise."""
        bound = self.plan.privacy.max_records_per_unit
        units = self.files.units(self.policy, max_records_per_unit=bound)
        return self._rounded(sum(len(unit.records) for unit in units))

    @property
    def pool_matches(self) -> bool:
        """Whether the pool that was posted is the plan's."""
        return pool_hash(self.pool) == self.plan.pool_sha256

    def _rounded(self, count: int) -> int:
        step = self.policy.counts_rounded_up_to
        return -(-count // step) * step

    def sentences(self) -> tuple[str, ...]:
        """For people, in the order in which they would ask."""
        verdict = (
            f"The policy forbids it: {'; '.join(self.faults)}."
            if self.faults
            else "The policy allows it."
        )
        told = (
            *describe_plan(self.plan),
            self._readers(),
            self._people(),
            *describe_slm(self.model),
            self._other_models(),
            self._pool(),
            self.memory,
            *describe_budget(self.plan, self.policy, spent=self.spent, promised=self.promised),
            self._left(),
            *self.ledger,
            verdict,
            *self._decision(),
        )
        return tuple(map(printable, told))

    def to_json(self) -> Mapping[str, Any]:
        """The same for programs: hashes whole, times in UTC."""
        plan, budget = self.plan, self.budget
        decided = decision_on(self.latest, plan)
        return {
            "study_id": plan.study_id,
            "plan_sha256": plan.hash,
            "approval": self.policy.approval,
            "approve_by": plan.approve_by,
            "expires": plan.expires,
            "standing": standing(self.latest, plan),
            "decided_by": None if decided is None else decided.decided_by,
            "faults": list(self.faults),
            "readers": {
                "coordinator": self.roster.coordinator.id,
                "auditor": self.roster.auditor.id,
                "sites": [one.id for one in self.roster.sites if one.id != self.site],
            },
            "people": self.people,
            "records": self.records,
            "counts_rounded_up_to": self.policy.counts_rounded_up_to,
            "slm": self.model.model_dump(),
            "pool": {"samples": plan.pool_size, "sha256": plan.pool_sha256},
            "epsilon": planned_epsilon(plan),
            "epsilon_cap": plan.privacy.epsilon_cap,
            "budget": {
                "population": budget.population,
                "target_delta": budget.target_delta,
                "epsilon_cap_total": budget.cap,
                "epsilon_before": budget.before,
                "epsilon_after": budget.after,
                "epsilon_left": max(0.0, budget.cap - budget.after),
            },
        }

    def _readers(self) -> str:
        coordinator, auditor = self.roster.coordinator.id, self.roster.auditor.id
        others = ", ".join(one.id for one in self.roster.sites if one.id != self.site)
        return (
            f"It goes to {coordinator} (coordinator), {auditor} (auditor) and {others} (sites): "
            f"sealed counts pass through {coordinator}, only {auditor} opens their sum, and all "
            f"read the sum. Only {auditor} reads this site's privacy ledger."
        )

    def _people(self) -> str:
        step, bound = self.policy.counts_rounded_up_to, self.plan.privacy.max_records_per_unit
        exactness = f"rounded up to {step}" if step > 1 else "counted exactly"
        return (
            f"It is about {self.people} people here, by {self.records} records, at most {bound} of "
            f"one person ({exactness}; no other party is told these numbers)."
        )

    def _other_models(self) -> str:
        return (
            f"Texts are placed among topics by {self.plan.embedder}. The LLM is the coordinator's "
            "and stays there; no plan names it."
        )

    def _pool(self) -> str:
        plan = self.plan
        if not self.pool:
            compared = "not posted yet"
        elif self.pool_matches:
            compared = "which is what the coordinator has posted"
        else:
            compared = "which is NOT what the coordinator has posted; this site would refuse that"
        return (
            f"The public pool has {plan.pool_size} questions, SHA-256 {plan.pool_sha256}, "
            f"{compared}."
        )

    def _left(self) -> str:
        budget = self.budget
        left = max(0.0, budget.cap - budget.after)
        return (
            f"Left for later studies of {budget.population} would be epsilon {left:.3f} of "
            f"{budget.cap:g}."
        )

    def _decision(self) -> tuple[str, ...]:
        plan, decided = self.plan, decision_on(self.latest, self.plan)
        named = f"The plan's SHA-256 is {plan.hash}."
        if decided is not None:
            done = f"{standing(self.latest, plan)} by {decided.decided_by} on {decided.time[:10]}"
            return named, f"It is {done}."
        if self.latest is not None:
            named += f" It is another plan than {self.latest.plan_hash[:12]}..., decided on before."
        if self.faults:
            return named, (
                "`lada site run` refuses it, and nobody can approve it here: ask the coordinator "
                "for another plan, or whoever answers for the policy to change that."
            )
        if self.policy.approval == "policy":
            return named, "This site's policy decides by itself once `lada site run` has joined."
        study = plan.study_id
        ways = f'`lada site approve {study} --by "NAME, ROLE"` or `lada site refuse {study}`'
        if plan.approve_by is None:
            wait = f"`lada site run` waits {plan.phase_timeout_s:g} s for a person"
            return named, f"Nobody here has decided about it; {wait}: {ways}."
        left = left_words(parse_time(plan.approve_by), now=self.now)
        return named, (
            f"Nobody here has decided about it; time is until {plan.approve_by} ({left} left): "
            f"{ways}. Without a decision this site takes no part."
        )
