"""Checks a whole ledger from its exported entries alone, and recomputes what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.accountant import Spending, epsilon
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    FirstEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    ResumeEntry,
    StudyEntry,
)
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant
from lada_secure.privacy.ledger.terms import BudgetCaps, LedgerHead

# Composition in another order differs in the last digits, and FFT libraries differ as well.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpending:
    """What one study cost, recomputed. `decision` is the site's latest on it.

    `resumes` counts reservations that were used again after a failure, at no cost.
    """

    study_id: str
    epsilon: float
    reservations: int
    resumes: int
    commits: int
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSummary:
    """What a verified ledger says; every epsilon is recomputed, at `target_delta`.

    Attributes:
        entries: what was verified. public_key: the site's key in force, hex.
        started: the time of the first entry, from which on this ledger counts.
        restart: what the auditor granted where this ledger replaces a lost one; `epsilon` and
            `epsilon_rdp` include what it carried over. None where it replaces none.
        target_delta: None where nothing was ever reserved or carried and no caps were given.
        resumes: reservations that were used again after a failure, at no cost.
        uncommitted: reservations without an output (crashes, or work in progress): spent.
    """

    identity: LedgerIdentity
    entries: tuple[LedgerEntry, ...]
    public_key: str
    head: LedgerHead
    started: str
    restart: RestartGrant | None
    target_delta: float | None
    epsilon: float
    epsilon_rdp: float
    reservations: int
    resumes: int
    commits: int
    uncommitted: int
    studies: tuple[StudySpending, ...]


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


def _recompute(
    reserves: Sequence[ReserveEntry], caps: BudgetCaps | None, grant: RestartGrant | None
) -> None:
    """Cumulative epsilon of every reservation anew, whatever the entries say of it.

    Raises: LedgerError: a recorded epsilon or a cap does not hold.
    """
    spending = Spending()
    if grant is not None and grant.carried is not None:
        spending.count(grant.carried, *grant.studies)
    for entry in reserves:
        where, study = f"entry {entry.index}", f"study {entry.study_id}"
        costs = spending.after(entry.event, entry.study_id, entry.target_delta)
        spending.count(entry.event, entry.study_id)
        for field, cost in costs.items():
            _agree(where, field, getattr(entry, field), cost)
        _within(where, study, entry.study_epsilon_after, entry.study_cap)
        _within(where, "all studies", entry.epsilon_after, entry.total_cap)
        if caps is not None and caps.target_delta == entry.target_delta:
            _within(where, study, entry.study_epsilon_after, caps.for_study(entry.study_id))
            _within(where, "all studies", entry.epsilon_after, caps.total_epsilon)


def ledger_identity(
    entries: Sequence[LedgerEntry], *, site: str | None = None, population: str | None = None
) -> LedgerIdentity:
    """Which ledger the entries are of, by their first one.

    Args: site, population: what it should be of; None takes it from the entry.
    Raises: LedgerError: no entries, or they do not begin as a ledger does.
    """
    if not entries:
        raise LedgerError("ledger: it is empty; expected at least its start or restart entry")
    first = entries[0]
    if not isinstance(first, FirstEntry):
        raise LedgerError(
            f"entry 0: expected the start or restart entry that a ledger begins with, got a "
            f"{first.kind} entry of index {first.index}"
        )
    return LedgerIdentity(
        site=first.site if site is None else site,
        population=first.population if population is None else population,
        ledger_id=first.ledger_id,
    )


def verify_ledger(
    entries: Sequence[LedgerEntry],
    *,
    public_key: bytes,
    caps: BudgetCaps | None,
    site: str | None = None,
    population: str | None = None,
    auditor_key: bytes | None = None,
) -> LedgerSummary:
    """Check chain, signatures, approvals, times, mechanisms, epsilon, caps and a restart's grant.

    Nothing that the ledger says about cost is believed: epsilon is recomputed for every
    reservation by PLD and RDP, and once more for all of them merged.

    Args:
        entries: from `parse_ledger_lines`, from the first entry on.
        public_key: the site's Ed25519 key, 32 raw bytes, from its certificate. It has to be the
            one in force at the ledger's end.
        caps: the budget that was agreed with the site, or None to hold the ledger to the caps
            that it recorded itself.
        site, population: what the ledger should be of; None takes it from the first entry.
        auditor_key: whose grants of a restart are believed, 32 raw bytes; None believes any
            that is properly signed.
    Raises: LedgerError: names the first entry that is wrong.
    """
    identity = ledger_identity(entries, site=site, population=population)
    replay = LedgerReplay(identity)
    for entry in entries:
        replay.append(entry)
    if bytes.fromhex(replay.public_key) != public_key:
        raise LedgerError(
            f"entry {replay.length - 1}: the ledger's key in force is "
            f"{replay.public_key[:12]}..., expected {public_key.hex()[:12]}...; the site renews "
            "it with `lada site renew-key`"
        )
    grant = replay.grant
    if grant is not None:
        _check_restart(grant, auditor_key)
    # Costly, so only for a ledger that is otherwise whole.
    reserves = list(replay.reserved.values())
    _recompute(reserves, caps, grant)
    target_delta = _target_delta(reserves, caps, grant)
    total, total_rdp = 0.0, 0.0
    if target_delta is not None:
        spent = replay.spending.of()
        total, total_rdp = spent.epsilon(target_delta), spent.epsilon_rdp(target_delta)
    if reserves and reserves[-1].target_delta == target_delta:
        # All composed at once: another order of the same sum than entry by entry.
        _agree(f"entry {reserves[-1].index}", "epsilon", reserves[-1].epsilon_after, total)
    if caps is not None and reserves:
        _within("ledger", "all studies", total, caps.total_epsilon * (1 + RELATIVE_TOLERANCE))
    return LedgerSummary(
        identity=identity,
        entries=tuple(entries),
        public_key=replay.public_key,
        head=replay.head(),
        started=entries[0].time,
        restart=grant,
        target_delta=target_delta,
        epsilon=total,
        epsilon_rdp=total_rdp,
        reservations=len(reserves),
        resumes=replay.resumes.total(),
        commits=len(replay.commits),
        uncommitted=len(reserves) - len(replay.commits),
        studies=_studies(replay, entries, target_delta, caps),
    )


def _check_restart(grant: RestartGrant, auditor_key: bytes | None) -> None:
    check_grant(grant, where="entry 0", auditor_key=auditor_key)
    recomputed = epsilon(grant.events, target_delta=grant.target_delta)
    _agree("entry 0", "carried_epsilon", grant.carried_epsilon, recomputed)


def _target_delta(
    reserves: Sequence[ReserveEntry], caps: BudgetCaps | None, grant: RestartGrant | None
) -> float | None:
    if caps is not None:
        return caps.target_delta
    if reserves:
        return reserves[-1].target_delta
    return None if grant is None else grant.target_delta


def _studies(
    replay: LedgerReplay,
    entries: Sequence[LedgerEntry],
    target_delta: float | None,
    caps: BudgetCaps | None,
) -> tuple[StudySpending, ...]:
    kinds = {
        study_id: Counter[str]() for study_id in (replay.grant.studies if replay.grant else ())
    }
    for entry in entries:
        if isinstance(entry, StudyEntry):
            kinds.setdefault(entry.study_id, Counter())[entry.kind] += 1
    result: list[StudySpending] = []
    for study_id, counts in sorted(kinds.items()):
        spent = 0.0
        if target_delta is not None:
            spent = replay.spending.of(study_id).epsilon(target_delta)
        if caps is not None and counts[ReserveEntry.kind]:
            cap = caps.for_study(study_id) * (1 + RELATIVE_TOLERANCE)
            _within(f"study {study_id}", f"study {study_id}", spent, cap)
        decision = replay.decisions.get(study_id)
        result.append(
            StudySpending(
                study_id=study_id,
                epsilon=spent,
                reservations=counts[ReserveEntry.kind],
                resumes=counts[ResumeEntry.kind],
                commits=counts[CommitEntry.kind],
                decision="none" if decision is None else decision.decision,
            )
        )
    return tuple(result)
