"""Whether a contribution was paid for: its ledger entries, checked by whoever holds a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt
from lada_secure.allocation.statistics_parameters import l2_sensitivity
from lada_secure.errors import PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, STATISTICS, TRAINING
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, ReserveEntry
from lada_secure.privacy.ledger.terms import numeric_parameter


def check_payment(
    entries: Sequence[LedgerEntry],
    paid_by: str,
    *,
    plan: StudyPlan,
    attempt: Attempt,
    site: str,
) -> None:
    """Check the reservations behind a contribution of (round, purpose).

    Statistics are paid by their own reservation. Demand is post-processing of the same round's
    statistics, so it names their reservation and costs nothing more; confidence excesses are
    post-processing of the round's DP-SGD, all of whose chunks are checked: see
    `check_training_payment`.

    Raises: PeerError: unpaid (no such entry, or of another study, plan, round or purpose, or
        without an output), wrong_noise (other noise than the plan's), over_budget.
    """
    if attempt.purpose == CONFIDENCE_EXCESS:
        check_training_payment(entries, paid_by, plan=plan, round_id=attempt.round_id, site=site)
        return
    where = f"round {attempt.round_id}, {attempt.purpose}, {site}"
    fault = _faults(where, site, attempt.round_id)
    reserve = _named(
        entries, paid_by, STATISTICS, plan=plan, round_id=attempt.round_id, fault=fault
    )
    _check_reservation(reserve, entries, plan, fault)


def check_training_payment(
    entries: Sequence[LedgerEntry], paid_by: str, *, plan: StudyPlan, round_id: int, site: str
) -> None:
    """Check every chunk of a round's DP-SGD: committed, noised as planned, and all of the steps.

    Args: paid_by: the reservation of the last chunk; the others are those of the same round.
    Raises: PeerError: as `check_payment`.
    """
    fault = _faults(f"round {round_id}, {TRAINING}, {site}", site, round_id)
    last = _named(entries, paid_by, TRAINING, plan=plan, round_id=round_id, fault=fault)
    committed = _committed(entries)
    own = [
        one
        for one in entries
        if isinstance(one, ReserveEntry)
        and (one.study_id, one.plan_hash) == (plan.study_id, plan.hash)
        and (one.purpose, one.round_id) == (TRAINING, round_id)
    ]
    chunks = {one.chunk: one for one in own if one.entry_hash in committed}
    for number in range(1 + max(one.chunk for one in own)):
        if number not in chunks:
            raise fault(f"chunk {number} of its steps has no committed output", "unpaid")
        _check_reservation(chunks[number], entries, plan, fault)
    if chunks[max(chunks)] != last:
        raise fault("the ledger entry named is not that of the last chunk of steps", "unpaid")
    steps = sum(one.event.steps for one in chunks.values() if isinstance(one.event, DpSgdEvent))
    if steps != plan.training.steps_per_round:
        raise fault(
            f"{steps} steps were paid for and committed, the plan has "
            f"{plan.training.steps_per_round}",
            "unpaid",
        )


_Fault = Callable[[str, str], PeerError]


def _faults(where: str, site: str, round_id: int) -> _Fault:
    def fault(message: str, reason: str) -> PeerError:
        return PeerError(f"{where}: {message}", reason=reason, peer=site, round_id=round_id)

    return fault


def _named(
    entries: Sequence[LedgerEntry],
    paid_by: str,
    purpose: str,
    *,
    plan: StudyPlan,
    round_id: int,
    fault: _Fault,
) -> ReserveEntry:
    """The reservation of that hash, which must be of this study, plan, round and purpose."""
    reserve = next(
        (one for one in entries if isinstance(one, ReserveEntry) and one.entry_hash == paid_by),
        None,
    )
    if reserve is None:
        raise fault("the ledger entry that paid is not in the auditor's copy", "unpaid")
    if (reserve.study_id, reserve.plan_hash) != (plan.study_id, plan.hash):
        raise fault("the ledger entry belongs to another study or plan", "unpaid")
    if (reserve.round_id, reserve.purpose) != (round_id, purpose):
        raise fault("the ledger entry belongs to another round or purpose", "unpaid")
    return reserve


def _committed(entries: Sequence[LedgerEntry]) -> set[str]:
    return {one.reserve_hash for one in entries if isinstance(one, CommitEntry)}


def _check_reservation(
    reserve: ReserveEntry, entries: Sequence[LedgerEntry], plan: StudyPlan, fault: _Fault
) -> None:
    """It led to an output, with the plan's noise, within the plan's budget."""
    if reserve.entry_hash not in _committed(entries):
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
