"""Wires the auditor together from its settings, runs one study, exports its evidence."""

from __future__ import annotations

from pathlib import Path

from lada_clients.auditor.export import check_export_folder, write_export
from lada_clients.auditor.ledgers import KnownEntries, LedgerCopies, RestartGrants
from lada_clients.auditor.registry import AggregationRegistry
from lada_clients.auditor.service import Auditor
from lada_clients.auditor.settings import AuditorSettings
from lada_clients.net.participant import Participant, joined_study
from lada_protocol.party_files import read_settings
from lada_secure.errors import LadaError
from lada_secure.logs import configure_logs
from lada_secure.storage.state_folder import held_state_folder
from lada_secure.storage.whole_files import sweep_parts


def ledger_copies(settings: AuditorSettings) -> LedgerCopies:
    """The copies of all sites' ledgers, over all studies, and what was granted for them."""
    return LedgerCopies(
        folder=settings.state_dir / "ledgers",
        grants=RestartGrants(folder=settings.state_dir / "grants"),
    )


def run_auditor(settings_path: Path) -> None:
    """Serve the coordinator's study until it ends; evidence is exported even where it failed.

    Raises: ParameterError: settings, roster or identity are wrong. StudyFailed.
    """
    settings = read_settings(settings_path, AuditorSettings)
    configure_logs(settings.log)
    # A folder is marked as ours only where the certificates say that we are who the settings name.
    settings.credentials()
    with held_state_folder(settings.state_dir, party=settings.party, role="auditor"):
        sweep_parts(settings.export_dir)
        with joined_study(settings, pinned=settings.roster_sha256) as participant:
            _serve(settings, participant)


def _serve(settings: AuditorSettings, participant: Participant) -> None:
    check_export_folder(settings.export_dir, participant.plan)
    ledgers = ledger_copies(settings)
    auditor = Auditor(
        participant=participant,
        state_dir=settings.state_dir,
        ledgers=ledgers,
        known_entries=KnownEntries(folder=participant.open_folder()),
        registry=AggregationRegistry(folder=settings.state_dir / "opened"),
        min_cohort=settings.min_cohort,
        epsilon_cap=settings.epsilon_cap,
    )
    try:
        auditor.run()
    except LadaError as error:
        participant.say_failed(error)
        raise
    finally:
        write_export(settings.export_dir, participant, ledgers, identity=settings.identity)
        # Only now: whoever is killed while exporting needs the board once more. A study that
        # failed is over for us too.
        participant.say_goodbye()
