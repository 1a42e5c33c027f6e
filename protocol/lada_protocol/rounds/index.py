"""What one party has seen of a study: an index over verified messages.

All round logic is a function of this index, so a party that restarts and reads the board again
stands exactly where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import PeerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one secure aggregation; everything in it is fresh but the noised vectors."""

    round_id: int
    purpose: str
    number: int


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
    """Messages of one study and plan, by slot and by hash."""

    study_id: str
    plan_hash: str
    _by_slot: dict[Slot, Envelope] = field(default_factory=dict)
    _by_hash: dict[str, Envelope] = field(default_factory=dict)

    def add(self, envelope: Envelope) -> None:
        """Add a message; the same message twice is fine.

        Raises: PeerError: wrong_study, wrong_plan, equivocation (two messages in one slot).
        """
        head = envelope.header
        if head.study_id != self.study_id:
            raise PeerError(
                f"{envelope!r} belongs to study {head.study_id}, not {self.study_id}",
                reason="wrong_study",
                peer=head.sender,
            )
        if head.plan_hash != self.plan_hash:
            raise PeerError(
                f"{envelope!r} is bound to another plan; ask {head.sender} which plan it was shown",
                reason="wrong_plan",
                peer=head.sender,
            )
        slot = slot_of(envelope)
        known = self._by_slot.get(slot)
        if known is not None and known.message_hash != envelope.message_hash:
            raise PeerError(
                f"{head.sender} sent two different messages for {envelope!r}",
                reason="equivocation",
                peer=head.sender,
                round_id=head.round_id,
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

    def at(self, kind: Kind, attempt: Attempt, *, sender: str) -> Envelope | None:
        """The message of a sender within an attempt, or None."""
        return self.find(
            kind,
            sender=sender,
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def all_at(self, kind: Kind, attempt: Attempt) -> dict[str, Envelope]:
        """Messages of a kind within an attempt, by sender."""
        return self.all(
            kind, round_id=attempt.round_id, purpose=attempt.purpose, attempt=attempt.number
        )

    def by_hash(self, message_hash: str) -> Envelope | None:
        """The message of that name, or None."""
        return self._by_hash.get(message_hash)

    def all(
        self, kind: Kind, *, round_id: int | None = None, purpose: str = "", attempt: int = 0
    ) -> dict[str, Envelope]:
        """Messages of a kind by sender, for one round (any round where None)."""
        return {
            slot.sender: envelope
            for slot, envelope in self._by_slot.items()
            if slot.kind is kind
            and (round_id is None or slot.round_id == round_id)
            and slot.purpose == purpose
            and slot.attempt == attempt
        }

    def opened(self, round_id: int, purpose: str, *, auditor: str) -> Envelope:
        """The one opened sum of a round and purpose.

        Raises: PeerError: none (missing_message), or two of them (already_opened).
        """
        found = [
            one
            for one in self.of_round(round_id)
            if one.kind is Kind.OPENED
            and one.header.purpose == purpose
            and one.header.sender == auditor
        ]
        if len(found) != 1:
            raise PeerError(
                f"round {round_id}, {purpose}: {len(found)} opened sums, there is exactly one",
                reason="already_opened" if found else "missing_message",
                peer=auditor,
                round_id=round_id,
            )
        return found[0]

    def attempts(self, kind: Kind, *, round_id: int, purpose: str) -> list[int]:
        """Attempts of a (round, purpose) for which a message of this kind is there, ascending."""
        return sorted(
            {
                slot.attempt
                for slot in self._by_slot
                if slot.kind is kind and slot.round_id == round_id and slot.purpose == purpose
            }
        )

    def of_round(self, round_id: int) -> Iterator[Envelope]:
        """All messages of one round."""
        return (one for slot, one in self._by_slot.items() if slot.round_id == round_id)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(self._by_slot.values())

    def __len__(self) -> int:
        return len(self._by_slot)
