"""Checks a whole ledger from its exported entries alone, and recomputes what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting import (
    PldAccountant,
    epsilon,
    epsilon_rdp,
)
from lada_secure.privacy.composition import cross_check
from lada_secure.privacy.countersignature import (
    Countersignature,
    check_against_ledger,
    check_countersignature,
)
from lada_secure.privacy.entries import (
    CommitEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
)
from lada_secure.privacy.ledger import BudgetCaps, LedgerHead
from lada_secure.privacy.replay import LedgerReplay

# Composition in another order differs in the last digits, and FFT libraries differ as well.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpending:
    """What one study cost, recomputed. `decision` is the site's latest on it."""

    study_id: str
    epsilon: float
    epsilon_rdp: float
    reservations: int
    commits: int
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSummary:
    """What a verified ledger says; every epsilon is recomputed, at `target_delta`.

    `target_delta` is None where nothing was ever reserved and no caps were given.
    `uncommitted` counts reservations without an output (crashes, or work in progress): spent.
    `countersigned_length` is how many entries the auditor's newest countersignature covers.
    """

    identity: LedgerIdentity
    head: LedgerHead
    target_delta: float | None
    epsilon: float
    epsilon_rdp: float
    reservations: int
    commits: int
    uncommitted: int
    studies: tuple[StudySpending, ...]
    countersigned_length: int


def _agree(where: str, field: str, recorded: float, recomputed: float) -> None:
    allowed = RELATIVE_TOLERANCE * recomputed + ABSOLUTE_TOLERANCE
    # Not `> allowed`: a NaN must refuse too.
    if not abs(recorded - recomputed) <= allowed:
        raise LedgerError(
            f"{where}: {field}: the entry says {recorded:.6g}, recomputed from the releases up to "
            f"it is {recomputed:.6g}"
        )


def _within(where: str, scope: str, value: float, cap: float) -> None:
    if not value <= cap:
        raise LedgerError(f"{where}: epsilon of {scope} is {value:.6g}, above the cap of {cap:.6g}")


class _Recomputation:
    """Recomputes the cumulative epsilon of every reservation, independently of the entries."""

    def __init__(self, caps: BudgetCaps | None) -> None:
        self._caps = caps
        self._total = PldAccountant()
        self._by_study: dict[str, PldAccountant] = {}

    def check(self, entry: ReserveEntry) -> None:
        """Raises: LedgerError: recorded epsilon or a cap does not hold."""
        where = f"entry {entry.index}"
        delta = entry.target_delta
        study = self._by_study.setdefault(entry.study_id, PldAccountant())
        study.compose(entry.event)
        self._total.compose(entry.event)
        study_epsilon, study_rdp = study.epsilon(delta), study.epsilon_rdp(delta)
        if len(self._by_study) == 1:
            total_epsilon, total_rdp = study_epsilon, study_rdp
        else:
            total_epsilon = self._total.epsilon(delta)
            total_rdp = self._total.epsilon_rdp(delta)
        _agree(where, "study_epsilon_after", entry.study_epsilon_after, study_epsilon)
        _agree(where, "study_epsilon_rdp_after", entry.study_epsilon_rdp_after, study_rdp)
        _agree(where, "epsilon_after", entry.epsilon_after, total_epsilon)
        _agree(where, "epsilon_rdp_after", entry.epsilon_rdp_after, total_rdp)
        _within(where, f"study {entry.study_id}", entry.study_epsilon_after, entry.study_cap)
        _within(where, "all studies", entry.epsilon_after, entry.total_cap)
        caps = self._caps
        if caps is not None and caps.target_delta == delta:
            study_cap = caps.for_study(entry.study_id)
            _within(where, f"study {entry.study_id}", entry.study_epsilon_after, study_cap)
            _within(where, "all studies", entry.epsilon_after, caps.total_epsilon)


def _identity(
    entries: Sequence[LedgerEntry], public_key: bytes, site: str | None, population: str | None
) -> LedgerIdentity:
    if not entries and (site is None or population is None):
        raise LedgerError("ledger: it is empty; name the site and the population it is of")
    return LedgerIdentity(
        site=entries[0].site if site is None else site,
        population=entries[0].population if population is None else population,
        public_key=public_key,
    )


def _totals(
    reserves: Sequence[ReserveEntry], target_delta: float | None, where: str
) -> tuple[float, float]:
    if target_delta is None:
        return 0.0, 0.0
    events = [entry.event for entry in reserves]
    by_pld = epsilon(events, target_delta=target_delta)
    by_rdp = epsilon_rdp(events, target_delta=target_delta)
    cross_check(by_pld, by_rdp)
    if reserves and reserves[-1].target_delta == target_delta:
        # Equal settings merged first: another order of the same sum than entry by entry.
        _agree(where, "epsilon", reserves[-1].epsilon_after, by_pld)
    return by_pld, by_rdp


def verify_ledger(
    entries: Sequence[LedgerEntry],
    *,
    public_key: bytes,
    caps: BudgetCaps | None,
    site: str | None = None,
    population: str | None = None,
    countersignatures: Sequence[Countersignature] = (),
    auditor_key: bytes | None = None,
) -> LedgerSummary:
    """Check chain, signatures, approvals, times, mechanisms, epsilon, caps, countersignatures.

    Nothing that the ledger says about cost is believed: epsilon is recomputed for every
    reservation by PLD and RDP, and once more for all of them merged.

    Args:
        entries: from `parse_ledger_lines`, from the first entry on.
        public_key: the site's Ed25519 key, 32 raw bytes, from its certificate.
        caps: the budget that was agreed with the site, or None to hold the ledger to the caps
            that it recorded itself.
        site, population: what the ledger should be of; None takes it from the first entry.
        countersignatures, auditor_key: what the auditor has signed, and the key that checks it.
    Raises: LedgerError: names the first entry that is wrong.
    """
    identity = _identity(entries, public_key, site, population)
    replay = LedgerReplay(identity)
    for entry in entries:
        replay.append(entry)
    covered = _check_countersignatures(countersignatures, auditor_key, identity, entries)
    # Costly, so only for a ledger that is otherwise whole.
    recomputation = _Recomputation(caps)
    reserves = [entry for entry in entries if isinstance(entry, ReserveEntry)]
    for reserve in reserves:
        recomputation.check(reserve)
    commits = sum(isinstance(entry, CommitEntry) for entry in entries)
    target_delta = reserves[-1].target_delta if reserves else None
    if caps is not None:
        target_delta = caps.target_delta
    where = f"entry {reserves[-1].index}" if reserves else "ledger"
    total, total_rdp = _totals(reserves, target_delta, where)
    if caps is not None:
        _within(where, "all studies", total, caps.total_epsilon * (1 + RELATIVE_TOLERANCE))
    return LedgerSummary(
        identity=identity,
        head=replay.head(),
        target_delta=target_delta,
        epsilon=total,
        epsilon_rdp=total_rdp,
        reservations=len(reserves),
        commits=commits,
        uncommitted=len(reserves) - commits,
        studies=_studies(replay, entries, target_delta, caps),
        countersigned_length=covered,
    )


def _check_countersignatures(
    countersignatures: Sequence[Countersignature],
    auditor_key: bytes | None,
    identity: LedgerIdentity,
    entries: Sequence[LedgerEntry],
) -> int:
    if countersignatures and auditor_key is None:
        raise LedgerError("countersignatures: the auditor's public key is needed to check them")
    covered = 0
    for one in countersignatures:
        if auditor_key is not None:
            check_countersignature(one, auditor_key=auditor_key)
        check_against_ledger(one, identity=identity, entries=entries)
        covered = max(covered, one.index + 1)
    return covered


def _studies(
    replay: LedgerReplay,
    entries: Sequence[LedgerEntry],
    target_delta: float | None,
    caps: BudgetCaps | None,
) -> tuple[StudySpending, ...]:
    result: list[StudySpending] = []
    for study_id in sorted({entry.study_id for entry in entries}):
        own = [entry for entry in entries if entry.study_id == study_id]
        reserves = [entry for entry in own if isinstance(entry, ReserveEntry)]
        decision = replay.decision(study_id)
        spent, spent_rdp = 0.0, 0.0
        if target_delta is not None:
            events = [entry.event for entry in reserves]
            spent = epsilon(events, target_delta=target_delta)
            spent_rdp = epsilon_rdp(events, target_delta=target_delta)
        if caps is not None:
            cap = caps.for_study(study_id) * (1 + RELATIVE_TOLERANCE)
            _within(f"study {study_id}", f"study {study_id}", spent, cap)
        result.append(
            StudySpending(
                study_id=study_id,
                epsilon=spent,
                epsilon_rdp=spent_rdp,
                reservations=len(reserves),
                commits=sum(isinstance(entry, CommitEntry) for entry in own),
                decision="none" if decision is None else decision.decision,
            )
        )
    return tuple(result)
