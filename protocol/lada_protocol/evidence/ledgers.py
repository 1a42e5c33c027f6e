"""Offline verification of the sites' ledgers: each alone, and each as its site has shown it."""

from __future__ import annotations

from lada_protocol.evidence.export import ExportedStudy, Faults, ledger_file, need
from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import admission_of, check_accepted_head
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody, ReceiptBody, parse_body
from lada_secure.canonical import sha256_hex
from lada_secure.errors import PeerError
from lada_secure.privacy.ledger.entries import LedgerEntry
from lada_secure.privacy.ledger.lines import parse_ledger_lines
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger


def check_ledgers(
    study: ExportedStudy, faults: Faults
) -> tuple[dict[str, tuple[LedgerEntry, ...]], dict[str, LedgerSummary]]:
    """Every ledger, recomputed; that its site was admitted with it, and showed it part by part.

    Returns: entries of the ledgers without a fault, and what each that is whole in itself says.
    """
    entries: dict[str, tuple[LedgerEntry, ...]] = {}
    summaries: dict[str, LedgerSummary] = {}
    for party in study.roster.sites:
        name = ledger_file(party.id)
        raw = study.files.get(name)
        if raw is None:
            continue
        with faults.of(name):
            found = parse_ledger_lines(raw)
            claim = _admitted_claim(study, party)
            summaries[party.id] = verify_ledger(
                found,
                public_key=bytes.fromhex(party.signing_key),
                caps=None,
                site=party.id,
                population=claim.population,
                auditor_key=bytes.fromhex(study.roster.auditor.signing_key),
            )
            check_accepted_head(claim, found, site=party.id)
            _check_shown(study, party, raw)
            entries[party.id] = found
    return entries, summaries


def _admitted_claim(study: ExportedStudy, party: Party) -> AcceptanceBody:
    """What the site has accepted the plan with. Raises: PeerError: it was never admitted."""
    acceptance = study.index.find(Kind.ACCEPTANCE, sender=party.id)
    if acceptance is None or admission_of(study.index, party.id, roster=study.roster) is None:
        raise PeerError(f"{study.roster.auditor.id} never admitted {party.id} with it")
    return parse_body(acceptance, AcceptanceBody)


def _check_shown(study: ExportedStudy, party: Party, raw: bytes) -> None:
    """The ledger is exactly what the site signed part by part, and the auditor countersigned.

    Raises: PeerError.
    """
    lines = raw.splitlines(keepends=True)
    auditor = study.roster.auditor.id
    newest = -1
    for message in study.sent(Kind.LEDGER):
        head = message.header
        if head.sender != party.id:
            continue
        body = parse_body(message, LedgerBody)
        part = b"".join(lines[body.first_index : body.head_index + 1])
        need(
            sha256_hex(part) == head.payload_sha256,
            f"entries {body.first_index} to {body.head_index} are not those that {party.id} signed "
            f"for round {head.round_id}",
        )
        receipt = study.index.find(
            Kind.RECEIPT,
            sender=auditor,
            to=party.id,
            round_id=head.round_id,
            purpose=head.purpose,
        )
        need(
            receipt is not None and parse_body(receipt, ReceiptBody).head_hash == body.head_hash,
            f"entry {body.head_index} was never countersigned by {auditor}",
        )
        newest = max(newest, body.head_index)
    need(
        newest == len(lines) - 1,
        f"{len(lines)} entries, the newest countersignature is over entry {newest}",
    )
