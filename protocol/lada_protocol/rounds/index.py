"""What one party has seen of a study: an index over verified messages.

All round logic is a function of this index, so a party that restarts and reads the board again
stands exactly where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.wire.envelope import NO_PAYLOAD, Envelope, Header, sign_envelope
from lada_secure.canonical import sha256_hex
from lada_secure.errors import PeerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one secure aggregation; everything in it is fresh but the noised vectors.

    Messages of a round outside of secure aggregations, and those before the rounds, stand where an
    attempt without a purpose would.
    """

    round_id: int = 0
    purpose: str = ""
    number: int = 0

    def fault(self, message: str, *, reason: str, peer: str | None = None) -> PeerError:
        """An error for what is wrong with the secure aggregation."""
        message = f"round {self.round_id}, {self.purpose}: {message}"
        return PeerError(message, reason=reason, peer=peer, round_id=self.round_id)


class Slot(NamedTuple):
    """Where a message belongs; a sender may fill a slot once and never with other bytes."""

    kind: Kind
    round_id: int
    purpose: str
    attempt: int
    sender: str
    to: str


def slot_of(envelope: Envelope) -> Slot:
    """The slot of a message."""
    head = envelope.header
    return Slot(envelope.kind, head.round_id, head.purpose, head.attempt, head.sender, head.to)


@dataclass(slots=True)
class MessageIndex:
    """Messages of one study, among the parties of its roster, by slot and by hash."""

    plan: StudyPlan
    roster: Roster
    plan_hash: str = field(init=False)
    _by_slot: dict[Slot, Envelope] = field(default_factory=dict)
    _by_hash: dict[str, Envelope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan_hash = self.plan.hash

    @property
    def coordinator(self) -> str:
        """The coordinator's id."""
        return self.roster.coordinator.id

    @property
    def auditor(self) -> str:
        """The auditor's id."""
        return self.roster.auditor.id

    def sign(
        self, slot: Slot, body: Mapping[str, Any], payload: bytes, key: Ed25519PrivateKey
    ) -> Envelope:
        """The message for a slot, bound to plan and roster and signed by its sender."""
        header = Header(
            **slot._asdict(),
            study_id=self.plan.study_id,
            plan_hash=self.plan_hash,
            roster_hash=self.roster.hash,
            body=dict(body),
            payload_sha256=sha256_hex(payload) if payload else NO_PAYLOAD,
            payload_bytes=len(payload),
        )
        return sign_envelope(header, key)

    def take(self, envelope: Envelope) -> None:
        """Add a message if it belongs to this study; a board may hold others."""
        head = envelope.header
        if (head.study_id, head.plan_hash) == (self.plan.study_id, self.plan_hash):
            self.add(envelope)

    def add(self, envelope: Envelope) -> None:
        """Add a message; the same message twice is fine.

        Raises: PeerError: wrong_study, wrong_plan, equivocation (two messages in one slot).
        """
        head, slot = envelope.header, slot_of(envelope)
        if head.study_id != self.plan.study_id:
            raise envelope.fault(
                f"{envelope!r} belongs to study {head.study_id}, not {self.plan.study_id}",
                reason="wrong_study",
            )
        if head.plan_hash != self.plan_hash:
            raise envelope.fault(
                f"{envelope!r} is bound to another plan; ask {head.sender} which plan it was shown",
                reason="wrong_plan",
            )
        known = self._by_slot.get(slot)
        if known is not None and known.message_hash != envelope.message_hash:
            raise envelope.fault(
                f"{head.sender} sent two different messages for {envelope!r}", reason="equivocation"
            )
        self._by_slot[slot] = envelope
        self._by_hash[envelope.message_hash] = envelope

    def find(
        self,
        kind: Kind,
        *,
        sender: str,
        round_id: int = 0,
        purpose: str = "",
        attempt: int = 0,
        to: str = "",
    ) -> Envelope | None:
        """The message in a slot, or None."""
        return self._by_slot.get(Slot(kind, round_id, purpose, attempt, sender, to))

    def at(self, kind: Kind, attempt: Attempt, *, sender: str, to: str = "") -> Envelope | None:
        """The message of a sender within an attempt, or None."""
        place = attempt.round_id, attempt.purpose, attempt.number
        return self._by_slot.get(Slot(kind, *place, sender, to))

    def all_at(self, kind: Kind, attempt: Attempt) -> dict[str, Envelope]:
        """Messages of a kind within an attempt, by sender."""
        place = kind, attempt.round_id, attempt.purpose, attempt.number
        return {slot.sender: one for slot, one in self._by_slot.items() if slot[:4] == place}

    def all(self, kind: Kind, *, round_id: int) -> dict[str, Envelope]:
        """Messages of a kind in a round, outside of attempts, by sender."""
        return self.all_at(kind, Attempt(round_id=round_id))

    def sent(self, kind: Kind) -> list[Envelope]:
        """All messages of a kind."""
        return [message for message in self if message.kind is kind]

    def by_hash(self, message_hash: str) -> Envelope | None:
        """The message of that name, or None."""
        return self._by_hash.get(message_hash)

    def opened(self, round_id: int, purpose: str) -> Envelope:
        """The one opened sum of a round and purpose.

        Raises: PeerError: none (missing_message), or two of them (already_opened).
        """
        place = Kind.OPENED, round_id, purpose
        slots = [
            slot for slot in self._by_slot if slot[:3] == place and slot.sender == self.auditor
        ]
        if len(slots) != 1:
            raise Attempt(round_id=round_id, purpose=purpose).fault(
                f"{len(slots)} opened sums, there is exactly one",
                reason="already_opened" if slots else "missing_message",
                peer=self.auditor,
            )
        return self._by_slot[slots[0]]

    def attempts(self, kind: Kind, *, round_id: int, purpose: str) -> list[int]:
        """Attempts of a (round, purpose) for which a message of this kind is there, ascending."""
        place = kind, round_id, purpose
        return sorted({slot.attempt for slot in self._by_slot if slot[:3] == place})

    def of_round(self, round_id: int) -> Iterator[Envelope]:
        """All messages of one round."""
        return (one for slot, one in self._by_slot.items() if slot.round_id == round_id)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(self._by_slot.values())

    def __len__(self) -> int:
        return len(self._by_slot)
