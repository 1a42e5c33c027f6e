"""The transcript of a round: every message in it, chained to the round before, signed by all."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import Digest, Envelope, Header, StrictModel, read_document
from lada_protocol.wire.messages import ScoresBody, parse_body
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import PeerError

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


def _entry(envelope: Envelope) -> Entry:
    place = envelope.header.model_dump(include={"kind", "purpose", "attempt", "sender", "to"})
    return Entry(**place, message_hash=envelope.message_hash)


def _order(entry: Entry | Header) -> tuple[str, str, int, str, str]:
    return (entry.kind, entry.purpose, entry.attempt, entry.sender, entry.to)


def build_transcript(index: MessageIndex, round_id: int, *, previous: str) -> Transcript:
    """The transcript of a round as the coordinator's board holds it."""
    entries = [_entry(one) for one in index.of_round(round_id) if not stands_outside(one)]
    return Transcript(
        study_id=index.study_id,
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
    if (transcript.study_id, transcript.plan_hash) != (index.study_id, index.plan_hash):
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
