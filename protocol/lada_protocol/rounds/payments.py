"""Whether a contribution was paid for: its ledger entries, checked by whoever holds a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    account = _Account(entries=entries, plan=plan, attempt=attempt, site=site)
    account.check(account.reservation(paid_by, STATISTICS))


def check_training_payment(
    entries: Sequence[LedgerEntry], paid_by: str, *, plan: StudyPlan, round_id: int, site: str
) -> None:
    """Check every chunk of a round's DP-SGD: committed, noised as planned, and all of the steps.

    Args: paid_by: the reservation of the last chunk; the others are those of the same round.
    Raises: PeerError: as `check_payment`.
    """
    attempt = Attempt(round_id=round_id, purpose=TRAINING)
    account = _Account(entries=entries, plan=plan, attempt=attempt, site=site)
    last = account.reservation(paid_by, TRAINING)
    place = last.study_id, last.plan_hash, last.round_id, last.purpose
    own = [
        one
        for one in account.reservations
        if (one.study_id, one.plan_hash, one.round_id, one.purpose) == place
    ]
    committed = account.committed
    chunks = {one.chunk: one for one in own if one.entry_hash in committed}
    for number in range(1 + max(one.chunk for one in own)):
        if number not in chunks:
            raise account.fault(f"chunk {number} of its steps has no committed output")
        account.check(chunks[number])
    if chunks[max(chunks)] != last:
        raise account.fault("the ledger entry named is not that of the last chunk of steps")
    steps = sum(one.event.steps for one in chunks.values() if isinstance(one.event, DpSgdEvent))
    planned = plan.training.steps_per_round
    if steps != planned:
        raise account.fault(f"{steps} steps were paid for and committed, the plan has {planned}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """A site's ledger, asked what the site has paid for one contribution or training."""

    entries: Sequence[LedgerEntry]
    plan: StudyPlan
    attempt: Attempt
    site: str

    def fault(self, message: str, *, reason: str = "unpaid") -> PeerError:
        """An error for what is wrong with the payment."""
        round_id, purpose = self.attempt.round_id, self.attempt.purpose
        message = f"round {round_id}, {purpose}, {self.site}: {message}"
        return PeerError(message, reason=reason, peer=self.site, round_id=round_id)

    @property
    def committed(self) -> set[str]:
        """Hashes of the reservations that led to an output."""
        return {one.reserve_hash for one in self.entries if isinstance(one, CommitEntry)}

    @property
    def reservations(self) -> list[ReserveEntry]:
        """All reservations, whatever they are for."""
        return [one for one in self.entries if isinstance(one, ReserveEntry)]

    def reservation(self, paid_by: str, purpose: str) -> ReserveEntry:
        """The reservation of that hash, which must be of this study, plan, round and purpose."""
        reserve = next((one for one in self.reservations if one.entry_hash == paid_by), None)
        if reserve is None:
            raise self.fault("the ledger entry that paid is not in the auditor's copy")
        if (reserve.study_id, reserve.plan_hash) != (self.plan.study_id, self.plan.hash):
            raise self.fault("the ledger entry belongs to another study or plan")
        if (reserve.round_id, reserve.purpose) != (self.attempt.round_id, purpose):
            raise self.fault("the ledger entry belongs to another round or purpose")
        return reserve

    def check(self, reserve: ReserveEntry) -> None:
        """It led to an output, with the plan's noise, within the plan's budget."""
        if reserve.entry_hash not in self.committed:
            raise self.fault("the ledger entry was reserved but nothing was committed under it")
        fault_in_noise = _noise_fault(reserve, self.plan)
        if fault_in_noise:
            raise self.fault(fault_in_noise, reason="wrong_noise")
        privacy, spent = self.plan.privacy, reserve.study_epsilon_after
        if reserve.target_delta > privacy.target_delta:
            larger = "the ledger is kept at a larger delta than the plan's"
            raise self.fault(larger, reason="over_budget")
        if spent > privacy.epsilon_cap:
            above = f"epsilon {spent:.3f} is above the plan's cap of {privacy.epsilon_cap}"
            raise self.fault(above, reason="over_budget")


def _noise_fault(reserve: ReserveEntry, plan: StudyPlan) -> str:
    """In what a release was noised less than the plan says; empty where it was not."""
    event, training = reserve.event, plan.training
    if reserve.purpose == TRAINING:
        noised = (
            isinstance(event, DpSgdEvent)
            and event.noise_multiplier >= training.noise_multiplier
            and event.sampling_probability <= training.sampling_probability
        )
    else:
        least = plan.statistics.noise_multiplier
        noised = isinstance(event, GaussianEvent) and event.noise_multiplier >= least
    if not noised:
        return "the ledger entry names less noise than the plan"
    if reserve.purpose == STATISTICS:
        stated = numeric_parameter(reserve.parameters, "l2_sensitivity")
        if stated < l2_sensitivity(plan.statistics.integer_scale):
            return "the ledger entry names a smaller sensitivity than the plan's"
    return ""
