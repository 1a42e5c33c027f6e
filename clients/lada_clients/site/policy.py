"""A site's review of a study plan: every bound of its own policy, before a record is touched."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from lada_clients.site.settings import SitePolicy
from lada_protocol.plan import DEMAND, STATISTICS, TRAINING, StudyPlan, parse_time
from lada_protocol.roster import Roster
from lada_secure.privacy.accounting import epsilon
from lada_secure.privacy.events import DpSgdEvent, GaussianEvent, PrivacyEvent


def planned_epsilon(plan: StudyPlan) -> float:
    """Epsilon of the whole study at the plan's delta, by PLD, before anything is spent."""
    events: list[PrivacyEvent] = [
        GaussianEvent(noise_multiplier=plan.statistics.noise_multiplier, count=plan.rounds),
        DpSgdEvent(
            noise_multiplier=plan.training.noise_multiplier,
            sampling_probability=plan.training.sampling_probability,
            steps=plan.training.steps_per_round * plan.rounds,
        ),
    ]
    return epsilon(events, target_delta=plan.privacy.target_delta)


def plan_faults(
    plan: StudyPlan, policy: SitePolicy, *, roster: Roster, now: datetime
) -> tuple[str, ...]:
    """Everything in which a plan passes the site's policy; empty where it may be accepted."""
    privacy = plan.privacy
    checks: Sequence[tuple[bool, str]] = (
        (
            parse_time(plan.expires) > now,
            f"it expired at {plan.expires}",
        ),
        (
            plan.min_cohort >= policy.min_cohort,
            f"min_cohort is {plan.min_cohort}, the policy asks for {policy.min_cohort}",
        ),
        (
            plan.max_cohort <= max(len(roster.sites), policy.min_cohort),
            f"max_cohort is {plan.max_cohort}, the roster has {len(roster.sites)} sites",
        ),
        (
            privacy.target_delta <= policy.target_delta,
            f"delta is {privacy.target_delta}, the policy allows {policy.target_delta}",
        ),
        (
            privacy.epsilon_cap <= policy.epsilon_cap_per_study,
            f"its epsilon cap is {privacy.epsilon_cap}, the policy allows "
            f"{policy.epsilon_cap_per_study} per study",
        ),
        (
            privacy.max_records_per_unit <= policy.max_records_per_unit,
            f"max_records_per_unit is {privacy.max_records_per_unit}, the policy allows "
            f"{policy.max_records_per_unit}",
        ),
        (
            plan.training.pool_gradients in policy.pool_gradients,
            f"pool_gradients is {plan.training.pool_gradients!r}, the policy allows "
            f"{', '.join(policy.pool_gradients)}",
        ),
    )
    faults = [message for good, message in checks if not good]
    if not faults:
        needed = planned_epsilon(plan)
        if needed > privacy.epsilon_cap:
            faults.append(
                f"its {plan.rounds} rounds would spend epsilon {needed:.3f}, above its own cap of "
                f"{privacy.epsilon_cap}"
            )
    return tuple(faults)


def describe_plan(plan: StudyPlan) -> tuple[str, ...]:
    """What would leave the site, at what cost, until when, in plain words."""
    privacy = plan.privacy
    return (
        f"Study {plan.study_id}: {plan.title}.",
        f"It runs for {plan.rounds} rounds and ends at {plan.expires} at the latest.",
        f"Protected is every single {privacy.unit}: with or without one of them, whatever leaves "
        f"here looks almost the same (epsilon at most {privacy.epsilon_cap}, "
        f"delta {privacy.target_delta}).",
        f"Every round leaves here: a noised count of records and of their losses per topic "
        f"({STATISTICS}; sealed, opened only as a sum over at least {plan.min_cohort} sites), "
        f"which public questions this site wants ({DEMAND}; likewise), and that it has trained.",
        f"The model trained here ({TRAINING}) stays here; it is protected all the same.",
        f"Planned cost: epsilon {planned_epsilon(plan):.3f} of the cap.",
    )
