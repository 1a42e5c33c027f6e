"""Offline verification of a study from its exported files and the CA certificate alone.

| file | holds |
|---|---|
| ca.crt, roster.json, plan.json | who took part, and what was agreed |
| messages.jsonl | every signed message that the auditor could read, sorted by hash |
| ledgers/SITE.jsonl | the auditor's copy of each site's privacy ledger |
| secure aggregations/ROUND-PURPOSE.json | opened sums |
| transcripts/ROUND.json | the list of all messages of a round |

Every file but ca.crt has one canonical spelling, and every byte of it is bound by a signature or
a hash in a signature, so any change shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.x509 import Certificate

from lada_protocol.evidence.export import (
    CA_FILE,
    MESSAGES_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    Faults,
    Files,
    aggregate_file,
    ledger_file,
    need,
    transcript_file,
)
from lada_protocol.evidence.rounds import (
    check_aggregates,
    check_trainings,
    check_transcripts,
    check_transfers,
)
from lada_protocol.identity.certificates import (
    certificate_fingerprint,
    key_fingerprint,
    parse_certificate,
    verify_party,
)
from lada_protocol.identity.roster import Party, parse_roster
from lada_protocol.kinds import Kind, Role
from lada_protocol.plan import parse_plan
from lada_protocol.rounds.admission import admission_of, check_accepted_head
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.transcript import Outcome, ending_of
from lada_protocol.wire.envelope import envelope_from_line
from lada_protocol.wire.messages import (
    BODIES,
    AcceptanceBody,
    CertifiedBody,
    LedgerBody,
    ReceiptBody,
    parse_body,
)
from lada_secure.canonical import sha256_hex
from lada_secure.errors import PeerError
from lada_secure.privacy.ledger.entries import LedgerEntry, parse_ledger_lines
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger

MAX_MESSAGES_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was checked, and everything that was wrong, each with the file and entry named.

    `study` is None where roster, plan or messages could not be read. That a study did not finish is
    among the faults: evidence of it may be whole, and yet nobody may take it for one that did.
    """

    study: MessageIndex | None
    ledgers: Mapping[str, LedgerSummary]
    outcome: Outcome
    faults: tuple[str, ...]

    @property
    def study_id(self) -> str:
        """Empty where it is not known."""
        return "" if self.study is None else self.study.plan.study_id

    @property
    def messages(self) -> int:
        """How many signed messages were read."""
        return 0 if self.study is None else len(self.study)

    @property
    def rounds(self) -> int:
        """How many transcripts there are."""
        return 0 if self.study is None else len(self.study.sent(Kind.TRANSCRIPT))

    @property
    def openings(self) -> int:
        """How many sums were opened."""
        return 0 if self.study is None else len(self.study.sent(Kind.OPENED))

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def verify_evidence(files: Files) -> Verdict:
    """Verify an exported study.

    Args: files: every file of the export folder.
    Returns: a verdict; it never raises for bad content.
    """
    faults = Faults()
    missing = [
        name for name in (CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE) if name not in files
    ]
    index = None
    if missing:
        faults.add(missing[0], "the file is missing")
    else:
        with faults.of("roster, plan or messages"):
            index = _read_messages(files)
    if index is None:
        return Verdict(study=None, ledgers={}, outcome="unfinished", faults=tuple(faults.found))
    _check_file_names(index, files, faults)
    _check_certificates(index, files, faults)
    entries, summaries = _check_ledgers(index, files, faults)
    check_aggregates(index, files, entries, faults)
    check_trainings(index, entries, faults)
    check_transfers(index, faults)
    check_transcripts(index, files, faults)
    ending = ending_of(index)
    if ending.outcome != "finished":
        how = "failed" if ending.outcome == "failed" else "did not finish"
        faults.add(MESSAGES_FILE, f"the study {how}: {ending.reason}")
    return Verdict(
        study=index, ledgers=summaries, outcome=ending.outcome, faults=tuple(faults.found)
    )


def _read_messages(files: Files) -> MessageIndex:
    raw, roster = files[MESSAGES_FILE], parse_roster(files[ROSTER_FILE])
    index = MessageIndex(parse_plan(files[PLAN_FILE]), roster)
    if len(raw) > MAX_MESSAGES_BYTES:
        raise PeerError(f"{MESSAGES_FILE} is larger than {MAX_MESSAGES_BYTES} bytes")
    lines = raw.split(b"\n")
    if lines.pop() != b"":
        raise PeerError(f"{MESSAGES_FILE}: the last line does not end with a line feed")
    before = ""
    for number, line in enumerate(lines, start=1):
        try:
            envelope = envelope_from_line(line, roster=roster)
            index.add(envelope)
        except PeerError as error:
            raise PeerError(f"{MESSAGES_FILE}:{number}: {error}", reason=error.reason) from error
        if envelope.message_hash <= before:
            raise PeerError(f"{MESSAGES_FILE}:{number}: repeated or out of order")
        before = envelope.message_hash
    return index


def _check_file_names(index: MessageIndex, files: Files, faults: Faults) -> None:
    """No file may be missing and none may be there that nothing speaks of."""
    expected = {CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE}
    for message in index:
        head = message.header
        if message.kind is Kind.OPENED:
            expected.add(aggregate_file(head.round_id, head.purpose))
        elif message.kind is Kind.TRANSCRIPT:
            expected.add(transcript_file(head.round_id))
        elif message.kind is Kind.ADMISSION:
            # Of a site that was not admitted the auditor keeps what it had, and no more.
            expected.add(ledger_file(head.to))
    for name in sorted(expected - set(files)):
        faults.add(name, "the file is missing; signed messages speak of it")
    for name in sorted(set(files) - expected):
        faults.add(name, "no signed message speaks of this file")


def _check_certificates(index: MessageIndex, files: Files, faults: Faults) -> None:
    """The CA vouches for the signing certificate of everybody who signed something binding."""
    ca = None
    with faults.of(CA_FILE):
        ca = parse_certificate(files[CA_FILE])
    if ca is None:
        return
    if certificate_fingerprint(ca) != index.roster.study_ca:
        faults.add(CA_FILE, "it is not the study CA that the roster names")
    shown: dict[str, str] = {}
    for message in index:
        body = BODIES[message.kind]
        if not issubclass(body, CertifiedBody):
            continue
        with faults.of(repr(message)):
            shown[message.header.sender] = parse_body(message, body).certificate
            if message.kind is Kind.PLAN and message.header.payload_sha256 != index.plan.hash:
                faults.add(PLAN_FILE, "it is not the plan that the coordinator signed")
    for party in index.roster.parties:
        if party.id in shown:
            _check_certificate(party, shown[party.id], ca, faults)
        elif party.role is not Role.SITE:
            faults.add(MESSAGES_FILE, f"{party.id} never showed its certificate")


def _check_certificate(party: Party, pem: str, ca: Certificate, faults: Faults) -> None:
    """A certificate of the roster's key, issued by the CA. Years later its period has passed; that
    it was valid at the time is what every TLS connection checked."""
    where = f"certificate of {party.id}"
    with faults.of(where):
        certificate = parse_certificate(pem.encode("ascii", "replace"))
        if key_fingerprint(certificate) != party.signing_fingerprint:
            faults.add(where, "its key is not the one in the roster")
        verify_party(
            certificate,
            ca=ca,
            at=certificate.not_valid_before_utc,
            usage="signing",
            expected=party.name,
        )


def _check_ledgers(
    index: MessageIndex, files: Files, faults: Faults
) -> tuple[dict[str, tuple[LedgerEntry, ...]], dict[str, LedgerSummary]]:
    """Every ledger, recomputed; that its site was admitted with it, and showed it part by part.

    Returns: entries of the ledgers without a fault, and what each that is whole in itself says.
    """
    entries: dict[str, tuple[LedgerEntry, ...]] = {}
    summaries: dict[str, LedgerSummary] = {}
    for party in index.roster.sites:
        name = ledger_file(party.id)
        raw = files.get(name)
        if raw is None:
            continue
        with faults.of(name):
            found = parse_ledger_lines(raw)
            claim = _admitted_claim(index, party)
            summaries[party.id] = verify_ledger(
                found,
                public_key=bytes.fromhex(party.signing_key),
                caps=None,
                site=party.id,
                population=claim.population,
                auditor_key=bytes.fromhex(index.roster.auditor.signing_key),
            )
            check_accepted_head(claim, found, site=party.id)
            _check_shown(index, party, raw)
            entries[party.id] = found
    return entries, summaries


def _admitted_claim(index: MessageIndex, party: Party) -> AcceptanceBody:
    """What the site has accepted the plan with. Raises: PeerError: it was never admitted."""
    acceptance = index.find(Kind.ACCEPTANCE, sender=party.id)
    if acceptance is None or admission_of(index, party.id) is None:
        raise PeerError(f"{index.auditor} never admitted {party.id} with it")
    return parse_body(acceptance, AcceptanceBody)


def _check_shown(index: MessageIndex, party: Party, raw: bytes) -> None:
    """The ledger is exactly what the site signed part by part, and the auditor countersigned.

    Raises: PeerError.
    """
    lines = raw.splitlines(keepends=True)
    auditor = index.auditor
    newest = -1
    for message in index.sent(Kind.LEDGER):
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
        receipt = index.find(
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
