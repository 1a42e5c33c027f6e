"""Whether a contribution was paid for: its ledger entry, checked by whoever holds a copy."""

from __future__ import annotations

from collections.abc import Sequence

from lada_protocol.index import Attempt
from lada_protocol.plan import STATISTICS, StudyPlan
from lada_secure.errors import PeerError
from lada_secure.learnability.statistics import l2_sensitivity
from lada_secure.privacy.entries import CommitEntry, LedgerEntry, ReserveEntry
from lada_secure.privacy.events import GaussianEvent


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
    statistics, so it names their reservation and costs nothing more.

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
    if (reserve.round_id, reserve.purpose) != (attempt.round_id, STATISTICS):
        raise fault("the ledger entry belongs to another round or purpose", "unpaid")
    if not any(isinstance(one, CommitEntry) and one.reserve_hash == paid_by for one in entries):
        raise fault("the ledger entry was reserved but nothing was committed under it", "unpaid")
    if not isinstance(reserve.event, GaussianEvent) or (
        reserve.event.noise_multiplier < plan.statistics.noise_multiplier
    ):
        raise fault("the ledger entry names less noise than the plan", "wrong_noise")
    if reserve.parameters["l2_sensitivity"] < l2_sensitivity(plan.statistics.integer_scale):
        raise fault("the ledger entry names a smaller sensitivity than the plan's", "wrong_noise")
    if reserve.target_delta > plan.privacy.target_delta:
        raise fault("the ledger is kept at a larger delta than the plan's", "over_budget")
    if reserve.study_epsilon_after > plan.privacy.epsilon_cap:
        raise fault(
            f"epsilon {reserve.study_epsilon_after:.3f} is above the plan's cap of "
            f"{plan.privacy.epsilon_cap}",
            "over_budget",
        )
