"""The transcript of a round: every message in it, chained to the round before, signed by all.

A study was carried out where enough sites trained in every round and signed its transcript.
Everybody computes this from messages that everybody may read, so nobody takes the coordinator's
word for it that a study has finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import Digest, Envelope, Header, StrictModel, read_document
from lada_protocol.wire.messages import ScoresBody, fault_of, parse_body
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import PeerError

Outcome: TypeAlias = Literal["finished", "failed", "unfinished"]

FIRST = "0" * 64
# Sent after the transcript or about it, so they cannot stand in it.
_OUTSIDE = {Kind.TRANSCRIPT, Kind.CLOSE, Kind.FINISHED, Kind.FAILED, Kind.RECEIPT, Kind.ADMISSION}
# What a party's work rests on: nobody signs a transcript that leaves one of them out.
_SUMS_AND_SCORES = {Kind.COHORT, Kind.OPENED, Kind.MATRIX, Kind.SCORES}
_NEEDED = _SUMS_AND_SCORES | {Kind.PLAN, Kind.PATHS, Kind.INQUIRY, Kind.LLM_UPDATE}


class Entry(StrictModel):
    """One message of a round."""

    kind: str
    purpose: str
    attempt: int
    sender: str
    to: str
    message_hash: Digest


class Transcript(StrictModel):
    """All messages of one round, sorted, and the hash of the transcript before."""

    study_id: str
    plan_hash: Digest
    round_id: Annotated[int, Field(ge=0)]
    previous: Digest
    entries: list[Entry]

    def to_bytes(self) -> bytes:
        """Canonical JSON, the form that is hashed and signed."""
        return canonical_json(self.model_dump())

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_hex(self.to_bytes())


def stands_outside(envelope: Envelope) -> bool:
    """Whether a message is left out of transcripts: all about the round's end or about a ledger.

    Ledgers are answered (a receipt, or a refusal with the site as addressee), and late acceptances
    admitted, when the auditor comes to them, which may be after the round.
    """
    about_a_ledger = envelope.kind is Kind.REFUSAL and envelope.header.to != ""
    return envelope.kind in _OUTSIDE or about_a_ledger


def _order(entry: Entry | Header) -> tuple[str, str, int, str, str]:
    return (entry.kind, entry.purpose, entry.attempt, entry.sender, entry.to)


def build_transcript(index: MessageIndex, round_id: int, *, previous: str) -> Transcript:
    """The transcript of a round as the coordinator's board holds it."""
    place = {"kind", "purpose", "attempt", "sender", "to"}
    entries = [
        Entry(**one.header.model_dump(include=place), message_hash=one.message_hash)
        for one in index.of_round(round_id)
        if not stands_outside(one)
    ]
    return Transcript(
        study_id=index.plan.study_id,
        plan_hash=index.plan_hash,
        round_id=round_id,
        previous=previous,
        entries=sorted(entries, key=_order),
    )


def parse_transcript(raw: bytes) -> Transcript:
    """Read a transcript. Raises: PeerError(reason="bad_transcript")."""
    limit = Kind.TRANSCRIPT.rules.max_payload_bytes
    transcript = read_document(
        raw, Transcript, what="transcript", max_bytes=limit, reason="bad_transcript"
    )
    if transcript.entries != sorted(transcript.entries, key=_order):
        raise _bad("entries are not sorted")
    return transcript


def check_transcript(
    transcript: Transcript, index: MessageIndex, *, round_id: int, previous: str, reader: str
) -> None:
    """Check a transcript against what `reader` has seen and sent itself.

    Messages that others may have posted late are not demanded; the reader's own, and everything
    that its work rested on (cohorts, secure aggregations, scores, paths, inquiries, updates), are.
    So is the matrix that scores name, which a site cannot read.

    Raises: PeerError(reason="bad_transcript") naming the message.
    """
    if (transcript.study_id, transcript.plan_hash) != (index.plan.study_id, index.plan_hash):
        raise PeerError("transcript belongs to another study or plan", reason="bad_transcript")
    if transcript.round_id != round_id or transcript.previous != previous:
        raise _bad("does not follow the one before", round_id)
    listed = {_order(entry): entry.message_hash for entry in transcript.entries}
    matrices = {entry.message_hash for entry in transcript.entries if entry.kind == Kind.MATRIX}
    for envelope in index.of_round(round_id):
        if stands_outside(envelope):
            continue
        stands = listed.get(_order(envelope.header))
        if stands is None and envelope.header.sender != reader and envelope.kind not in _NEEDED:
            continue
        if stands != envelope.message_hash:
            raise _bad(f"{'leaves out' if stands is None else 'changes'} {envelope!r}", round_id)
        if envelope.kind is Kind.SCORES and parse_body(envelope, ScoresBody).matrix not in matrices:
            raise _bad("lists another matrix than the scores name", round_id)


def _bad(what: str, round_id: int | None = None) -> PeerError:
    of_round = ":" if round_id is None else f" of round {round_id}"
    return PeerError(f"transcript{of_round} {what}", reason="bad_transcript", round_id=round_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a study ended, or that it has not. `reason` is empty only where it finished."""

    outcome: Outcome
    reason: str = ""


def ending_of(index: MessageIndex) -> Ending:
    """How a study ended, from its messages alone."""
    coordinator = index.coordinator
    failed = index.find(Kind.FAILED, sender=coordinator)
    failed = failed or index.find(Kind.REFUSAL, sender=index.auditor)
    if failed is not None:
        return Ending(outcome="failed", reason=fault_of(failed))
    rounds = range(index.plan.rounds)
    lacks = next(filter(None, (missing_from_round(index, one) for one in rounds)), "")
    if index.find(Kind.FINISHED, sender=coordinator) is None:
        where = lacks or "all of its rounds are closed"
        return Ending(outcome="unfinished", reason=f"{coordinator} never ended it; {where}")
    if lacks:
        return Ending(outcome="failed", reason=f"{coordinator} ended it early; {lacks}")
    return Ending(outcome="finished")


def missing_from_round(index: MessageIndex, round_id: int) -> str:
    """What a round lacks of being carried out, in words; empty where it lacks nothing."""
    sites, needed = {one.id for one in index.roster.sites}, index.plan.min_cohort
    trained = set(index.all(Kind.TRAINED, round_id=round_id)) & sites
    if len(trained) < needed:
        return f"round {round_id}: {len(trained)} sites have trained, {needed} are needed"
    signers = _signers(index, round_id)
    closed = trained & signers
    if len(closed) < needed:
        return (
            f"round {round_id}: {len(closed)} sites have trained and signed its transcript, "
            f"{needed} are needed"
        )
    for party in (index.coordinator, index.auditor):
        if party not in signers:
            return f"round {round_id}: {party} never signed its transcript"
    return ""


def _signers(index: MessageIndex, round_id: int) -> set[str]:
    """Who signed the coordinator's transcript of a round."""
    transcript = index.find(Kind.TRANSCRIPT, sender=index.coordinator, round_id=round_id)
    if transcript is None:
        return set()
    digest = transcript.header.payload_sha256
    closes = index.all(Kind.CLOSE, round_id=round_id)
    return {
        party
        for party, close in closes.items()
        if close.header.body.get("transcript_sha256") == digest
    }
