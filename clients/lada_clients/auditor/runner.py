"""Wires the auditor together from its settings, runs one study, exports its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lada_clients.auditor.export import check_export_folder, write_export
from lada_clients.auditor.ledgers import KnownEntries
from lada_clients.auditor.service import Auditor
from lada_clients.net.participant import Participant, joined_study
from lada_protocol.party_files import DiallingSettings, read_settings
from lada_secure.errors import LadaError
from lada_secure.logs import configure_logs
from lada_secure.storage.state_folder import held_state_folder
from lada_secure.storage.whole_files import sweep_parts


class AuditorSettings(DiallingSettings):
    """`auditor.toml`. `state_dir` keeps aggregate keys and the ledgers of all sites."""

    roster_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    export_dir: Annotated[Path, Field(description="where the files for `lada audit verify` go")]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    epsilon_cap: Annotated[float, Field(gt=0, description="refuse plans above this")]


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
    auditor = Auditor(
        participant=participant,
        state_dir=settings.state_dir,
        known_entries=KnownEntries(folder=participant.open_folder()),
        min_cohort=settings.min_cohort,
        epsilon_cap=settings.epsilon_cap,
    )
    try:
        auditor.run()
    except LadaError as error:
        participant.say_failed(error)
        raise
    finally:
        write_export(settings.export_dir, participant, auditor.ledgers, identity=settings.identity)
        # Only now: whoever is killed while exporting needs the board once more. A study that
        # failed is over for us too.
        participant.say_goodbye()
