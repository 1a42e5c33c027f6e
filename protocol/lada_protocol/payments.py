"""Whether a contribution was paid for: its ledger entry, checked by whoever holds a copy."""

from __future__ import annotations

from collections.abc import Sequence

from lada_protocol.index import Attempt
from lada_protocol.plan import ADVANTAGE, STATISTICS, TRAINING, StudyPlan
from lada_secure.errors import PeerError
from lada_secure.learnability.statistics_parameters import l2_sensitivity
from lada_secure.privacy.entries import CommitEntry, LedgerEntry, ReserveEntry
from lada_secure.privacy.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.ledger import numeric_parameter


def check_payment(
    entries: Sequence[LedgerEntry],
    paid_by: str,
    *,
    plan: StudyPlan,
    attempt: Attempt,
    site: str,
) -> None:
    """Check the reservation behind a contribution of (round, purpose).

    Statistics are paid by their own reservation. Demand is post-processing of the same round's
    statistics, so it names their reservation and costs nothing more; advantages are
    post-processing of the round's DP-SGD and name a reservation of that.

    Raises: PeerError: unpaid (no such entry, or of another study, plan, round or purpose, or
        without an output), wrong_noise (other noise than the plan's), over_budget.
    """
    where = f"round {attempt.round_id}, {attempt.purpose}, {site}"

    def fault(message: str, reason: str) -> PeerError:
        return PeerError(f"{where}: {message}", reason=reason, peer=site, round_id=attempt.round_id)

    reserve = next(
        (one for one in entries if isinstance(one, ReserveEntry) and one.entry_hash == paid_by),
        None,
    )
    if reserve is None:
        raise fault("the ledger entry that paid is not in the auditor's copy", "unpaid")
    if (reserve.study_id, reserve.plan_hash) != (plan.study_id, plan.hash):
        raise fault("the ledger entry belongs to another study or plan", "unpaid")
    paying = TRAINING if attempt.purpose == ADVANTAGE else STATISTICS
    if (reserve.round_id, reserve.purpose) != (attempt.round_id, paying):
        raise fault("the ledger entry belongs to another round or purpose", "unpaid")
    if not any(isinstance(one, CommitEntry) and one.reserve_hash == paid_by for one in entries):
        raise fault("the ledger entry was reserved but nothing was committed under it", "unpaid")
    fault_in_noise = _noise_fault(reserve, plan)
    if fault_in_noise:
        raise fault(fault_in_noise, "wrong_noise")
    if reserve.target_delta > plan.privacy.target_delta:
        raise fault("the ledger is kept at a larger delta than the plan's", "over_budget")
    if reserve.study_epsilon_after > plan.privacy.epsilon_cap:
        raise fault(
            f"epsilon {reserve.study_epsilon_after:.3f} is above the plan's cap of "
            f"{plan.privacy.epsilon_cap}",
            "over_budget",
        )


def _noise_fault(reserve: ReserveEntry, plan: StudyPlan) -> str:
    """In what a release was noised less than the plan says; empty where it was not."""
    less = "the ledger entry names less noise than the plan"
    event = reserve.event
    if reserve.purpose == TRAINING:
        training = plan.training
        if (
            not isinstance(event, DpSgdEvent)
            or event.noise_multiplier < training.noise_multiplier
            or event.sampling_probability > training.sampling_probability
        ):
            return less
        return ""
    if (
        not isinstance(event, GaussianEvent)
        or event.noise_multiplier < plan.statistics.noise_multiplier
    ):
        return less
    stated = numeric_parameter(reserve.parameters, "l2_sensitivity")
    if stated < l2_sensitivity(plan.statistics.integer_scale):
        return "the ledger entry names a smaller sensitivity than the plan's"
    return ""
