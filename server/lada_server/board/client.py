"""The coordinator's own end of its board: what it has seen, reads and posts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.events import WAITING_INTERVAL_S, EventLog, Progress, Waiting
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.endings import ended_parties
from lada_protocol.rounds.index import Attempt, MessageIndex, Slot
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import OpenedBody, parse_body
from lada_server.board.storage_errors import StorageUnavailable
from lada_server.board.store import BoardStore

LOG = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True, kw_only=True)
class StorageStallTimer:
    """Tries the coordinator's own work on its board again while the storage refuses.

    Args: limit_s: how long in one go; after it the refusal is raised, and a restart of the
      coordinator goes on from the same place.
    """

    events: EventLog
    limit_s: float
    round_id: int = 0
    step: str = "plan"
    _interrupted: bool = False

    def enter(self, round_id: int, step: str) -> None:
        """Note the round and step under way, for the live view."""
        self.round_id, self.step = round_id, step

    def retry(self, action: Callable[[], T]) -> T:
        """Carry out an action that may be repeated.

        Raises: StorageUnavailable: for longer than `limit_s`. Anything else at once.
        """
        began, said = time.monotonic(), float("-inf")
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return action()
            except StorageUnavailable as error:
                now = time.monotonic()
                if now - began > self.limit_s:
                    raise
                self._interrupted = True
                if now - said >= WAITING_INTERVAL_S:
                    said = now
                    LOG.warning("waiting for the storage: %s", error)
                    self.events.write(
                        Waiting,
                        round_id=self.round_id,
                        step=self.step,
                        awaited=("storage",),
                        waited_s=round(now - began, 3),
                        because=str(error)[:300],
                    )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def was_interrupted(self) -> bool:
        """Whether there was anything to wait out since the last call."""
        found, self._interrupted = self._interrupted, False
        return found


@dataclass(slots=True, kw_only=True)
class LocalBoardClient:
    """One study's messages at the coordinator.

    `last_sequence` is the place on the board of its own newest message, also after a restart.
    """

    plan: StudyPlan
    store: BoardStore
    signing_key: Ed25519PrivateKey
    events: EventLog
    last_sequence: int = 0
    sent_bytes: int = 0
    read_bytes: int = 0
    index: MessageIndex = field(init=False)
    stall: StorageStallTimer = field(init=False)
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.index = MessageIndex(self.plan, self.store.roster)
        self.stall = StorageStallTimer(events=self.events, limit_s=self.plan.phase_timeout_s)

    @property
    def roster(self) -> Roster:
        """Of the study."""
        return self.store.roster

    @property
    def me(self) -> str:
        """The coordinator's id."""
        return self.roster.coordinator.id

    def say_progress(self, done: int, total: int) -> None:
        """Tell the operator how much of the step under way is done."""
        stall = self.stall
        self.events.write(
            Progress, round_id=stall.round_id, step=stall.step, done=done, total=total
        )

    def sync(self, *, wait_s: float) -> None:
        """Take up what is new on the board, waiting so long for the first message."""
        rows = self.stall.retry(lambda: self.store.visible(self.me, self._sequence, wait_s=wait_s))
        for sequence, envelope in rows:
            self._sequence = sequence
            if envelope.header.sender == self.me:
                self.last_sequence = sequence
            self.index.take(envelope)
        new = {envelope.message_hash for _, envelope in rows if envelope.kind is Kind.FAILED}
        for party, ended in (ended_parties(self.index) if new else {}).items():
            if ended.message_hash in new:
                LOG.warning("%s has ended: %s (%s)", party, ended.code.meaning, ended.code)

    def participants(self) -> tuple[str, ...]:
        """Everybody else who has taken part: the auditor, and the sites that accepted the plan."""
        kinds = (Kind.OPENING_KEY, Kind.ACCEPTANCE)
        joined = {message.header.sender for message in self.index if message.kind in kinds}
        return tuple(sorted(joined))

    def refusers(self) -> tuple[str, ...]:
        """Who does not come back to hear how the study ended: refusers, and the refused.

        A refusal with an addressee is the auditor's: with a purpose it answers a site's ledger,
        without one its acceptance.
        """
        refusals = [message.header for message in self.index if message.kind is Kind.REFUSAL]
        return tuple(sorted({head.to or head.sender for head in refusals if not head.purpose}))

    def read(self, message_hash: str) -> bytes:
        """The payload of a message."""
        payload = self.stall.retry(lambda: self.store.payload(message_hash))
        self.read_bytes += len(payload)
        return payload

    def opened_sum(self, round_id: int, purpose: str) -> list[int]:
        """A sum as the auditor opened it, once it is clear that it is the one it was sent."""
        opened = self.index.opened(round_id, purpose)
        attempt = Attempt(round_id=round_id, purpose=purpose, number=opened.header.attempt)
        mine = self.index.at(Kind.SUM, attempt, sender=self.me)
        if mine is None or parse_body(opened, OpenedBody).sum_message != mine.message_hash:
            raise opened.fault(
                f"round {round_id}: the auditor opened another sum than the one it was sent",
                reason="wrong_sum",
            )
        return opened_values(self.read(opened.message_hash), self.plan, purpose)

    def post(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        payload: bytes = b"",
        round_id: int = 0,
        attempt: Attempt | None = None,
        to: str = "",
    ) -> Envelope:
        """Sign and post a message; the same one again changes nothing.

        Args: attempt: that it belongs to, instead of a round alone.
        """
        at = attempt or Attempt(round_id=round_id, purpose="", number=0)
        slot = Slot(kind, at.round_id, at.purpose, at.number, self.me, to)
        envelope = self.index.sign(slot, body, payload, self.signing_key)
        self.last_sequence = self.stall.retry(lambda: self.store.post(envelope, payload))
        self.sent_bytes += len(envelope.header_bytes) + len(payload)
        self.index.add(envelope)
        return envelope
