"""The coordinator: carries out its next task until the study is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.events import EventLog, StallTimer
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS
from lada_protocol.rounds.blind_scoring import ROW_BOUND, scoring_parameters_of
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.llm_transfer import (
    NO_ADAPTERS,
    SiteRationale,
    inquiry_bytes,
    llm_version,
    parse_site_rationales,
)
from lada_protocol.rounds.secure_aggregation import purpose_parameters
from lada_protocol.rounds.tasks import (
    AbortAttempt,
    AddUp,
    CloseRound,
    CoordinatorTask,
    Done,
    Finish,
    GiveUp,
    ImproveModel,
    Inquire,
    PostMatrix,
    PostTranscript,
    ProposePlan,
    Score,
    StartAttempt,
    Wait,
    WriteRationales,
)
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import InquiryBody, SitePathsBody, parse_body
from lada_secure.canonical import parse_canonical_json
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import encode_matrix, parse_matrix
from lada_secure.encryption.sealing import SealedSum
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import LadaError, LocalProtocolError, PeerError
from lada_server.board.client import BoardClient
from lada_server.board.stall_timer import StorageStallTimer
from lada_server.board.store import BoardStore
from lada_server.study.inference_cache import PoolView
from lada_server.study.llm_transfer import CoordinatorTransfer, update_body
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher, written_rationales

LOG = logging.getLogger(__name__)
POLL_S = 5.0

STEPS: Mapping[type[object], str] = {
    ProposePlan: "plan",
    StartAttempt: "opening",
    AbortAttempt: "opening",
    AddUp: "opening",
    PostMatrix: "scoring",
    Score: "scoring",
    WriteRationales: "paths",
    Inquire: "uplink",
    ImproveModel: "uplink",
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
    """One study at the coordinator. All state that matters is on the board."""

    study: Study
    roster: Roster
    store: BoardStore
    signing_key: Ed25519PrivateKey
    certificate: str
    teacher: Teacher
    events: EventLog
    board: BoardClient = field(init=False)
    _given_up: set[tuple[int, str]] = field(default_factory=set)
    _stall_timer: StallTimer = field(default_factory=lambda: StallTimer(clock=time.monotonic))
    _view: PoolView | None = None
    _matrix: PoolMatrix | None = None
    _matrix_of: str = ""
    _view_of: str = NO_ADAPTERS
    _llm_transfer: CoordinatorTransfer = field(init=False)

    def __post_init__(self) -> None:
        self.board = BoardClient(
            plan=self.study.plan,
            roster=self.roster,
            store=self.store,
            signing_key=self.signing_key,
            stall_timer=StorageStallTimer(
                events=self.events, limit_s=self.study.plan.phase_timeout_s
            ),
        )
        self._llm_transfer = CoordinatorTransfer(study=self.study, teacher=self.teacher)

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
    def _index(self) -> MessageIndex:
        return self.board.index

    def _sync(self, *, wait_s: float) -> None:
        self.board.sync(wait_s=wait_s)

    @property
    def _last_round(self) -> int:
        return self.study.plan.rounds - 1

    def _wait(self, task: Wait) -> None:
        self.board.place = task.round_id, task.step
        if self.board.stall_timer.was_interrupted():
            # Nobody could answer while the board was down: everybody's time begins again.
            self._stall_timer = StallTimer(clock=time.monotonic)
        waited_s = self._stall_timer.wait(task, self.events)
        if waited_s > self.study.plan.phase_timeout_s:
            joined = bool(self._index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS))
            round_id = task.round_id if joined else -1
            self._given_up.update((round_id, party) for party in task.parties)
            return
        proposed = self._index.find(Kind.CLUSTERS, sender=self._me) is not None
        if proposed and self._view_is_stale(task.round_id):
            # The LLM looks at the pool while the sites compute their statistics.
            self._look_at_pool(task.round_id)
            return
        self._sync(wait_s=POLL_S)

    @property
    def _me(self) -> str:
        return self.roster.coordinator.id

    def _carry_out(self, task: CoordinatorTask) -> None:
        round_id = self._last_round if isinstance(task, Finish) else _round_of(task)
        step = STEPS[type(task)]
        began = time.monotonic()
        up, down = self.board.sent_bytes, self.board.read_bytes
        self.board.place = round_id, step
        self.events.write("step_started", round_id=round_id, step=step)
        self._dispatch(task)
        self.events.write(
            "step_finished",
            round_id=round_id,
            step=step,
            seconds=round(time.monotonic() - began, 3),
            bytes_up=self.board.sent_bytes - up,
            bytes_down=self.board.read_bytes - down,
        )

    def _dispatch(self, task: CoordinatorTask) -> None:
        match task:
            case ProposePlan():
                self._propose()
            case StartAttempt(attempt=attempt, sites=sites):
                self.board.post_at(Kind.COHORT, attempt, {"sites": list(sites)})
            case AbortAttempt(attempt=attempt, missing=missing):
                reason = f"no answer from {', '.join(missing)}"
                self.board.post_at(Kind.ABORT, attempt, {"code": "timeout", "message": reason})
            case AddUp(attempt=attempt, cohort=cohort):
                self._add_up(attempt, cohort)
            case PostMatrix(round_id=round_id):
                self._post_matrix(round_id)
            case Score(round_id=round_id, site=site):
                self._score(round_id, site)
            case WriteRationales(round_id=round_id):
                self._write_rationales(round_id)
            case Inquire(round_id=round_id):
                self._inquire(round_id)
            case ImproveModel(round_id=round_id):
                self._improve(round_id)
            case PostTranscript(round_id=round_id):
                transcript = build_transcript(
                    self._index, round_id, previous=self._previous(round_id)
                )
                self.board.post(
                    Kind.TRANSCRIPT,
                    {"messages": len(transcript.entries)},
                    payload=transcript.to_bytes(),
                    round_id=round_id,
                )
            case CloseRound(round_id=round_id):
                digest = self._previous(round_id + 1)
                self.board.post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)
            case Finish():
                self.board.post(Kind.FINISHED, {"rounds": self.study.plan.rounds})
            case GiveUp(code=code, message=message):
                self._fail(code, message)

    def _fail(self, code: str, message: str) -> NoReturn:
        self.board.post(Kind.FAILED, {"code": code, "message": message})
        self.events.write("failed", round_id=0, step="close", message=message)
        raise StudyFailed(message)

    def _propose(self) -> None:
        study = self.study
        self.board.post(Kind.PLAN, {"certificate": self.certificate}, payload=study.plan.to_bytes())
        self.board.post(Kind.POOL, {}, payload=study.pool_bytes)
        self.board.post(Kind.CLUSTERS, {}, payload=study.clusters_bytes)

    def _llm(self, round_id: int) -> str:
        """The LLM that a round works with: an update counts from the next round on."""
        return llm_version(self._index, coordinator=self._me, before_round=round_id)

    def _view_is_stale(self, round_id: int) -> bool:
        return self._view is None or self._view_of != self._llm(round_id)

    def _look_at_pool(self, round_id: int) -> PoolView:
        if self._view is None or self._view_is_stale(round_id):
            self.events.write("step_started", round_id=round_id, step="filter")
            began = time.monotonic()
            version = self._llm(round_id)
            if version != NO_ADAPTERS:
                self.teacher.use(self.study, version)
            self._view = self.teacher.view_pool(self.study)
            self._view_of = version
            self.events.write(
                "step_finished",
                round_id=round_id,
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
                total.add(self.board.read(sent[site].message_hash))
            except PeerError as error:
                self._exclude(attempt.round_id, site, error)
                return
        hashes = {site: sent[site].message_hash for site in cohort}
        self.board.post_at(Kind.SUM, attempt, {"contributions": hashes}, payload=total.to_bytes())

    def _post_matrix(self, round_id: int) -> None:
        """Commit to what all queries of the round are answered from."""
        matrix = encode_matrix(self._look_at_pool(round_id).features, row_bound=ROW_BOUND)
        self.board.post(
            Kind.MATRIX,
            {"parameters_digest": matrix.parameters.digest},
            payload=matrix.to_bytes(),
            round_id=round_id,
        )

    def _committed(self, matrix: Envelope) -> PoolMatrix:
        """The matrix on the board: after a restart the LLM may look at the pool otherwise."""
        if self._matrix is None or self._matrix_of != matrix.header.payload_sha256:
            plan = self.study.plan
            raw = self.board.read(matrix.message_hash)
            parsed = parse_matrix(raw, scoring_parameters_of(plan), plan.pool_size)
            self._matrix = PoolMatrix(parsed, worker=shared_worker())
            self._matrix_of = matrix.header.payload_sha256
        return self._matrix

    def _score(self, round_id: int, site: str) -> None:
        matrix = self._index.find(Kind.MATRIX, sender=self._me, round_id=round_id)
        query = self._index.find(Kind.QUERY, sender=site, to=self._me, round_id=round_id)
        if matrix is None or query is None:
            raise LocalProtocolError(f"round {round_id}: asked to score without matrix or query")
        committed = self._committed(matrix)
        try:
            scores = committed.score(self.board.read(query.message_hash))
        except PeerError as error:
            self._exclude(round_id, site, error)
            return
        self.board.post(
            Kind.SCORES,
            {
                "matrix": matrix.message_hash,
                "query": query.message_hash,
                "pool_size": len(self.study.pool),
            },
            payload=scores,
            round_id=round_id,
            to=site,
        )

    def _exclude(self, round_id: int, site: str, error: PeerError) -> None:
        """Go on without a site for this round; what it sent cannot be used."""
        LOG.warning("round %d: %s is left out (%s): %s", round_id, site, error.reason, error)
        self._given_up.add((round_id, site))

    def _write_rationales(self, round_id: int) -> None:
        view = self._look_at_pool(round_id)
        progress = self._progress(round_id, "paths")
        written = self.teacher.write_rationales(
            self.study, view, self.board.opened_sum(round_id, DEMAND), progress=progress
        )
        self.board.post(
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

    def _inquire(self, round_id: int) -> None:
        """Ask the sites about samples on which, as the opened sum says, they know more."""
        opened = self._index.opened(round_id, CONFIDENCE_EXCESS, auditor=self.roster.auditor.id)
        values = self.board.opened_sum(round_id, CONFIDENCE_EXCESS)
        samples = self._llm_transfer.samples_to_ask(values, version=self._llm(round_id))
        self.board.post(
            Kind.INQUIRY,
            {"opened": opened.message_hash, "samples": len(samples)},
            payload=inquiry_bytes(samples),
            round_id=round_id,
        )

    def _improve(self, round_id: int) -> None:
        """Train on what the sites sent, decide, and only then tell; what is kept is on disk."""
        inquiry = self._index.find(Kind.INQUIRY, sender=self._me, round_id=round_id)
        written = self._index.find(Kind.PATHS, sender=self._me, round_id=round_id)
        if inquiry is None or written is None:
            raise LocalProtocolError(f"round {round_id}: an update before paths and inquiry")
        before = self._llm(round_id)
        decision = self._llm_transfer.improve(
            self._site_rationales(round_id, inquiry),
            written_rationales(self.board.read(written.message_hash), self.study),
            version=before,
            seed=self.study.plan.seed + round_id,
            progress=self._progress(round_id, "uplink"),
        )
        asked = parse_body(inquiry, InquiryBody).samples
        body = update_body(
            decision,
            inquiry=inquiry.message_hash,
            holdout=self._llm_transfer.settings.holdout,
            before=before,
        )
        self.board.post(Kind.LLM_UPDATE, body, round_id=round_id)
        figures = {key: value for key, value in body.items() if key != "inquiry"}
        self.events.write("llm_update", round_id=round_id, step="uplink", asked=asked, **figures)

    def _site_rationales(
        self, round_id: int, inquiry: Envelope
    ) -> dict[str, tuple[SiteRationale, ...]]:
        """What each site wrote; an answer that cannot be used is left out, with a warning."""
        asked = parse_canonical_json(
            self.board.read(inquiry.message_hash),
            max_bytes=kind_rules(Kind.INQUIRY).max_payload_bytes,
        )
        places = [one for one in asked if type(one) is int] if isinstance(asked, list) else []
        found: dict[str, tuple[SiteRationale, ...]] = {}
        for site in sorted(party.id for party in self.roster.sites):
            answer = self._index.find(Kind.SITE_PATHS, sender=site, to=self._me, round_id=round_id)
            if answer is None:
                continue
            try:
                if parse_body(answer, SitePathsBody).inquiry != inquiry.message_hash:
                    raise PeerError("it answers another inquiry", reason="malformed")
                found[site] = parse_site_rationales(
                    self.board.read(answer.message_hash), asked=places
                )
            except PeerError as error:
                LOG.warning("round %d: paths of %s are left out: %s", round_id, site, error)
        return found

    def _previous(self, round_id: int) -> str:
        """Hash of the transcript before this round."""
        if round_id == 0:
            return FIRST
        message = self._index.find(Kind.TRANSCRIPT, sender=self._me, round_id=round_id - 1)
        if message is None:
            raise LocalProtocolError(f"round {round_id - 1} has no transcript yet")
        return message.header.payload_sha256

    def _progress(self, round_id: int, step: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self.events.write("progress", round_id=round_id, step=step, done=done, total=total)

        return report


def _round_of(task: CoordinatorTask) -> int:
    match task:
        case StartAttempt(attempt=attempt) | AbortAttempt(attempt=attempt) | AddUp(attempt=attempt):
            return attempt.round_id
        case (
            PostMatrix(round_id=round_id)
            | Score(round_id=round_id)
            | WriteRationales(round_id=round_id)
            | Inquire(round_id=round_id)
            | ImproveModel(round_id=round_id)
            | PostTranscript(round_id=round_id)
            | CloseRound(round_id=round_id)
        ):
            return round_id
        case _:
            return 0
