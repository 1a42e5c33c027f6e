"""Offline verification of a study from its exported files and the CA certificate alone.

| file | holds |
|---|---|
| ca.crt, roster.json, plan.json | who took part, and what was agreed |
| messages.jsonl | every signed message that the auditor could read, sorted by hash |
| ledgers/SITE.jsonl | the auditor's copy of each site's privacy ledger |
| openings/ROUND-PURPOSE.json | opened sums |
| transcripts/ROUND.json | the list of all messages of a round |

Every file but ca.crt has one canonical spelling, and every byte of it is bound by a signature or
a hash in a signature, so any change shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lada_protocol.envelope import Envelope, envelope_from_line
from lada_protocol.identity import (
    certificate_fingerprint,
    parse_certificate,
    verify_party,
)
from lada_protocol.index import Attempt, MessageIndex
from lada_protocol.kinds import Kind, Role, may_read
from lada_protocol.messages import (
    AcceptanceBody,
    CertifiedBody,
    CloseBody,
    LedgerBody,
    OpenedBody,
    OpeningKeyBody,
    ReceiptBody,
    parse_body,
)
from lada_protocol.opening import (
    PURPOSES,
    check_opened_range,
    check_opening_request,
    opened_values,
    purpose_parameters,
)
from lada_protocol.payments import check_payment
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.roster import Party, Roster, parse_roster
from lada_protocol.transcript import FIRST, Transcript, check_transcript, parse_transcript
from lada_secure.canonical import sha256_hex
from lada_secure.errors import LadaError, PeerError
from lada_secure.privacy.entries import LedgerEntry, parse_ledger_lines
from lada_secure.privacy.verification import LedgerSummary, verify_ledger

CA_FILE = "ca.crt"
ROSTER_FILE = "roster.json"
PLAN_FILE = "plan.json"
MESSAGES_FILE = "messages.jsonl"
MAX_MESSAGES_BYTES = 1 << 30


def ledger_file(site: str) -> str:
    """Where a site's ledger stands."""
    return f"ledgers/{site}.jsonl"


def opening_file(round_id: int, purpose: str) -> str:
    """Where an opened sum stands."""
    return f"openings/{round_id}-{purpose}.json"


def transcript_file(round_id: int) -> str:
    """Where a round's transcript stands."""
    return f"transcripts/{round_id}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was checked, and everything that was wrong, each with the file and entry named."""

    study_id: str
    rounds: int
    openings: int
    messages: int
    ledgers: Mapping[str, LedgerSummary]
    faults: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


class _Faults:
    """Collects what is wrong; one bad file does not hide another."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, where: str, error: LadaError) -> None:
        self.found.append(f"{where}: {error}")

    def add(self, where: str, sentence: str) -> None:
        self.found.append(f"{where}: {sentence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    files: Mapping[str, bytes]
    roster: Roster
    plan: StudyPlan
    index: MessageIndex


def verify_evidence(files: Mapping[str, bytes]) -> Verdict:
    """Verify an exported study.

    Args: files: path relative to the export folder -> content; every file of the folder.
    Returns: a verdict; it never raises for bad content.
    """
    faults = _Faults()
    missing = [
        name for name in (CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE) if name not in files
    ]
    if missing:
        faults.add(missing[0], "the file is missing")
        return _verdict(None, {}, faults)
    try:
        roster = parse_roster(files[ROSTER_FILE])
        plan = parse_plan(files[PLAN_FILE])
        index = _read_messages(files[MESSAGES_FILE], roster, plan)
    except LadaError as error:
        faults.check("roster, plan or messages", error)
        return _verdict(None, {}, faults)
    study = _Study(files=files, roster=roster, plan=plan, index=index)
    _check_file_names(study, faults)
    _check_certificates(study, faults)
    ledgers, summaries = _check_ledgers(study, faults)
    _check_openings(study, ledgers, faults)
    _check_transcripts(study, faults)
    return _verdict(study, summaries, faults)


def _verdict(
    study: _Study | None, ledgers: Mapping[str, LedgerSummary], faults: _Faults
) -> Verdict:
    index = study.index if study else None
    kinds = [one.kind for one in index] if index else []
    return Verdict(
        study_id=study.plan.study_id if study else "",
        rounds=kinds.count(Kind.TRANSCRIPT),
        openings=kinds.count(Kind.OPENED),
        messages=len(kinds),
        ledgers=ledgers,
        faults=tuple(faults.found),
    )


def _read_messages(raw: bytes, roster: Roster, plan: StudyPlan) -> MessageIndex:
    if len(raw) > MAX_MESSAGES_BYTES:
        raise PeerError(f"{MESSAGES_FILE} is larger than {MAX_MESSAGES_BYTES} bytes")
    lines = raw.split(b"\n")
    if lines.pop() != b"":
        raise PeerError(f"{MESSAGES_FILE}: the last line does not end with a line feed")
    index = MessageIndex(plan.study_id, plan.hash)
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


def _check_file_names(study: _Study, faults: _Faults) -> None:
    """No file may be missing and none may be there that nothing speaks of."""
    expected = {CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE}
    for one in study.index:
        head = one.header
        if one.kind is Kind.OPENED:
            expected.add(opening_file(head.round_id, head.purpose))
        elif one.kind is Kind.TRANSCRIPT:
            expected.add(transcript_file(head.round_id))
        elif one.kind is Kind.LEDGER:
            expected.add(ledger_file(head.sender))
    for name in sorted(expected - set(study.files)):
        faults.add(name, "the file is missing; signed messages speak of it")
    for name in sorted(set(study.files) - expected):
        faults.add(name, "no signed message speaks of this file")


def _check_certificates(study: _Study, faults: _Faults) -> None:
    """The CA vouches for the signing certificate of everybody who signed something binding."""
    try:
        ca = parse_certificate(study.files[CA_FILE])
        if certificate_fingerprint(ca) != study.roster.study_ca:
            faults.add(CA_FILE, "it is not the study CA that the roster names")
    except LadaError as error:
        faults.check(CA_FILE, error)
        return
    shown: dict[str, str] = {}
    for one in study.index:
        try:
            if one.kind is Kind.PLAN:
                shown[one.header.sender] = parse_body(one, CertifiedBody).certificate
                if one.header.payload_sha256 != study.plan.hash:
                    faults.add(PLAN_FILE, "it is not the plan that the coordinator signed")
            elif one.kind is Kind.ACCEPTANCE:
                shown[one.header.sender] = parse_body(one, AcceptanceBody).certificate
            elif one.kind is Kind.OPENING_KEY:
                shown[one.header.sender] = parse_body(one, OpeningKeyBody).certificate
        except LadaError as error:
            faults.check(repr(one), error)
    for party in study.roster.parties:
        if party.id in shown:
            _check_certificate(party, shown[party.id], study, faults)
        elif party.role is not Role.SITE:
            faults.add(MESSAGES_FILE, f"{party.id} never showed its certificate")


def _check_certificate(party: Party, pem: str, study: _Study, faults: _Faults) -> None:
    """The roster's certificate, issued by the CA. Years later its period has passed; that it was
    valid at the time is what every TLS connection checked."""
    where = f"certificate of {party.id}"
    try:
        certificate = parse_certificate(pem.encode("ascii", "replace"))
        if certificate_fingerprint(certificate) != party.signing_fingerprint:
            faults.add(where, "it is not the one in the roster")
        verify_party(
            certificate,
            ca=parse_certificate(study.files[CA_FILE]),
            at=certificate.not_valid_before_utc,
            usage="signing",
            expected=party.name,
        )
    except LadaError as error:
        faults.check(where, error)


def _check_ledgers(
    study: _Study, faults: _Faults
) -> tuple[dict[str, tuple[LedgerEntry, ...]], dict[str, LedgerSummary]]:
    entries: dict[str, tuple[LedgerEntry, ...]] = {}
    summaries: dict[str, LedgerSummary] = {}
    for party in study.roster.sites:
        name = ledger_file(party.id)
        raw = study.files.get(name)
        if raw is None:
            continue
        try:
            found = parse_ledger_lines(raw)
            summaries[party.id] = verify_ledger(
                found, public_key=bytes.fromhex(party.signing_key), caps=None, site=party.id
            )
            entries[party.id] = found
            _check_shown(study, party, raw)
        except LadaError as error:
            faults.check(name, error)
    return entries, summaries


def _check_shown(study: _Study, party: Party, raw: bytes) -> None:
    """The ledger is exactly what the site signed part by part, and the auditor countersigned.

    Raises: PeerError(reason="bad_ledger").
    """
    lines = raw.splitlines(keepends=True)
    auditor = study.roster.auditor.id
    newest = -1
    for one in study.index:
        if one.kind is not Kind.LEDGER or one.header.sender != party.id:
            continue
        body = parse_body(one, LedgerBody)
        part = b"".join(lines[body.first_index : body.head_index + 1])
        if sha256_hex(part) != one.header.payload_sha256:
            raise PeerError(
                f"entries {body.first_index} to {body.head_index} are not those that "
                f"{party.id} signed for round {one.header.round_id}",
                reason="bad_ledger",
            )
        receipt = study.index.find(
            Kind.RECEIPT,
            sender=auditor,
            to=party.id,
            round_id=one.header.round_id,
            purpose=one.header.purpose,
        )
        if receipt is None or parse_body(receipt, ReceiptBody).head_hash != body.head_hash:
            raise PeerError(
                f"entry {body.head_index} was never countersigned by {auditor}",
                reason="bad_ledger",
            )
        newest = max(newest, body.head_index)
    if newest != len(lines) - 1:
        raise PeerError(
            f"{len(lines)} entries, the newest countersignature is over entry {newest}",
            reason="bad_ledger",
        )


def _check_openings(
    study: _Study, ledgers: Mapping[str, tuple[LedgerEntry, ...]], faults: _Faults
) -> None:
    seen: set[tuple[int, str]] = set()
    for one in study.index:
        if one.kind is not Kind.OPENED:
            continue
        head = one.header
        name = opening_file(head.round_id, head.purpose)
        if (head.round_id, head.purpose) in seen:
            faults.add(name, "two sums were opened for one round and purpose")
        seen.add((head.round_id, head.purpose))
        try:
            _check_opening(study, one, ledgers)
        except LadaError as error:
            faults.check(name, error)


def _check_opening(
    study: _Study, opened: Envelope, ledgers: Mapping[str, tuple[LedgerEntry, ...]]
) -> None:
    head, plan = opened.header, study.plan
    if head.purpose not in PURPOSES:
        raise PeerError(f"unknown purpose {head.purpose!r}", reason="malformed")
    attempt = Attempt(round_id=head.round_id, purpose=head.purpose, number=head.attempt)
    request = check_opening_request(
        study.index,
        attempt,
        plan=plan,
        roster=study.roster,
        parameters_digest=purpose_parameters(plan, head.purpose).digest,
    )
    body = parse_body(opened, OpenedBody)
    sent = {site: one.message_hash for site, one in request.contributions.items()}
    if body.contributions != sent or body.sum_message != request.sum_message.message_hash:
        raise PeerError("the opening names other contributions than those sent", reason="wrong_sum")
    raw = study.files.get(opening_file(head.round_id, head.purpose), b"")
    if sha256_hex(raw) != head.payload_sha256:
        raise PeerError("the file is not what the auditor signed", reason="payload_mismatch")
    values = opened_values(raw, plan, head.purpose)
    check_opened_range(values, plan, head.purpose, len(request.cohort))
    for site, paid_by in request.paid_by.items():
        check_payment(ledgers.get(site, ()), paid_by, plan=plan, attempt=attempt, site=site)


def _check_transcripts(study: _Study, faults: _Faults) -> None:
    coordinator = study.roster.coordinator.id
    previous = FIRST
    for round_id in range(study.plan.rounds):
        message = study.index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id)
        if message is None:
            break
        name = transcript_file(round_id)
        raw = study.files.get(name, b"")
        try:
            if sha256_hex(raw) != message.header.payload_sha256:
                raise PeerError("the file is not what was signed", reason="payload_mismatch")
            transcript = parse_transcript(raw)
            check_transcript(
                transcript,
                study.index,
                round_id=round_id,
                previous=previous,
                reader=study.roster.auditor.id,
            )
            _check_complete(study, transcript)
            _check_signers(study, round_id, message.header.payload_sha256)
        except LadaError as error:
            faults.check(name, error)
        previous = message.header.payload_sha256


def _check_complete(study: _Study, transcript: Transcript) -> None:
    """Every listed message that the auditor may read stands in the export."""
    auditor = study.roster.auditor.id
    for entry in transcript.entries:
        readable = may_read(
            kind=Kind(entry.kind),
            sender=entry.sender,
            to=entry.to,
            reader=auditor,
            role=Role.AUDITOR,
        )
        if readable and study.index.by_hash(entry.message_hash) is None:
            raise PeerError(
                f"{entry.kind} of {entry.sender} is listed but missing from {MESSAGES_FILE}",
                reason="bad_transcript",
            )


def _check_signers(study: _Study, round_id: int, digest: str) -> None:
    """Everybody who worked in the round signed this transcript."""
    closes = study.index.all(Kind.CLOSE, round_id=round_id)
    trained = study.index.all(Kind.TRAINED, round_id=round_id)
    for party in (*trained, study.roster.coordinator.id, study.roster.auditor.id):
        close = closes.get(party)
        if close is None:
            raise PeerError(f"{party} never signed the transcript", reason="bad_transcript")
        if parse_body(close, CloseBody).transcript_sha256 != digest:
            raise PeerError(f"{party} signed another transcript", reason="bad_transcript")
