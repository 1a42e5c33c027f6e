"""The transcript of a round: every message in it, chained to the round before, signed by all."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import Digest, Envelope
from lada_protocol.wire.messages import ScoresBody, parse_body
from lada_secure.canonical import canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import PeerError

MAX_TRANSCRIPT_BYTES = 16 * 1024 * 1024
FIRST = "0" * 64
# Sent after the transcript or about it, so they cannot stand in it.
_OUTSIDE = frozenset(
    {
        Kind.TRANSCRIPT,
        Kind.CLOSE,
        Kind.FINISHED,
        Kind.FAILED,
        Kind.RECEIPT,
        Kind.ADMISSION,
    }
)


class Entry(BaseModel):
    """One message of a round."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    purpose: str
    attempt: int
    sender: str
    to: str
    message_hash: Digest


class Transcript(BaseModel):
    """All messages of one round, sorted, and the hash of the transcript before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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
    head = envelope.header
    return Entry(
        kind=head.kind,
        purpose=head.purpose,
        attempt=head.attempt,
        sender=head.sender,
        to=head.to,
        message_hash=envelope.message_hash,
    )


def _order(entry: Entry) -> tuple[str, str, int, str, str]:
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
    """Read a transcript.

    Raises: PeerError(reason="bad_transcript").
    """
    value = parse_canonical_json(raw, max_bytes=MAX_TRANSCRIPT_BYTES)
    try:
        transcript = Transcript.model_validate(value)
    except ValidationError as error:
        raise PeerError(
            f"transcript: {error.errors()[0]['msg']}", reason="bad_transcript"
        ) from error
    if transcript.entries != sorted(transcript.entries, key=_order):
        raise PeerError("transcript: entries are not sorted", reason="bad_transcript")
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
        raise PeerError(
            f"transcript of round {round_id} does not follow the one before",
            reason="bad_transcript",
            round_id=round_id,
        )
    listed = {_order(entry): entry.message_hash for entry in transcript.entries}
    matrices = {one.message_hash for one in transcript.entries if one.kind == Kind.MATRIX}
    needed = {
        Kind.COHORT,
        Kind.OPENED,
        Kind.MATRIX,
        Kind.SCORES,
        Kind.PATHS,
        Kind.PLAN,
        Kind.INQUIRY,
        Kind.LLM_UPDATE,
    }
    for envelope in index.of_round(round_id):
        if stands_outside(envelope):
            continue
        stands = listed.get(_order(_entry(envelope)))
        if stands is None and envelope.header.sender != reader and envelope.kind not in needed:
            continue
        if stands != envelope.message_hash:
            raise PeerError(
                f"transcript of round {round_id} "
                f"{'leaves out' if stands is None else 'changes'} {envelope!r}",
                reason="bad_transcript",
                round_id=round_id,
            )
        if envelope.kind is Kind.SCORES and parse_body(envelope, ScoresBody).matrix not in matrices:
            raise PeerError(
                f"transcript of round {round_id} lists another matrix than the scores name",
                reason="bad_transcript",
                round_id=round_id,
            )
