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
from typing import Final

from lada_protocol.evidence.export import (
    CA_FILE,
    MESSAGES_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    ExportedStudy,
    Faults,
    aggregate_file,
    ledger_file,
    transcript_file,
)
from lada_protocol.evidence.ledgers import check_ledgers
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
from lada_protocol.identity.roster import Party, Roster, parse_roster
from lada_protocol.kinds import Kind, Role
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.completion import Outcome, ending_of
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import envelope_from_line
from lada_protocol.wire.messages import (
    AcceptanceBody,
    CertifiedBody,
    OpeningKeyBody,
    parse_body,
)
from lada_secure.errors import LadaError, PeerError
from lada_secure.privacy.ledger.verification import LedgerSummary

MAX_MESSAGES_BYTES = 1 << 30
ENDINGS: Final[Mapping[Outcome, str]] = {
    "finished": "finished",
    "failed": "failed",
    "unfinished": "did not finish",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was checked, and everything that was wrong, each with the file and entry named.

    `study` is None where roster, plan or messages could not be read. That a study did not finish is
    among the faults: evidence of it may be whole, and yet nobody may take it for one that did.
    """

    study: ExportedStudy | None
    study_id: str
    rounds: int
    openings: int
    messages: int
    ledgers: Mapping[str, LedgerSummary]
    outcome: Outcome
    faults: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def verify_evidence(files: Mapping[str, bytes]) -> Verdict:
    """Verify an exported study.

    Args: files: path relative to the export folder -> content; every file of the folder.
    Returns: a verdict; it never raises for bad content.
    """
    faults = Faults()
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
    study = ExportedStudy(files=files, roster=roster, plan=plan, index=index)
    _check_file_names(study, faults)
    _check_certificates(study, faults)
    ledgers, summaries = check_ledgers(study, faults)
    check_aggregates(study, ledgers, faults)
    check_trainings(study, ledgers, faults)
    check_transfers(study, faults)
    check_transcripts(study, faults)
    ending = ending_of(index, plan=plan, roster=roster)
    if ending.outcome != "finished":
        faults.add(MESSAGES_FILE, f"the study {ENDINGS[ending.outcome]}: {ending.reason}")
    return _verdict(study, summaries, faults, outcome=ending.outcome)


def _verdict(
    study: ExportedStudy | None,
    ledgers: Mapping[str, LedgerSummary],
    faults: Faults,
    *,
    outcome: Outcome = "unfinished",
) -> Verdict:
    index = study.index if study else None
    kinds = [one.kind for one in index] if index else []
    return Verdict(
        study=study,
        study_id=study.plan.study_id if study else "",
        rounds=kinds.count(Kind.TRANSCRIPT),
        openings=kinds.count(Kind.OPENED),
        messages=len(kinds),
        ledgers=ledgers,
        outcome=outcome,
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


def _check_file_names(study: ExportedStudy, faults: Faults) -> None:
    """No file may be missing and none may be there that nothing speaks of."""
    expected = {CA_FILE, ROSTER_FILE, PLAN_FILE, MESSAGES_FILE}
    for one in study.index:
        head = one.header
        if one.kind is Kind.OPENED:
            expected.add(aggregate_file(head.round_id, head.purpose))
        elif one.kind is Kind.TRANSCRIPT:
            expected.add(transcript_file(head.round_id))
        elif one.kind is Kind.ADMISSION:
            # Of a site that was not admitted the auditor keeps what it had, and no more.
            expected.add(ledger_file(head.to))
    for name in sorted(expected - set(study.files)):
        faults.add(name, "the file is missing; signed messages speak of it")
    for name in sorted(set(study.files) - expected):
        faults.add(name, "no signed message speaks of this file")


def _check_certificates(study: ExportedStudy, faults: Faults) -> None:
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


def _check_certificate(party: Party, pem: str, study: ExportedStudy, faults: Faults) -> None:
    """A certificate of the roster's key, issued by the CA. Years later its period has passed; that
    it was valid at the time is what every TLS connection checked."""
    where = f"certificate of {party.id}"
    try:
        certificate = parse_certificate(pem.encode("ascii", "replace"))
        if key_fingerprint(certificate) != party.signing_fingerprint:
            faults.add(where, "its key is not the one in the roster")
        verify_party(
            certificate,
            ca=parse_certificate(study.files[CA_FILE]),
            at=certificate.not_valid_before_utc,
            usage="signing",
            expected=party.name,
        )
    except LadaError as error:
        faults.check(where, error)
