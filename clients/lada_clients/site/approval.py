"""What people at a site have decided about a plan, what they may decide still, and until when.

A plan is decided about once. The ledger holds the decision, bound to the plan's hash, so a plan
that was changed is another one about which nobody has decided.

| decided so far | approve, refuse | withdraw |
|---|---|---|
| nothing, in time | yes | no, refuse it |
| nothing, too late | no | no |
| approved | no | yes |
| refused, withdrawn | no | no |
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from lada_protocol.plan import StudyPlan, format_time, parse_time
from lada_protocol.rounds.tasks import Wait
from lada_secure.errors import LadaError
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry

Standing: TypeAlias = Literal["undecided", "approved", "refused", "withdrawn"]

_STANDINGS: Final[dict[Decision, Standing]] = {
    "approve": "approved",
    "refuse": "refused",
    "withdraw": "withdrawn",
}


class DecisionRefused(LadaError):
    """A person's decision that cannot be: too late, the second one, or about another plan.

    Nothing was recorded, sent or spent.
    """

    code = "decision_refused"


def policy_name(party: str) -> str:
    """Who decides in the ledger where no person does."""
    return f"policy-of-{party}"


def decision_on(latest: DecisionEntry | None, plan: StudyPlan) -> DecisionEntry | None:
    """A study's latest decision where it is about this very plan."""
    return None if latest is None or latest.plan_hash != plan.hash else latest


def standing(latest: DecisionEntry | None, plan: StudyPlan) -> Standing:
    """How a plan stands at a site. Args: latest: the newest decision on its study."""
    found = decision_on(latest, plan)
    return "undecided" if found is None else _STANDINGS[found.decision]


def deadline(plan: StudyPlan, *, since: datetime) -> datetime:
    """Until when people may decide while the site waits for them.

    Args: since: when the site began to wait; it counts where the plan names no time, as the
        coordinator waits for `phase_timeout_s` then.
    """
    if plan.approve_by is not None:
        return parse_time(plan.approve_by)
    return since + timedelta(seconds=plan.phase_timeout_s)


def wait_for_people(site: str, until: datetime) -> Wait:
    """What a site that waits for its own people shows."""
    return Wait(
        step="plan",
        round_id=0,
        awaited="a person's decision",
        parties=(site,),
        until=format_time(until),
    )


def check_first_decision(latest: DecisionEntry | None, plan: StudyPlan, *, now: datetime) -> None:
    """Check that a person may approve or refuse a plan now; see the table above.

    Args: latest: the newest decision on the study.
    Raises: DecisionRefused: says what stands against it, and what can be done.
    """
    study, decided = plan.study_id, decision_on(latest, plan)
    if decided is not None:
        raise DecisionRefused(f"study {study}: {_known(decided)}. {_way_on(decided)}")
    if parse_time(plan.expires) <= now:
        fault = f"the plan expired at {plan.expires}"
    elif plan.approve_by is not None and parse_time(plan.approve_by) <= now:
        fault = f"the time to decide ended at {plan.approve_by}, and this site takes no part in it"
    else:
        return
    raise DecisionRefused(
        f"study {study}: {fault}. Nothing was recorded; ask the coordinator for a new study"
    )


def approval_to_end(latest: DecisionEntry | None, *, study: str) -> DecisionEntry:
    """The approval that a withdrawal ends: a site withdraws from what it takes part in.

    Raises: DecisionRefused: says what it has decided instead.
    """
    if latest is None:
        raise DecisionRefused(
            f"study {study}: nobody here has decided about it, so there is nothing to withdraw "
            f"from. Nothing was recorded; refuse it with `lada site refuse {study}`"
        )
    if latest.decision != "approve":
        raise DecisionRefused(
            f"study {study}: {_known(latest)}. Nothing was recorded, and nothing leaves under it"
        )
    return latest


def _known(decided: DecisionEntry) -> str:
    verb = {"approve": "was approved", "refuse": "was refused", "withdraw": "was withdrawn from"}
    return f"it {verb[decided.decision]} by {decided.decided_by} on {decided.time[:10]}"


def _way_on(decided: DecisionEntry) -> str:
    if decided.decision == "approve":
        return (
            "Nothing was recorded. `lada site run` takes part in it; `lada site withdraw "
            f"{decided.study_id}` ends that"
        )
    return "Nothing was recorded: that is final for this plan, and only a new plan is asked about"


def left_words(until: datetime, *, now: datetime) -> str:
    """How much time is left, in two units; "none" where it is over."""
    minutes = int((until - now).total_seconds()) // 60
    if until <= now:
        return "none"
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
