"""The evidence of a study as plain files, which `lada audit verify` reads without a network."""

from __future__ import annotations

from pathlib import Path

from lada_clients.auditor.ledgers import LedgerCopies, claim_of
from lada_clients.net.participant import Participant
from lada_protocol.evidence.export import (
    CA_FILE,
    MESSAGES_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    aggregate_file,
    ledger_file,
    transcript_file,
)
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.wire.envelope import envelope_to_line
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_if_there, write_atomically


def check_export_folder(folder: Path, plan: StudyPlan) -> None:
    """Refuse to mix two studies: every file of an export must be one that its messages speak of.

    Raises: ParameterError: the folder holds the export of another study or plan.
    """
    if read_if_there(folder / PLAN_FILE) not in (None, plan.to_bytes()):
        raise ParameterError(
            f"export_dir: {folder} holds the evidence of another study than {plan.study_id}; name "
            "a new folder for each study"
        )


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
