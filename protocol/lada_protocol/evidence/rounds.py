"""Offline verification of a study's rounds: opened sums, LLM transfers, transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from lada_protocol.evidence.export import (
    MESSAGES_FILE,
    Faults,
    Files,
    aggregate_file,
    ledger_file,
    need,
    transcript_file,
)
from lada_protocol.kinds import Kind, Role, may_read
from lada_protocol.rounds.blind_scoring import check_scored_round
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.llm_transfer import check_transfer
from lada_protocol.rounds.payments import check_payment, check_training_payment
from lada_protocol.rounds.refusals import has_left
from lada_protocol.rounds.secure_aggregation import (
    check_aggregate_request,
    check_opened_range,
    opened_values,
    purposes_of,
)
from lada_protocol.rounds.transcript import FIRST, Transcript, check_transcript, parse_transcript
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import CloseBody, OpenedBody, TrainedBody, parse_body
from lada_secure.canonical import sha256_hex
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND
from lada_secure.privacy.ledger.entries import LedgerEntry

# Entries of the ledgers that were found good, by site.
Ledgers: TypeAlias = Mapping[str, tuple[LedgerEntry, ...]]


def check_aggregates(index: MessageIndex, files: Files, ledgers: Ledgers, faults: Faults) -> None:
    """Every opened sum: who contributed, what paid, which bytes, and none opened twice."""
    seen: set[tuple[int, str]] = set()
    for opened in index.sent(Kind.OPENED):
        key = (opened.header.round_id, opened.header.purpose)
        name = aggregate_file(*key)
        if key in seen:
            faults.add(name, "two sums were opened for one round and purpose")
        seen.add(key)
        with faults.of(name):
            _check_aggregate(index, opened, files.get(name, b""), ledgers)


def _check_aggregate(index: MessageIndex, opened: Envelope, raw: bytes, ledgers: Ledgers) -> None:
    head, plan = opened.header, index.plan
    need(head.purpose in purposes_of(plan), f"unknown purpose {head.purpose!r}")
    if head.purpose == CONFIDENCE_EXCESS:
        need(plan.transfer_in(head.round_id) is not None, "the plan has no uplink in this round")
    attempt = Attempt(round_id=head.round_id, purpose=head.purpose, number=head.attempt)
    request = check_aggregate_request(index, attempt)
    if head.purpose == DEMAND:
        check_scored_round(index, request.cohort, round_id=head.round_id)
    body = parse_body(opened, OpenedBody)
    sent = {site: message.message_hash for site, message in request.contributions.items()}
    need(
        body.contributions == sent and body.sum_message == request.sum_message.message_hash,
        "the opening names other contributions than those sent",
    )
    need(sha256_hex(raw) == head.payload_sha256, "the file is not what the auditor signed")
    values = opened_values(raw, plan, head.purpose)
    check_opened_range(values, plan, head.purpose, len(request.cohort))
    for site, paid_by in request.paid_by.items():
        check_payment(ledgers.get(site, ()), paid_by, plan=plan, attempt=attempt, site=site)


def check_trainings(index: MessageIndex, ledgers: Ledgers, faults: Faults) -> None:
    """Whoever says that it trained has paid for every step of the round."""
    sites, plan = {party.id for party in index.roster.sites}, index.plan
    for round_id in range(plan.rounds):
        for site, trained in sorted(index.all(Kind.TRAINED, round_id=round_id).items()):
            with faults.of(ledger_file(site) if site in sites else MESSAGES_FILE):
                paid_by, entries = parse_body(trained, TrainedBody).paid_by, ledgers.get(site, ())
                check_training_payment(entries, paid_by, plan=plan, round_id=round_id, site=site)


def check_transfers(index: MessageIndex, faults: Faults) -> None:
    """Every inquiry and every decision about the LLM, by the plan and the hold-out's rule."""
    for round_id in range(index.plan.rounds):
        with faults.of(MESSAGES_FILE):
            check_transfer(index, round_id=round_id)


def check_transcripts(index: MessageIndex, files: Files, faults: Faults) -> None:
    """Every transcript: its chain, its completeness and its signers."""
    previous = FIRST
    for round_id in range(index.plan.rounds):
        message = index.find(Kind.TRANSCRIPT, sender=index.coordinator, round_id=round_id)
        if message is None:
            break
        digest, name = message.header.payload_sha256, transcript_file(round_id)
        raw = files.get(name, b"")
        with faults.of(name):
            need(sha256_hex(raw) == digest, "the file is not what was signed")
            transcript = parse_transcript(raw)
            check_transcript(
                transcript, index, round_id=round_id, previous=previous, reader=index.auditor
            )
            _check_complete(index, transcript)
            _check_signers(index, round_id, digest)
        previous = digest


def _check_complete(index: MessageIndex, transcript: Transcript) -> None:
    """Every listed message that the auditor may read stands in the export."""
    for entry in transcript.entries:
        readable = may_read(
            kind=Kind(entry.kind),
            sender=entry.sender,
            to=entry.to,
            reader=index.auditor,
            role=Role.AUDITOR,
        )
        need(
            not readable or index.by_hash(entry.message_hash) is not None,
            f"{entry.kind} of {entry.sender} is listed but missing from {MESSAGES_FILE}",
        )


def _check_signers(index: MessageIndex, round_id: int, digest: str) -> None:
    """Everybody who worked in the round signed this transcript, or has withdrawn before that."""
    closes = index.all(Kind.CLOSE, round_id=round_id)
    trained = index.all(Kind.TRAINED, round_id=round_id)
    for party in (*trained, index.coordinator, index.auditor):
        if party not in closes and party in trained and has_left(index, party):
            continue
        need(party in closes, f"{party} never signed the transcript")
        signed = parse_body(closes[party], CloseBody).transcript_sha256
        need(signed == digest, f"{party} signed another transcript")
