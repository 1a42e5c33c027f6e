"""Wires the auditor together from its settings, runs one study, exports its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from lada_clients.auditor.ledgers import KnownEntries, LedgerCopies, claim_of
from lada_clients.auditor.service import Auditor
from lada_clients.net.failures import tell_failed, written_state
from lada_clients.net.following import follow, take_part_once
from lada_clients.net.outcomes import Turn, working_folder
from lada_clients.net.participant import Participant, joined_study
from lada_clients.net.study_folder import study_folder
from lada_protocol.evidence.export import (
    CA_FILE,
    MESSAGES_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    aggregate_file,
    ledger_file,
    transcript_file,
)
from lada_protocol.kinds import Kind, Role
from lada_protocol.party_files import DiallingSettings, read_settings
from lada_protocol.plan import StudyPlan
from lada_protocol.wire.envelope import envelope_to_line
from lada_secure.errors import LadaError, ParameterError
from lada_secure.logs import begin_logs
from lada_secure.storage.whole_files import read_if_there, sweep_parts, write_atomically


class AuditorSettings(DiallingSettings):
    """`auditor.toml`. `state_dir` keeps aggregate keys and the ledgers of all sites."""

    role: ClassVar[Role | None] = Role.AUDITOR

    roster_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    export_dir: Annotated[Path, Field(description="where the files for `lada audit verify` go")]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    epsilon_cap: Annotated[float, Field(gt=0, description="refuse plans above this")]

    def check_folders(self) -> None:
        """Nor lies what is exported, and given away, in or around anything else.

        Raises: ParameterError: see `PartySettings.check_folders`.
        """
        super().check_folders()
        out = self.export_dir.resolve()
        for key in ("identity", "state_dir"):
            own = getattr(self, key).resolve()
            if out.is_relative_to(own) or own.is_relative_to(out):
                raise ParameterError(
                    f"export_dir {out} and {key} {own} lie in one another, and what is exported "
                    "is given away; name another place"
                )


def run_auditor(settings_path: Path) -> None:
    """Serve the coordinator's study until it ends; evidence is exported even where it failed.

    Raises: ParameterError: settings, roster or identity are wrong. StudyFailed.
    """
    begin_logs(settings_path)
    take_part_once(lambda turn: _one_study(settings_path, turn))


def follow_auditor(settings_path: Path) -> None:
    """Serve one study after the other; see `following.follow`."""
    begin_logs(settings_path)
    follow(lambda turn: _one_study(settings_path, turn))


def _one_study(settings_path: Path, turn: Turn) -> None:
    settings = read_settings(settings_path, AuditorSettings)
    # A folder is marked as ours only where the certificates say that we are who the settings name.
    settings.credentials()
    with written_state(settings, role="auditor", pinned=settings.roster_sha256):
        sweep_parts(settings.export_dir)
        with joined_study(settings, pinned=settings.roster_sha256) as participant:
            turn.begin(
                participant,
                outdated=lambda: read_settings(settings_path, AuditorSettings) != settings,
            )
            with working_folder(participant, turn):
                _serve(settings, participant)


def _serve(settings: AuditorSettings, participant: Participant) -> None:
    export = export_folder(settings.export_dir, participant.plan)
    auditor = Auditor(
        participant=participant,
        state_dir=settings.state_dir,
        known_entries=KnownEntries(folder=participant.open_folder()),
        min_cohort=settings.min_cohort,
        epsilon_cap=settings.epsilon_cap,
    )
    try:
        auditor.run()
    except Exception as error:
        if isinstance(error, LadaError):
            participant.say_failed(error)
        tell_failed(participant, error)
        raise
    finally:
        write_export(export, participant, auditor.ledgers, identity=settings.identity)
        # Only now: whoever is killed while exporting needs the board once more. A study that
        # failed is over for us too.
        participant.say_goodbye()


def export_folder(folder: Path, plan: StudyPlan) -> Path:
    """Where the evidence of a study goes: the first one of an export folder lies in it itself.

    Every later one has a folder of its own in `studies`: every file of an export must be one that
    its messages speak of, and nothing of an earlier study is touched.

    Raises: TransportError: the folder cannot be read.
    """
    own = study_folder(folder, plan.study_id, plan.hash)
    if (own / PLAN_FILE).exists():
        return own
    kept = read_if_there(folder / PLAN_FILE)
    begun = kept is not None or (folder / MESSAGES_FILE).exists()
    return own if begun and kept != plan.to_bytes() else folder


def write_export(
    folder: Path, participant: Participant, ledgers: LedgerCopies, *, identity: Path
) -> None:
    """Write everything the auditor holds of the study; older files of the same study are replaced.

    Raises: TransportError: the folder cannot be written.
    """
    index, roster = participant.index, participant.roster
    write_atomically(folder / CA_FILE, (identity / "ca.crt").read_bytes())
    write_atomically(folder / ROSTER_FILE, roster.to_bytes())
    write_atomically(folder / PLAN_FILE, participant.plan.to_bytes())
    ordered = sorted(index, key=lambda one: one.message_hash)
    lines = b"".join(envelope_to_line(one) + b"\n" for one in ordered)
    write_atomically(folder / MESSAGES_FILE, lines)
    for envelope in ordered:
        head = envelope.header
        if envelope.kind is Kind.OPENED:
            name = aggregate_file(head.round_id, head.purpose)
        elif envelope.kind is Kind.TRANSCRIPT:
            name = transcript_file(head.round_id)
        else:
            continue
        write_atomically(folder / name, participant.payload(envelope))
    # Copies span studies: only those are evidence of this one that a site was admitted with.
    admitted = {one.header.to for one in ordered if one.kind is Kind.ADMISSION}
    for site in sorted(admitted):
        claim = claim_of(index, site)
        if claim is not None and (raw := ledgers.raw(site, claim.population)):
            write_atomically(folder / ledger_file(site), raw)
