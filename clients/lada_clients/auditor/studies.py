"""`lada auditor studies`: every study that an auditor knows, from its folders and its copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lada_clients.auditor.ledgers import LedgerCopies
from lada_clients.auditor.runner import AuditorSettings, export_folder
from lada_clients.net.known_studies import StudyFolder, study_folders
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.party_files import read_settings
from lada_protocol.studies import KnownStudy
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.ledger.entries import ReserveEntry
from lada_secure.storage.state_folder import check_state_folder


def known_studies(settings_path: Path) -> tuple[str, tuple[KnownStudy, ...]]:
    """The auditor's id, and its studies in the order in which it first saw them.

    Epsilon of each site is what the copies say was reserved under the plan, at the plan's delta.

    Raises: ParameterError: settings, state folder or a plan. LedgerError: a copy is damaged.
    """
    settings = read_settings(settings_path, AuditorSettings)
    check_state_folder(settings.state_dir, party=settings.party, role="auditor")
    spent = _spending(LedgerCopies(state_dir=settings.state_dir))
    return settings.party, tuple(_studies(settings, spent))


def _spending(copies: LedgerCopies) -> dict[str, dict[str, list[PrivacyEvent]]]:
    """Events by plan hash and site, over all populations of each."""
    found: dict[str, dict[str, list[PrivacyEvent]]] = {}
    for site in copies.sites():
        for population in copies.populations(site):
            for entry in copies.entries(site, population):
                if isinstance(entry, ReserveEntry):
                    found.setdefault(entry.plan_hash, {}).setdefault(site, []).append(entry.event)
    return found


def _studies(
    settings: AuditorSettings, spent: dict[str, dict[str, list[PrivacyEvent]]]
) -> Iterator[KnownStudy]:
    for one in study_folders(settings.state_dir):
        yield _known(one, settings, spent.get(one.plan.hash, {}))


def _known(
    one: StudyFolder, settings: AuditorSettings, spent: dict[str, list[PrivacyEvent]]
) -> KnownStudy:
    plan, ended = one.plan, one.outcome
    delta = plan.privacy.target_delta
    by_site = {site: epsilon(events, target_delta=delta) for site, events in spent.items()}
    export = export_folder(settings.export_dir, plan)
    return KnownStudy(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        state=one.state,
        rounds_done=one.closed_rounds,
        rounds=plan.rounds,
        epsilon=max(by_site.values(), default=0.0),
        by_site=by_site,
        begun=one.begun,
        ended=None if ended is None else ended.ended,
        folder=str(one.folder),
        export=str(export) if (export / PLAN_FILE).exists() else None,
        message="" if ended is None else ended.message,
    )
