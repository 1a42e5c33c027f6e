"""A site's review of a study plan: every bound of its own policy, before a record is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from lada_clients.site.settings import SitePolicy
from lada_protocol.identity.roster import Roster
from lada_protocol.plan import StudyPlan, parse_time
from lada_secure.method.mechanisms import planned_epsilon, planned_events, reads_slm
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, TRAINING, VALUATION
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.accounting.planning import delta_warnings
from lada_secure.privacy.ledger.entries import MAX_STATEMENT
from lada_secure.privacy.ledger.promises import BudgetPromise
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.screen_text import printable


def study_caps(plan: StudyPlan, policy: SitePolicy) -> BudgetCaps:
    """What the ledger enforces while this plan runs: the stricter of the plan and the policy.

    Epsilon is counted at the smaller delta. At the policy's, where that is the larger one, the
    ledger would prove less than the plan promises, and the auditor would refuse every
    contribution. At the plan's, epsilon is never smaller than at the policy's, so whatever stays
    below the policy's caps there stays below them at its own delta as well. A plan whose delta is
    the larger one promises less than the site asks for: `plan_faults` refuses it before anything
    is reserved.
    """
    return BudgetCaps(
        target_delta=min(plan.privacy.target_delta, policy.target_delta),
        total_epsilon=policy.epsilon_cap_total,
        study_epsilon=policy.epsilon_cap_per_study,
        study_overrides={
            plan.study_id: min(plan.privacy.epsilon_cap, policy.epsilon_cap_per_study)
        },
    )


def plan_faults(
    plan: StudyPlan, policy: SitePolicy, *, roster: Roster, now: datetime
) -> tuple[str, ...]:
    """Everything in which a plan passes the site's policy; empty where it may be accepted."""
    privacy, delta = plan.privacy, plan.privacy.target_delta
    checks = {
        f"it expired at {plan.expires}": parse_time(plan.expires) > now,
        f"min_cohort is {plan.min_cohort}, the policy asks for {policy.min_cohort}": (
            plan.min_cohort >= policy.min_cohort
        ),
        f"max_cohort is {plan.max_cohort}, the roster has {len(roster.sites)} sites": (
            plan.max_cohort <= max(len(roster.sites), policy.min_cohort)
        ),
        f"delta is {delta}, the policy allows {policy.target_delta}": delta <= policy.target_delta,
        f"its epsilon cap is {privacy.epsilon_cap}, the policy allows "
        f"{policy.epsilon_cap_per_study} per study": (
            privacy.epsilon_cap <= policy.epsilon_cap_per_study
        ),
        f"max_records_per_unit is {privacy.max_records_per_unit}, the policy allows "
        f"{policy.max_records_per_unit}": (
            privacy.max_records_per_unit <= policy.max_records_per_unit
        ),
        # The coordinator sets it; with a second, a ledger would say how long records take.
        f"ledger_time_step_s is {privacy.ledger_time_step_s}, the policy asks for "
        f"{policy.min_ledger_time_step_s}": (
            privacy.ledger_time_step_s >= policy.min_ledger_time_step_s
        ),
        f"pool_gradients is {plan.training.pool_gradients!r}, the policy allows "
        f"{', '.join(policy.pool_gradients)}": (
            plan.training.pool_gradients in policy.pool_gradients
        ),
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    if not faults and (needed := planned_epsilon(plan)) > privacy.epsilon_cap:
        faults.append(
            f"its {plan.rounds} rounds would spend epsilon {needed:.3f}, above its own cap of "
            f"{privacy.epsilon_cap}"
        )
    return tuple(faults)


def plan_statement(plan: StudyPlan) -> str:
    """What stands in the ledger beside a decision: the plan in plain words, without a title that
    could be a terminal's commands."""
    return printable(" ".join(describe_plan(plan)))[:MAX_STATEMENT]


def describe_plan(plan: StudyPlan) -> tuple[str, ...]:
    """What would leave the site, at what cost, until when, in plain words."""
    privacy = plan.privacy
    alone = {
        purpose: epsilon([event], target_delta=privacy.target_delta)
        for purpose, event in planned_events(plan).items()
    }
    sentences = [
        f"Study {plan.study_id}: {plan.title}.",
        f"It runs for {plan.rounds} rounds and ends at {plan.expires} at the latest.",
        f"Protected is every single {privacy.unit}: with or without one of them, whatever leaves "
        f"here looks almost the same (epsilon at most {privacy.epsilon_cap}, "
        f"delta {privacy.target_delta}).",
        f"Every round leaves here: a noised count of records and of their losses per topic "
        f"({STATISTICS}; sealed, opened only as a sum over at least {plan.min_cohort} sites), "
        f"which public questions this site wants ({DEMAND}; likewise), and that it has trained.",
        f"A site's own SLM may be {plan.slm.sentence()}.",
    ]
    if reads_slm(plan):
        sentences.append(
            "What this site wants follows from what its model cannot answer yet, as trained so "
            "far: the opened sum says how many sites' models lack a question."
        )
    if plan.uplink is None:
        sentences.append(
            f"The model trained here ({TRAINING}) stays here; it is protected all the same."
        )
    else:
        sentences.append(
            f"Also by how much the model trained here knows public questions better "
            f"({CONFIDENCE_EXCESS}; likewise), and, for at most {plan.uplink.budget} of them, what "
            f"that model writes; only the coordinator reads it. The model itself ({TRAINING}) "
            "stays here."
        )
    if VALUATION in alone:
        sentences.append(
            f"Which of the LLM's paths suit the records is decided by noised sums over them "
            f"({VALUATION}); they stay here, and what this site then asks for follows from them."
        )
    costs = ", ".join(f"{purpose} alone {cost:.3f}" for purpose, cost in alone.items())
    sentences.append(
        f"Planned cost: epsilon {planned_epsilon(plan):.3f} of the cap ({costs}; everything else "
        "is computed from these and costs nothing more)."
    )
    return tuple(sentences)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBudget:
    """Epsilon of a population over all studies at `target_delta`, without and with a whole plan.

    running: studies whose outstanding promises are in `after`, see `LedgerBook.promise`.
    """

    population: str
    before: float
    after: float
    cap: float
    target_delta: float
    running: tuple[str, ...] = ()

    def fault(self) -> str:
        """Why the plan cannot be carried out to its end here; empty where it can."""
        # Not `after > cap`: what is not a number must refuse.
        if self.after <= self.cap:
            return ""
        beside = f" and what {', '.join(self.running)} may still spend" if self.running else ""
        return (
            f"epsilon {self.before:.3f} of {self.cap:g} over all studies is spent on "
            f"{self.population}, and with the whole of this study{beside} it would be "
            f"{self.after:.3f} (at delta {self.target_delta:g})"
        )


def planned_budget(
    plan: StudyPlan,
    policy: SitePolicy,
    *,
    spent: Sequence[tuple[str, PrivacyEvent]],
    promised: Sequence[BudgetPromise] = (),
) -> PlannedBudget:
    """What a plan would make of the site's budget if it ran to its end.

    Args: spent: (plan hash, event) of all that the population's ledger counts, this plan's
        included if the study has begun. promised: to other studies that run, of `promised` of the
        ledger.
    """
    deltas = (promise.target_delta for promise in promised)
    delta = min((study_caps(plan, policy).target_delta, *deltas))
    before = epsilon([event for _, event in spent], target_delta=delta)
    others = [event for plan_hash, event in spent if plan_hash != plan.hash]
    others += [event for promise in promised for event in promise.events]
    whole = epsilon([*others, *planned_events(plan).values()], target_delta=delta)
    return PlannedBudget(
        population=policy.population,
        before=before,
        # What was paid for and not planned, a release under an older spec say, is in `before`.
        after=max(before, whole),
        cap=policy.epsilon_cap_total,
        target_delta=delta,
        running=tuple(promise.study_id for promise in promised),
    )


def describe_budget(
    plan: StudyPlan,
    policy: SitePolicy,
    *,
    spent: Sequence[tuple[str, PrivacyEvent]],
    promised: Sequence[BudgetPromise] = (),
) -> tuple[str, ...]:
    """What this plan would leave of the site's own budget, in plain words; see `planned_budget`."""
    budget = planned_budget(plan, policy, spent=spent, promised=promised)
    delta = budget.target_delta
    beside = f" and what {', '.join(budget.running)} may still spend" if budget.running else ""
    sentences = [
        f"Budget of {budget.population} over all studies: epsilon {budget.before:.3f} of "
        f"{budget.cap:g} is spent; with the whole of this study{beside} it would be "
        f"{budget.after:.3f} (at delta {delta:g}).",
        f"This site's policy allows epsilon {policy.epsilon_cap_per_study:g} per study.",
    ]
    if budget.fault():
        sentences.append(
            f"That is more than {budget.cap:g}: this site refuses the plan, because the study "
            "could not be finished here."
        )
    sentences += delta_warnings(target_delta=delta, units=plan.privacy.max_units)
    return tuple(sentences)
