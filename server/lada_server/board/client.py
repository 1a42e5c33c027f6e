"""The coordinator's own end of its board: what it has seen, reads and posts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.wire.envelope import NO_PAYLOAD, Envelope, Header, sign_envelope
from lada_protocol.wire.messages import OpenedBody, parse_body
from lada_secure.canonical import sha256_hex
from lada_secure.errors import PeerError
from lada_server.board.stall_timer import StorageStallTimer
from lada_server.board.store import BoardStore

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class BoardClient:
    """One study's messages at the coordinator.

    `last_sequence` is the place on the board of its own newest message, also after a restart.
    `place` is the round and step under way, for messages while the storage refuses.
    """

    plan: StudyPlan
    roster: Roster
    store: BoardStore
    signing_key: Ed25519PrivateKey
    stall_timer: StorageStallTimer
    place: tuple[int, str] = (0, "plan")
    last_sequence: int = 0
    sent_bytes: int = 0
    read_bytes: int = 0
    index: MessageIndex = field(init=False)
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.index = MessageIndex(self.plan.study_id, self.plan.hash)

    @property
    def me(self) -> str:
        """The coordinator's id."""
        return self.roster.coordinator.id

    def sync(self, *, wait_s: float) -> None:
        """Take up what is new on the board, waiting so long for the first message."""
        rows = self._insist(lambda: self.store.visible(self.me, self._sequence, wait_s=wait_s))
        for sequence, envelope in rows:
            self._sequence = sequence
            head = envelope.header
            if head.sender == self.me:
                self.last_sequence = sequence
            if (head.study_id, head.plan_hash) == (self.index.study_id, self.index.plan_hash):
                self.index.add(envelope)

    def participants(self) -> tuple[str, ...]:
        """Everybody else who has taken part: the auditor, and the sites that accepted the plan."""
        kinds = (Kind.OPENING_KEY, Kind.ACCEPTANCE)
        return tuple(sorted({one.header.sender for one in self.index if one.kind in kinds}))

    def refusers(self) -> tuple[str, ...]:
        """Who does not come back to hear how the study ended: refusers, and the refused.

        A refusal with an addressee is the auditor's: with a purpose it answers a site's ledger,
        without one its acceptance.
        """
        refusals = [one.header for one in self.index if one.kind is Kind.REFUSAL]
        return tuple(sorted({one.to or one.sender for one in refusals if not one.purpose}))

    def read(self, message_hash: str) -> bytes:
        """The payload of a message."""
        payload = self._insist(lambda: self.store.payload(message_hash))
        self.read_bytes += len(payload)
        return payload

    def opened_sum(self, round_id: int, purpose: str) -> list[int]:
        """A sum as the auditor opened it, once it is clear that it is the one it was sent."""
        opened = self.index.opened(round_id, purpose, auditor=self.roster.auditor.id)
        attempt = Attempt(round_id=round_id, purpose=purpose, number=opened.header.attempt)
        mine = self.index.at(Kind.SUM, attempt, sender=self.me)
        if mine is None or parse_body(opened, OpenedBody).sum_message != mine.message_hash:
            raise PeerError(
                f"round {round_id}: the auditor opened another sum than the one it was sent",
                reason="wrong_sum",
                peer=self.roster.auditor.id,
                round_id=round_id,
            )
        return opened_values(self.read(opened.message_hash), self.plan, purpose)

    def post_at(
        self, kind: Kind, attempt: Attempt, body: Mapping[str, Any], *, payload: bytes = b""
    ) -> Envelope:
        """Sign and post a message of an attempt."""
        return self.post(
            kind,
            body,
            payload=payload,
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def post(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        payload: bytes = b"",
        round_id: int = 0,
        purpose: str = "",
        attempt: int = 0,
        to: str = "",
    ) -> Envelope:
        """Sign and post a message; the same one again changes nothing."""
        header = Header(
            kind=kind.value,
            study_id=self.plan.study_id,
            plan_hash=self.plan.hash,
            roster_hash=self.roster.hash,
            round_id=round_id,
            attempt=attempt,
            purpose=purpose,
            sender=self.me,
            to=to,
            body=dict(body),
            payload_sha256=sha256_hex(payload) if payload else NO_PAYLOAD,
            payload_bytes=len(payload),
        )
        envelope = sign_envelope(header, self.signing_key)
        self.last_sequence = self._insist(lambda: self.store.post(envelope, payload))
        self.sent_bytes += len(envelope.header_bytes) + len(payload)
        self.index.add(envelope)
        return envelope

    def _insist(self, action: Callable[[], T]) -> T:
        round_id, step = self.place
        return self.stall_timer.insist(action, round_id=round_id, step=step)
