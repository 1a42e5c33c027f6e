"""Wires the auditor together from its settings, runs one study, exports its evidence."""

from __future__ import annotations

from pathlib import Path

from lada_clients.auditor.export import check_export_folder, write_export
from lada_clients.auditor.grants import RestartGrants
from lada_clients.auditor.known_entries import KnownEntries
from lada_clients.auditor.ledgers import LedgerCopies
from lada_clients.auditor.registry import AggregationRegistry
from lada_clients.auditor.service import Auditor
from lada_clients.auditor.settings import AuditorSettings
from lada_clients.net.credentials import load_credentials, read_passphrase
from lada_clients.net.event_file import open_event_log
from lada_clients.net.outbox import sweep_parts
from lada_clients.net.participant import open_participant, read_roster
from lada_clients.net.settings_file import read_settings
from lada_secure.errors import LadaError
from lada_secure.logs import configure_logs
from lada_secure.storage.state_folder import held_state_folder


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
    roster = read_roster(settings.roster, pinned=settings.roster_sha256)
    passphrase = read_passphrase(settings.passphrase_file)
    # A folder is marked as ours only where the certificates say that we are who the settings name.
    load_credentials(settings.identity, expected_id=settings.party, passphrase=passphrase)
    with (
        held_state_folder(settings.state_dir, party=settings.party, role="auditor"),
        open_participant(
            party=settings.party,
            address=settings.coordinator,
            identity=settings.identity,
            roster=roster,
            state_dir=settings.state_dir,
            events=open_event_log(settings.party, settings.state_dir),
            wait_s=settings.wait_s,
            transport=settings.transport,
            passphrase=passphrase,
        ) as participant,
    ):
        for folder in (settings.state_dir, settings.export_dir):
            sweep_parts(folder)
        participant.join(wait_s=settings.wait_s)
        check_export_folder(settings.export_dir, participant.plan)
        folder = participant.open_folder()
        ledgers = ledger_copies(settings)
        auditor = Auditor(
            participant=participant,
            state_dir=settings.state_dir,
            ledgers=ledgers,
            known_entries=KnownEntries(folder=folder),
            registry=AggregationRegistry(folder=settings.state_dir / "opened"),
            min_cohort=settings.min_cohort,
            epsilon_cap=settings.epsilon_cap,
        )
        try:
            auditor.run()
        except LadaError as error:
            participant.events.write("failed", round_id=0, step="close", message=str(error)[:1000])
            raise
        finally:
            write_export(settings.export_dir, participant, ledgers, identity=settings.identity)
            # Only now: whoever is killed while exporting needs the board once more. A study that
            # failed is over for us too.
            participant.say_goodbye()
