"""The coordinator: carries out its next task until the study is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.coordinator_round import next_coordinator_task
from lada_protocol.envelope import NO_PAYLOAD, Envelope, Header, sign_envelope
from lada_protocol.events import EventLog, Patience
from lada_protocol.index import Attempt, MessageIndex
from lada_protocol.kinds import Kind
from lada_protocol.messages import OpenedBody, parse_body
from lada_protocol.opening import opened_values, purpose_parameters
from lada_protocol.plan import DEMAND, STATISTICS
from lada_protocol.roster import Roster
from lada_protocol.tasks import (
    AbortAttempt,
    AddUp,
    CloseRound,
    CoordinatorTask,
    Done,
    Finish,
    GiveUp,
    PostTranscript,
    ProposePlan,
    Score,
    StartAttempt,
    Wait,
    WritePaths,
)
from lada_protocol.transcript import FIRST, build_transcript
from lada_secure.canonical import sha256_hex
from lada_secure.encryption.scoring import PoolMatrix
from lada_secure.encryption.sealing import SealedSum
from lada_secure.errors import LadaError, LocalProtocolError, PeerError
from lada_server.store import BoardStore
from lada_server.study import Study
from lada_server.teacher import PoolView, Teacher

LOG = logging.getLogger(__name__)
POLL_S = 5.0

STEPS: Mapping[type[object], str] = {
    ProposePlan: "plan",
    StartAttempt: "opening",
    AbortAttempt: "opening",
    AddUp: "opening",
    Score: "scoring",
    WritePaths: "paths",
    PostTranscript: "close",
    CloseRound: "close",
    Finish: "close",
    GiveUp: "close",
}


class StudyFailed(LadaError):
    """The study ended without reaching its last round."""

    code = "study_failed"


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """One study at the coordinator. All state that matters is on the board.

    `last_sequence` is the place on the board of the newest message that it posted.
    """

    study: Study
    roster: Roster
    store: BoardStore
    signing_key: Ed25519PrivateKey
    certificate: str
    teacher: Teacher
    events: EventLog
    last_sequence: int = 0
    _index: MessageIndex = field(init=False)
    _sequence: int = 0
    _given_up: set[tuple[int, str]] = field(default_factory=set)
    _patience: Patience = field(default_factory=Patience)
    _view: PoolView | None = None
    _matrix: PoolMatrix | None = None
    _sent_bytes: int = 0
    _read_bytes: int = 0

    def __post_init__(self) -> None:
        self._index = MessageIndex(self.study.plan.study_id, self.study.plan.hash)

    def run(self) -> None:
        """Carry the study out to its end.

        Raises: StudyFailed: it cannot go on; every party has been told why.
        """
        while True:
            self._sync(wait_s=0.0)
            task = next_coordinator_task(
                self._index,
                plan=self.study.plan,
                roster=self.roster,
                given_up=frozenset(self._given_up),
            )
            if isinstance(task, Done):
                if task.failure is not None:
                    raise StudyFailed(task.failure)
                self.events.write("finished", round_id=self._last_round, step="close")
                return
            if isinstance(task, Wait):
                self._wait(task)
            else:
                self._carry_out(task)

    @property
    def _last_round(self) -> int:
        return self.study.plan.rounds - 1

    def _sync(self, *, wait_s: float) -> None:
        rows = self.store.visible(self._me, self._sequence, wait_s=wait_s)
        for sequence, envelope in rows:
            self._sequence = sequence
            head = envelope.header
            if (head.study_id, head.plan_hash) == (self._index.study_id, self._index.plan_hash):
                self._index.add(envelope)

    def _wait(self, task: Wait) -> None:
        waited_s = self._patience.wait(task, self.events)
        if waited_s > self.study.plan.phase_timeout_s:
            joined = bool(self._index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS))
            round_id = task.round_id if joined else -1
            self._given_up.update((round_id, party) for party in task.parties)
            return
        if self._view is None and self._index.find(Kind.CLUSTERS, sender=self._me) is not None:
            # The LLM looks at the pool while the sites compute their statistics.
            self._look_at_pool()
            return
        self._sync(wait_s=POLL_S)

    @property
    def _me(self) -> str:
        return self.roster.coordinator.id

    def _carry_out(self, task: CoordinatorTask) -> None:
        round_id = self._last_round if isinstance(task, Finish) else _round_of(task)
        step = STEPS[type(task)]
        began = time.monotonic()
        up, down = self._sent_bytes, self._read_bytes
        self.events.write("step_started", round_id=round_id, step=step)
        self._dispatch(task)
        self.events.write(
            "step_finished",
            round_id=round_id,
            step=step,
            seconds=round(time.monotonic() - began, 3),
            bytes_up=self._sent_bytes - up,
            bytes_down=self._read_bytes - down,
        )

    def _dispatch(self, task: CoordinatorTask) -> None:
        match task:
            case ProposePlan():
                self._propose()
            case StartAttempt(attempt=attempt, sites=sites):
                self._post_at(Kind.COHORT, attempt, {"sites": list(sites)})
            case AbortAttempt(attempt=attempt, missing=missing):
                reason = f"no answer from {', '.join(missing)}"
                self._post_at(Kind.ABORT, attempt, {"code": "timeout", "message": reason})
            case AddUp(attempt=attempt, cohort=cohort):
                self._add_up(attempt, cohort)
            case Score(round_id=round_id, site=site):
                self._score(round_id, site)
            case WritePaths(round_id=round_id):
                self._write_paths(round_id)
            case PostTranscript(round_id=round_id):
                transcript = build_transcript(
                    self._index, round_id, previous=self._previous(round_id)
                )
                self._post(
                    Kind.TRANSCRIPT,
                    {"messages": len(transcript.entries)},
                    payload=transcript.to_bytes(),
                    round_id=round_id,
                )
            case CloseRound(round_id=round_id):
                digest = self._previous(round_id + 1)
                self._post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)
            case Finish():
                self._post(Kind.FINISHED, {"rounds": self.study.plan.rounds})
            case GiveUp(code=code, message=message):
                self._fail(code, message)

    def _fail(self, code: str, message: str) -> NoReturn:
        self._post(Kind.FAILED, {"code": code, "message": message})
        self.events.write("failed", round_id=0, step="close", message=message)
        raise StudyFailed(message)

    def _propose(self) -> None:
        study = self.study
        self._post(Kind.PLAN, {"certificate": self.certificate}, payload=study.plan.to_bytes())
        self._post(Kind.POOL, {}, payload=study.pool_bytes)
        self._post(Kind.CLUSTERS, {}, payload=study.clusters_bytes)

    def _look_at_pool(self) -> PoolView:
        if self._view is None:
            self.events.write("step_started", round_id=0, step="filter")
            began = time.monotonic()
            self._view = self.teacher.view_pool(self.study)
            self._matrix = PoolMatrix(self._view.features, row_bound=1)
            self.events.write(
                "step_finished",
                round_id=0,
                step="filter",
                seconds=round(time.monotonic() - began, 3),
                bytes_up=0,
                bytes_down=0,
            )
        return self._view

    def _add_up(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        sent = self._index.all_at(Kind.CONTRIBUTION, attempt)
        parameters = purpose_parameters(self.study.plan, attempt.purpose)
        total = SealedSum(parameters)
        for site in cohort:
            try:
                total.add(self._read(sent[site].message_hash))
            except PeerError as error:
                self._exclude(attempt.round_id, site, error)
                return
        hashes = {site: sent[site].message_hash for site in cohort}
        self._post_at(Kind.SUM, attempt, {"contributions": hashes}, payload=total.to_bytes())

    def _score(self, round_id: int, site: str) -> None:
        self._look_at_pool()
        matrix = self._matrix
        query = self._index.find(Kind.QUERY, sender=site, to=self._me, round_id=round_id)
        if matrix is None or query is None:
            raise LocalProtocolError(f"round {round_id}: asked to score without a query of {site}")
        try:
            scores = matrix.score(self._read(query.message_hash))
        except PeerError as error:
            self._exclude(round_id, site, error)
            return
        self._post(
            Kind.SCORES,
            {"query": query.message_hash, "pool_size": len(self.study.pool)},
            payload=scores,
            round_id=round_id,
            to=site,
        )

    def _exclude(self, round_id: int, site: str, error: PeerError) -> None:
        """Go on without a site for this round; what it sent cannot be used."""
        LOG.warning("round %d: %s is left out (%s): %s", round_id, site, error.reason, error)
        self._given_up.add((round_id, site))

    def _write_paths(self, round_id: int) -> None:
        view = self._look_at_pool()
        progress = self._progress(round_id, "paths")
        written = self.teacher.write_paths(
            self.study, view, self._demand(round_id), progress=progress
        )
        self._post(
            Kind.PATHS,
            {
                "demanded": written.demanded,
                "written": written.written,
                "wrong": written.wrong,
                "dropped": written.dropped,
            },
            payload=written.payload,
            round_id=round_id,
        )

    def _demand(self, round_id: int) -> list[int]:
        """How many sites want each sample, as the auditor opened it."""
        opened = self._index.opened(round_id, DEMAND, auditor=self.roster.auditor.id)
        attempt = Attempt(round_id=round_id, purpose=DEMAND, number=opened.header.attempt)
        mine = self._index.at(Kind.SUM, attempt, sender=self._me)
        if mine is None or parse_body(opened, OpenedBody).sum_message != mine.message_hash:
            raise PeerError(
                f"round {round_id}: the auditor opened another sum than the one it was sent",
                reason="wrong_sum",
                peer=self.roster.auditor.id,
                round_id=round_id,
            )
        return opened_values(self._read(opened.message_hash), self.study.plan, DEMAND)

    def _previous(self, round_id: int) -> str:
        """Hash of the transcript before this round."""
        if round_id == 0:
            return FIRST
        message = self._index.find(Kind.TRANSCRIPT, sender=self._me, round_id=round_id - 1)
        if message is None:
            raise LocalProtocolError(f"round {round_id - 1} has no transcript yet")
        return message.header.payload_sha256

    def _read(self, message_hash: str) -> bytes:
        payload = self.store.payload(message_hash)
        self._read_bytes += len(payload)
        return payload

    def _progress(self, round_id: int, step: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self.events.write("progress", round_id=round_id, step=step, done=done, total=total)

        return report

    def _post_at(
        self, kind: Kind, attempt: Attempt, body: Mapping[str, Any], *, payload: bytes = b""
    ) -> Envelope:
        return self._post(
            kind,
            body,
            payload=payload,
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def _post(
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
        header = Header(
            kind=kind.value,
            study_id=self.study.plan.study_id,
            plan_hash=self.study.plan.hash,
            roster_hash=self.roster.hash,
            round_id=round_id,
            attempt=attempt,
            purpose=purpose,
            sender=self._me,
            to=to,
            body=dict(body),
            payload_sha256=sha256_hex(payload) if payload else NO_PAYLOAD,
            payload_bytes=len(payload),
        )
        envelope = sign_envelope(header, self.signing_key)
        self.last_sequence = self.store.post(envelope, payload)
        self._sent_bytes += len(envelope.header_bytes) + len(payload)
        self._index.add(envelope)
        return envelope


def _round_of(task: CoordinatorTask) -> int:
    match task:
        case StartAttempt(attempt=attempt) | AbortAttempt(attempt=attempt) | AddUp(attempt=attempt):
            return attempt.round_id
        case (
            Score(round_id=round_id)
            | WritePaths(round_id=round_id)
            | PostTranscript(round_id=round_id)
            | CloseRound(round_id=round_id)
        ):
            return round_id
        case _:
            return 0
