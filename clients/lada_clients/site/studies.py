"""`lada site studies`: every study that a site knows, from its folders and its ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lada_clients.net.known_studies import StudyFolder, study_folders
from lada_clients.site.gates.policy import study_caps
from lada_clients.site.ledger.population import ledger_path
from lada_clients.site.ledger.store import SqliteLedgerReader, open_ledger_reader
from lada_clients.site.settings import SitePolicy, SiteSettings, read_site_settings
from lada_protocol.studies import KnownStudy, StudyState
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.ledger.entries import DecisionEntry, LedgerEntry, ReserveEntry
from lada_secure.privacy.ledger.promises import BudgetPromise
from lada_secure.storage.state_folder import check_state_folder


def known_studies(settings_path: Path) -> tuple[str, tuple[KnownStudy, ...]]:
    """The site's id, and its studies: those with a folder, then those of the ledger alone.

    Epsilon is what the ledger has reserved under the plan, at the delta it is counted at.

    Raises: ParameterError: settings, state folder or a plan. LedgerError: the ledger is damaged.
    """
    settings, policy = read_site_settings(settings_path)
    check_state_folder(settings.state_dir, party=settings.party, role="site")
    path = ledger_path(settings, policy)
    if not path.exists():
        return settings.party, tuple(_studies(settings, policy, (), ()))
    with open_ledger_reader(path) as ledger:
        return settings.party, tuple(_studies(settings, policy, *_read(ledger)))


def _read(
    ledger: SqliteLedgerReader,
) -> tuple[Sequence[LedgerEntry], Sequence[BudgetPromise]]:
    return ledger.entries(), ledger.promised(now=datetime.now(UTC))


def _studies(
    settings: SiteSettings,
    policy: SitePolicy,
    entries: Sequence[LedgerEntry],
    promises: Sequence[BudgetPromise],
) -> Iterator[KnownStudy]:
    told = set()
    for one in study_folders(settings.state_dir):
        told.add((one.plan.study_id, one.plan.hash))
        yield _with_folder(one, policy, entries, promises)
    decided = {
        (entry.study_id, entry.plan_hash): entry
        for entry in entries
        if isinstance(entry, DecisionEntry)
    }
    for (study_id, plan_hash), decision in decided.items():
        if (study_id, plan_hash) not in told:
            yield _of_ledger(study_id, plan_hash, decision, policy, entries)


def _with_folder(
    one: StudyFolder,
    policy: SitePolicy,
    entries: Sequence[LedgerEntry],
    promises: Sequence[BudgetPromise],
) -> KnownStudy:
    plan, ended = one.plan, one.outcome
    delta = study_caps(plan, policy).target_delta
    spent = _spent(entries, plan.hash)
    rest = [
        event for promise in promises if promise.plan_hash == plan.hash for event in promise.events
    ]
    return KnownStudy(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        state=_state(one, entries),
        rounds_done=one.closed_rounds,
        rounds=plan.rounds,
        epsilon=epsilon(spent, target_delta=delta),
        epsilon_promised=epsilon([*spent, *rest], target_delta=delta) if rest else None,
        begun=one.begun,
        ended=None if ended is None else ended.ended,
        folder=str(one.folder),
        message="" if ended is None else ended.message,
    )


def _of_ledger(
    study_id: str,
    plan_hash: str,
    decision: DecisionEntry,
    policy: SitePolicy,
    entries: Sequence[LedgerEntry],
) -> KnownStudy:
    """A study whose folder is elsewhere, or gone; the ledger still counts it."""
    ended: dict[str, StudyState] = {"refuse": "refused", "withdraw": "withdrawn"}
    return KnownStudy(
        study_id=study_id,
        plan_hash=plan_hash,
        state=ended.get(decision.decision, "interrupted"),
        rounds_done=0,
        rounds=None,
        epsilon=epsilon(_spent(entries, plan_hash), target_delta=policy.target_delta),
        begun=decision.time,
        ended=None,
        folder=None,
    )


def _spent(entries: Sequence[LedgerEntry], plan_hash: str) -> list[PrivacyEvent]:
    return [
        entry.event
        for entry in entries
        if isinstance(entry, ReserveEntry) and entry.plan_hash == plan_hash
    ]


def _state(one: StudyFolder, entries: Sequence[LedgerEntry]) -> StudyState:
    """Where the study stands; a withdrawal stands in the ledger before a process notices it."""
    state = one.state
    if state in ("finished", "failed", "refused"):
        return state
    decisions = [
        entry.decision
        for entry in entries
        if isinstance(entry, DecisionEntry)
        and (entry.study_id, entry.plan_hash) == (one.plan.study_id, one.plan.hash)
    ]
    if decisions and decisions[-1] == "withdraw":
        return "withdrawn"
    return "refused" if decisions and decisions[-1] == "refuse" else state
