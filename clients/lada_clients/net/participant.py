"""What a site and the auditor share: identity, board, message index, outbox and events."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.net.study_folder import Outbox, study_folder
from lada_clients.net.transport import BoardClient
from lada_protocol.events import EventLog, Failed, StallTimer
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.failure_codes import FailureCode
from lada_protocol.identity.certificates import certificate_pem
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.party_files import DiallingSettings, open_event_log, read_roster
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.endings import ended_parties, slot_of_ending
from lada_protocol.rounds.index import Attempt, MessageIndex, Slot
from lada_protocol.rounds.llm_transfer import check_transfer
from lada_protocol.rounds.tasks import Task, Wait, place_of
from lada_protocol.rounds.transcript import FIRST, check_transcript, parse_transcript
from lada_protocol.run_loop import Handler, RunLoop
from lada_protocol.wire.envelope import Envelope
from lada_secure.canonical import sha256_hex
from lada_secure.errors import LadaError, LocalProtocolError, TransportError
from lada_secure.storage.whole_files import write_atomically

LOG = logging.getLogger(__name__)
LONG_POLL_S = 15.0
# The study is over by then; whoever cannot say so leaves without.
GOODBYE_S = 10.0


@contextmanager
def joined_study(
    settings: DiallingSettings, *, pinned: str, events: EventLog | None = None
) -> Iterator[Participant]:
    """Connect one party to the board and wait for the coordinator's plan.

    Args: pinned: hash of the roster that was agreed on. events: by default the log in the state
        folder.
    Raises: ParameterError: roster or identity are wrong. TransportError, PeerError: see `join`.
    """
    roster, credentials = read_roster(settings.roster, pinned=pinned), settings.credentials()
    with BoardClient(
        settings.coordinator,
        identity=settings.identity,
        roster=roster,
        party_id=settings.party,
        patience_s=settings.wait_s,
        passphrase=settings.passphrase,
        settings=settings.transport,
    ) as client:
        participant = Participant(
            party=settings.party,
            roster=roster,
            client=client,
            signing_key=credentials.signing_key,
            certificate=certificate_pem(credentials.signing_certificate).decode("ascii"),
            outbox=Outbox(folder=settings.state_dir, roster=roster),
            events=events or open_event_log(settings.party, settings.state_dir),
        )
        participant.join(wait_s=settings.wait_s)
        yield participant


@dataclass(slots=True, kw_only=True)
class Participant:
    """One dialling party during one study.

    plan, index: of the study, and everything seen of it so far; both are there after `join`.
    """

    party: str
    roster: Roster
    client: BoardClient
    signing_key: Ed25519PrivateKey
    certificate: str
    outbox: Outbox
    events: EventLog
    plan: StudyPlan = field(init=False)
    index: MessageIndex = field(init=False)
    _sequence: int = 0
    _place: Attempt = field(default_factory=Attempt)
    # Which ending of whom was told on this party's screen.
    _known_endings: dict[str, str] = field(default_factory=dict)
    _stall: StallTimer = field(default_factory=lambda: StallTimer(clock=time.monotonic))

    def join(self, *, wait_s: float) -> None:
        """Wait for the coordinator's plan and start the index on it.

        Raises: TransportError: no plan within `wait_s`. PeerError: a plan that cannot be read.
        """
        deadline = time.monotonic() + wait_s
        early: list[Envelope] = []
        while not (plans := [message for message in early if message.kind is Kind.PLAN]):
            if time.monotonic() > deadline:
                raise TransportError(
                    f"no study plan from {self.roster.coordinator.id} within {wait_s:.0f} s; "
                    "is the coordinator running?"
                )
            early += self._list(min(LONG_POLL_S, max(0.0, deadline - time.monotonic())))
        header, raw = plans[-1].header, self.client.fetch(plans[-1])
        plan = parse_plan(raw)
        if (header.plan_hash, header.study_id) != (sha256_hex(raw), plan.study_id):
            named = "the plan's header names another plan or study"
            raise plans[-1].fault(named, reason="bad_plan")
        if plan.coordinator != header.sender:
            raise plans[-1].fault("the plan names another coordinator", reason="bad_plan")
        self.plan, self.index = plan, MessageIndex(plan, self.roster)
        for message in early:
            self.index.take(message)

    def open_folder(self) -> Path:
        """This party's own folder of the study, with the plan in it. Only after `join`.

        Raises: TransportError: it cannot be written.
        """
        plan = self.plan
        folder = study_folder(self.outbox.folder, plan.study_id, plan.hash)
        if not (folder / PLAN_FILE).exists():
            write_atomically(folder / PLAN_FILE, plan.to_bytes())
        return folder

    def run_loop(self, next_task: Callable[[], Task], handlers: Mapping[Kind, Handler]) -> RunLoop:
        """The study from this party's side. next_task: from the index, which is new by then.

        Nothing follows the study's end. The board takes what we ask after for what we have done
        with, so that to ask once more would be a goodbye, and the coordinator might leave before we
        have what we still need.
        """

        def after_sync() -> Task:
            if not self._ended:
                self.sync()
            task = next_task()
            self._place = place_of(task) or self._place
            return task

        return RunLoop(
            events=self.events,
            rounds=self.plan.rounds,
            next_task=after_sync,
            wait=self.wait,
            handlers=handlers,
            traffic=lambda: self.client.traffic,
            clock=time.monotonic,
        )

    @property
    def _ended(self) -> bool:
        ends, coordinator = (Kind.FINISHED, Kind.FAILED), self.roster.coordinator.id
        return any(self.index.find(kind, sender=coordinator) is not None for kind in ends)

    def sync(self, *, wait_s: float = 0.0, patience_s: float = math.inf) -> None:
        """Read what is new on the board. patience_s: where it is less than the client's own."""
        before = len(self.index)
        for message in self._list(wait_s, patience_s):
            self.index.take(message)
        if len(self.index) > before:
            self._tell_who_ended()

    def _tell_who_ended(self) -> None:
        """Say on this party's own screen who has ended and why; each time once."""
        for party, ended in ended_parties(self.index).items():
            if party != self.party and self._known_endings.get(party) != ended.message_hash:
                self._known_endings[party] = ended.message_hash
                LOG.warning("%s has ended: %s (%s)", party, ended.code.meaning, ended.code)

    def post(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        payload: Callable[[], bytes] = bytes,
        *,
        round_id: int = 0,
        purpose: str = "",
        to: str = "",
        attempt: Attempt | None = None,
    ) -> Envelope:
        """Send a message once: made, signed and written down at the first call, re-sent after.

        Args: payload: makes the bytes, none by default; not called for a message that is re-sent.
          attempt: at a sum that the message belongs to, in place of `round_id` and `purpose`.
        """
        place = attempt or Attempt(round_id=round_id, purpose=purpose, number=0)
        slot = Slot(kind, place.round_id, place.purpose, place.number, self.party, to)
        kept = self.outbox.load(slot, study_id=self.plan.study_id, plan_hash=self.plan.hash)
        if kept is None:
            content = payload()
            kept = self.index.sign(slot, body, content, self.signing_key), content
            self.outbox.store(*kept)
        self.client.post(*kept)
        self.index.add(kept[0])
        return kept[0]

    def payload(self, envelope: Envelope) -> bytes:
        """The payload of a message; the client has checked size and hash."""
        return self.client.fetch(envelope) if envelope.header.payload_bytes else b""

    def close_round(self, round_id: int) -> None:
        """Sign the transcript of a round, once it agrees with what this party has seen."""
        digest = self.checked_transcript(round_id)
        self.post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)

    def checked_transcript(self, round_id: int) -> str:
        """Check the transcript and the LLM transfer of a round against what was seen; its hash.

        Raises: PeerError: bad_transcript, bad_inquiry, wrong_update.
        """
        index, coordinator = self.index, self.roster.coordinator.id
        message = index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id)
        if message is None:
            raise LocalProtocolError(f"round {round_id} has no transcript to check")
        before = index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id - 1)
        previous = FIRST if before is None or round_id == 0 else before.header.payload_sha256
        transcript = parse_transcript(self.payload(message))
        check_transcript(transcript, index, round_id=round_id, previous=previous, reader=self.party)
        check_transfer(index, round_id=round_id)
        return message.header.payload_sha256

    def say_failed(self, error: LadaError) -> None:
        """Tell the operator why this party ends."""
        self.events.write(
            Failed, round_id=0, step="close", message=str(error)[:1000], code=error.code
        )

    def tell_failed(self, code: FailureCode) -> None:
        """Tell everybody by a code that this party ends, and where it stood; never raises.

        Nothing is written to disk for it, which may be what has failed: signatures are
        deterministic, so the same message is the same bytes, and each ending has a number.
        """
        try:
            self.sync(patience_s=GOODBYE_S)
            slot = slot_of_ending(self.index, code, party=self.party, place=self._place)
            if slot is not None:
                body = {"code": str(code), "message": ""}
                ended = self.index.sign(slot, body, b"", self.signing_key)
                self.client.post(ended, patience_s=GOODBYE_S)
                self.index.add(ended)
        except LadaError as error:
            LOG.info("nobody was told that this party ends (%s): %s", code, error)

    def say_goodbye(self) -> None:
        """Tell the board that everything was read and done, so that the coordinator may leave.

        Until then it stays for a while: whoever is killed at the very end comes back to a board.
        """
        try:
            self.client.list(self._sequence, patience_s=GOODBYE_S)
        except LadaError as error:
            LOG.info("the board was gone before our goodbye: %s", error)

    def wait(self, task: Wait, *, poll_s: float = LONG_POLL_S) -> None:
        """Wait for others, telling the operator for whom, since when and why.

        Args: poll_s: at most so long, where something else than a message may end the wait.
        """
        self._stall.wait(task, self.events)
        self.sync(wait_s=poll_s)

    def _list(self, wait_s: float, patience_s: float = math.inf) -> list[Envelope]:
        rows = self.client.list(self._sequence, wait_s=wait_s, patience_s=patience_s)
        if rows:
            self._sequence = rows[-1][0]
        return [envelope for _, envelope in rows]
