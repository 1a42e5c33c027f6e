"""What a site and the auditor share: identity, board, message index, outbox and events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.net.credentials import load_credentials
from lada_clients.net.outbox import Outbox, write_atomically
from lada_clients.net.study_folder import study_folder
from lada_clients.net.transport import BoardClient
from lada_protocol.events import EventLog, StallTimer
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.identity.certificates import certificate_pem
from lada_protocol.identity.credentials import Passphrase
from lada_protocol.identity.roster import Roster, parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.index import MessageIndex, Slot
from lada_protocol.rounds.llm_transfer import check_transfer
from lada_protocol.rounds.tasks import Wait
from lada_protocol.rounds.transcript import FIRST, check_transcript, parse_transcript
from lada_protocol.wire.envelope import NO_PAYLOAD, Envelope, Header, sign_envelope
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.canonical import sha256_hex
from lada_secure.errors import (
    LadaError,
    LocalProtocolError,
    ParameterError,
    PeerError,
    TransportError,
)

LOG = logging.getLogger(__name__)
LONG_POLL_S = 15.0
# The study is over by then; whoever cannot say so leaves without.
GOODBYE_S = 10.0


class StudyFailed(LadaError):
    """The study ended before its last round."""

    code = "study_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """Body and payload of a message that is about to be signed."""

    body: Mapping[str, Any]
    payload: bytes = b""


def read_roster(path: Path, *, pinned: str) -> Roster:
    """The roster file, whose hash must be the pinned one.

    Raises: ParameterError: missing, malformed, or another roster than agreed.
    """
    try:
        roster = parse_roster(path.read_bytes())
    except OSError as error:
        raise ParameterError(f"cannot read roster {path}: {error.strerror}") from error
    except PeerError as error:
        raise ParameterError(f"roster {path}: {error}") from error
    if roster.hash != pinned:
        raise ParameterError(
            f"roster {path} has the hash {roster.hash}, the policy pins {pinned}; "
            "compare the fingerprints with the other parties before changing the pin"
        )
    return roster


@contextmanager
def open_participant(
    *,
    party: str,
    address: str,
    identity: Path,
    roster: Roster,
    state_dir: Path,
    events: EventLog,
    wait_s: float,
    transport: TransportSettings,
    passphrase: Passphrase | None,
) -> Iterator[Participant]:
    """Connect one party to the board; `join` comes next."""
    credentials = load_credentials(identity, expected_id=party, passphrase=passphrase)
    with BoardClient(
        address,
        identity=identity,
        roster=roster,
        party_id=party,
        patience_s=wait_s,
        passphrase=passphrase,
        settings=transport,
    ) as client:
        yield Participant(
            party=party,
            roster=roster,
            client=client,
            signing_key=credentials.signing_key,
            certificate=certificate_pem(credentials.signing_certificate).decode("ascii"),
            outbox=Outbox(folder=state_dir, roster=roster),
            events=events,
        )


@dataclass(slots=True, kw_only=True)
class Participant:
    """One dialling party during one study."""

    party: str
    roster: Roster
    client: BoardClient
    signing_key: Ed25519PrivateKey
    certificate: str
    outbox: Outbox
    events: EventLog
    _sequence: int = 0
    _early: list[Envelope] = field(default_factory=list)
    _index: MessageIndex | None = None
    _plan: StudyPlan | None = None
    _stall_timer: StallTimer = field(default_factory=lambda: StallTimer(clock=time.monotonic))

    @property
    def index(self) -> MessageIndex:
        """Everything seen of the study so far. Only after `join`."""
        if self._index is None:
            raise TransportError("no study joined yet")
        return self._index

    @property
    def plan(self) -> StudyPlan:
        """The plan of the study. Only after `join`."""
        if self._plan is None:
            raise TransportError("no study joined yet")
        return self._plan

    def join(self, *, wait_s: float) -> None:
        """Wait for the coordinator's plan and start the index on it.

        Raises: TransportError: no plan within `wait_s`. PeerError: a plan that cannot be read.
        """
        deadline = time.monotonic() + wait_s
        while True:
            plans = [one for one in self._early if one.kind is Kind.PLAN]
            if plans:
                break
            if time.monotonic() > deadline:
                raise TransportError(
                    f"no study plan from {self.roster.coordinator.id} within {wait_s:.0f} s; "
                    "is the coordinator running?"
                )
            self._early.extend(self._list(LONG_POLL_S))
        message = plans[-1]
        raw = self.client.fetch(message)
        plan = parse_plan(raw)
        if sha256_hex(raw) != message.header.plan_hash or plan.study_id != message.header.study_id:
            raise PeerError(
                "the plan's header names another plan or study",
                reason="bad_plan",
                peer=message.header.sender,
            )
        if plan.coordinator != message.header.sender:
            raise PeerError("the plan names another coordinator", reason="bad_plan")
        self._plan = plan
        self._index = MessageIndex(plan.study_id, plan.hash)
        for envelope in self._early:
            if (envelope.header.study_id, envelope.header.plan_hash) == (plan.study_id, plan.hash):
                self._index.add(envelope)
        self._early.clear()

    def open_folder(self) -> Path:
        """This party's own folder of the study, with the plan in it. Only after `join`.

        Raises: TransportError: it cannot be written.
        """
        plan = self.plan
        folder = study_folder(self.outbox.folder, plan.study_id, plan.hash)
        if not (folder / PLAN_FILE).exists():
            write_atomically(folder / PLAN_FILE, plan.to_bytes())
        return folder

    def sync(self, *, wait_s: float = 0.0) -> bool:
        """Read what is new on the board; True where there was something."""
        new = self._list(wait_s)
        for envelope in new:
            head = envelope.header
            if (head.study_id, head.plan_hash) == (self.plan.study_id, self.plan.hash):
                self.index.add(envelope)
        return bool(new)

    def post(
        self,
        kind: Kind,
        make: Callable[[], Outgoing],
        *,
        round_id: int = 0,
        purpose: str = "",
        attempt: int = 0,
        to: str = "",
    ) -> Envelope:
        """Send a message once: made, signed and written down at the first call, re-sent after."""
        slot = Slot(kind, round_id, purpose, attempt, self.party, to)
        kept = self.outbox.load(slot, study_id=self.plan.study_id, plan_hash=self.plan.hash)
        if kept is None:
            kept = self._sign(slot, make())
            self.outbox.store(*kept)
        envelope, payload = kept
        self.client.post(envelope, payload)
        self.index.add(envelope)
        return envelope

    def payload(self, envelope: Envelope) -> bytes:
        """The payload of a message; the client has checked size and hash."""
        if envelope.header.payload_bytes == 0:
            return b""
        return self.client.fetch(envelope)

    def wait(self, task: Wait) -> None:
        """Wait for others, telling the operator for whom, since when and why."""
        self._stall_timer.wait(task, self.events)
        self.sync(wait_s=LONG_POLL_S)

    def say_goodbye(self) -> None:
        """Tell the board that everything was read and done, so that the coordinator may leave.

        Until then it stays for a while: whoever is killed at the very end comes back to a board.
        """
        try:
            self.client.acknowledge(self._sequence, patience_s=GOODBYE_S)
        except LadaError as error:
            LOG.info("the board was gone before our goodbye: %s", error)

    def _list(self, wait_s: float) -> list[Envelope]:
        rows = self.client.list(self._sequence, wait_s=wait_s)
        if rows:
            self._sequence = rows[-1][0]
        return [envelope for _, envelope in rows]

    def _sign(self, slot: Slot, outgoing: Outgoing) -> tuple[Envelope, bytes]:
        payload = outgoing.payload
        header = Header(
            kind=slot.kind.value,
            study_id=self.plan.study_id,
            plan_hash=self.plan.hash,
            roster_hash=self.roster.hash,
            round_id=slot.round_id,
            attempt=slot.attempt,
            purpose=slot.purpose,
            sender=self.party,
            to=slot.to,
            body=dict(outgoing.body),
            payload_sha256=sha256_hex(payload) if payload else NO_PAYLOAD,
            payload_bytes=len(payload),
        )
        return sign_envelope(header, self.signing_key), payload


def checked_transcript(me: Participant, round_id: int) -> str:
    """Check the transcript and the LLM transfer of a round against what `me` has seen; its hash.

    Raises: PeerError: bad_transcript, bad_inquiry, wrong_update.
    """
    coordinator = me.roster.coordinator.id
    message = me.index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id)
    if message is None:
        raise LocalProtocolError(f"round {round_id} has no transcript to check")
    before = me.index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id - 1)
    previous = FIRST if before is None or round_id == 0 else before.header.payload_sha256
    transcript = parse_transcript(me.payload(message))
    check_transcript(transcript, me.index, round_id=round_id, previous=previous, reader=me.party)
    check_transfer(me.index, plan=me.plan, coordinator=coordinator, round_id=round_id)
    return message.header.payload_sha256
