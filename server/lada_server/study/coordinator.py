"""The coordinator: carries out its next task until the study is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.events import EventLog, Failed, LlmUpdate, Progress, StallTimer
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, scoring_parameters_of
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import MessageIndex
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
    Finish,
    GiveUp,
    ImproveModel,
    Inquire,
    PostMatrix,
    PostTranscript,
    ProposePlan,
    Score,
    StartAttempt,
    Task,
    Wait,
    WriteRationales,
)
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.run_loop import ByteCounts, Handler, RunLoop, StudyFailed, handles
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import InquiryBody, SitePathsBody, parse_body
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.data.records import pool_bytes
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import encode_matrix, parse_matrix
from lada_secure.encryption.sealing import SealedSum
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import LocalProtocolError, PeerError
from lada_secure.method.llm_round import PoolView
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS
from lada_server.board.client import LocalBoardClient
from lada_server.board.stall_timer import StorageStallTimer
from lada_server.board.store import BoardStore
from lada_server.study.llm_transfer import CoordinatorTransfer, update_body
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher, parse_rationales, rationales_payload

LOG = logging.getLogger(__name__)
POLL_S = 5.0


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
    board: LocalBoardClient = field(init=False)
    loop: RunLoop = field(init=False)
    _llm_transfer: CoordinatorTransfer = field(init=False)
    _given_up: set[tuple[int, str]] = field(default_factory=set)
    _stall: StallTimer = field(default_factory=lambda: StallTimer(clock=time.monotonic))
    # What the LLM of a version sees in the pool, and the matrix of a payload hash: the newest one.
    _views: dict[str, PoolView] = field(default_factory=dict)
    _matrices: dict[str, PoolMatrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.study.plan
        self.board = LocalBoardClient(
            plan=plan,
            roster=self.roster,
            store=self.store,
            signing_key=self.signing_key,
            stall=StorageStallTimer(events=self.events, limit_s=plan.phase_timeout_s),
        )
        self._llm_transfer = CoordinatorTransfer(study=self.study, teacher=self.teacher)
        self.loop = RunLoop(
            events=self.events,
            rounds=plan.rounds,
            next_task=self._next_task,
            wait=self._wait,
            handlers=dict(self._handlers()),
            traffic=lambda: ByteCounts(self.board.sent_bytes, self.board.read_bytes),
            clock=time.monotonic,
            entered=self.board.enter,
        )

    def _handlers(self) -> Iterator[tuple[type[Task], Handler]]:
        yield handles(ProposePlan, "plan", self._propose)
        yield handles(StartAttempt, "opening", self._start_attempt)
        yield handles(AbortAttempt, "opening", self._abort_attempt)
        yield handles(AddUp, "opening", self._add_up)
        yield handles(PostMatrix, "scoring", self._post_matrix)
        yield handles(Score, "scoring", self._score)
        yield handles(WriteRationales, "paths", self._write_rationales)
        yield handles(Inquire, "uplink", self._inquire)
        yield handles(ImproveModel, "uplink", self._improve)
        yield handles(PostTranscript, "close", self._post_transcript)
        yield handles(CloseRound, "close", self._close_round)
        yield handles(Finish, "close", self._finish)
        yield handles(GiveUp, "close", self._give_up)

    def run(self) -> None:
        """Carry the study out to its end.

        Raises: StudyFailed: it cannot go on; every party has been told why.
        """
        self.loop.run()

    @property
    def _index(self) -> MessageIndex:
        return self.board.index

    @property
    def _me(self) -> str:
        return self.roster.coordinator.id

    def _next_task(self) -> Task:
        self.board.sync(wait_s=0.0)
        return next_coordinator_task(
            self._index,
            plan=self.study.plan,
            roster=self.roster,
            given_up=frozenset(self._given_up),
        )

    def _wait(self, task: Wait) -> None:
        self.board.enter(task.round_id, task.step)
        if self.board.stall.was_interrupted():
            # Nobody could answer while the board was down: everybody's time begins again.
            self._stall = StallTimer(clock=time.monotonic)
        waited_s = self._stall.wait(task, self.events)
        if waited_s > self.study.plan.phase_timeout_s:
            joined = bool(self._index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS))
            round_id = task.round_id if joined else -1
            self._given_up.update((round_id, party) for party in task.parties)
            return
        proposed = self._index.find(Kind.CLUSTERS, sender=self._me) is not None
        if proposed and self._llm(task.round_id) not in self._views:
            # The LLM looks at the pool while the sites compute their statistics.
            self._look_at_pool(task.round_id)
            return
        self.board.sync(wait_s=POLL_S)

    def _propose(self, _: ProposePlan) -> None:
        study = self.study
        self.board.post(Kind.PLAN, {"certificate": self.certificate}, payload=study.plan.to_bytes())
        self.board.post(Kind.POOL, {}, payload=pool_bytes(study.pool))
        clusters = canonical_json(study.clusters.to_json())
        self.board.post(Kind.CLUSTERS, {}, payload=clusters)

    def _start_attempt(self, task: StartAttempt) -> None:
        self.board.post(Kind.COHORT, {"sites": list(task.sites)}, attempt=task.attempt)

    def _abort_attempt(self, task: AbortAttempt) -> None:
        body = {"code": "timeout", "message": f"no answer from {', '.join(task.missing)}"}
        self.board.post(Kind.ABORT, body, attempt=task.attempt)

    def _add_up(self, task: AddUp) -> None:
        sent = self._index.all_at(Kind.CONTRIBUTION, task.attempt)
        total = SealedSum(purpose_parameters(self.study.plan, task.attempt.purpose))
        for site in task.cohort:
            try:
                total.add(self.board.read(sent[site].message_hash))
            except PeerError as error:
                self._exclude(task.attempt.round_id, site, error)
                return
        body = {"contributions": {site: sent[site].message_hash for site in task.cohort}}
        self.board.post(Kind.SUM, body, payload=total.to_bytes(), attempt=task.attempt)

    def _llm(self, round_id: int) -> str:
        """The LLM that a round works with: an update counts from the next round on."""
        return llm_version(self._index, coordinator=self._me, before_round=round_id)

    def _look_at_pool(self, round_id: int) -> PoolView:
        version = self._llm(round_id)
        if version not in self._views:
            with self.loop.step(round_id, "filter"):
                if version != NO_ADAPTERS:
                    self.teacher.use(self.study, version)
                progress = self._progress(round_id, "filter")
                self._views = {version: self.teacher.view_pool(self.study, progress=progress)}
        return self._views[version]

    def _post_matrix(self, task: PostMatrix) -> None:
        """Commit to what all queries of the round are answered from."""
        features = self._look_at_pool(task.round_id).features
        matrix = encode_matrix(features, row_bound=ROW_BOUND)
        body = {"parameters_digest": matrix.parameters.digest}
        self.board.post(Kind.MATRIX, body, payload=matrix.to_bytes(), round_id=task.round_id)

    def _committed(self, matrix: Envelope) -> PoolMatrix:
        """The matrix on the board: after a restart the LLM may look at the pool otherwise."""
        digest, plan = matrix.header.payload_sha256, self.study.plan
        if digest not in self._matrices:
            raw = self.board.read(matrix.message_hash)
            parsed = parse_matrix(raw, scoring_parameters_of(plan), plan.pool_size)
            self._matrices = {digest: PoolMatrix(parsed, worker=shared_worker())}
        return self._matrices[digest]

    def _score(self, task: Score) -> None:
        round_id, site = task.round_id, task.site
        matrix = self._mine(Kind.MATRIX, round_id)
        query = self._index.find(Kind.QUERY, sender=site, to=self._me, round_id=round_id)
        if query is None:
            raise LocalProtocolError(f"round {round_id}: asked to score without a query")
        committed = self._committed(matrix)
        try:
            scores = committed.score(self.board.read(query.message_hash))
        except PeerError as error:
            self._exclude(round_id, site, error)
            return
        body = {
            "matrix": matrix.message_hash,
            "query": query.message_hash,
            "pool_size": len(self.study.pool),
        }
        self.board.post(Kind.SCORES, body, payload=scores, round_id=round_id, to=site)

    def _exclude(self, round_id: int, site: str, error: PeerError) -> None:
        """Go on without a site for this round; what it sent cannot be used."""
        LOG.warning("round %d: %s is left out (%s): %s", round_id, site, error.reason, error)
        self._given_up.add((round_id, site))

    def _write_rationales(self, task: WriteRationales) -> None:
        round_id = task.round_id
        view = self._look_at_pool(round_id)
        demand = self.board.opened_sum(round_id, DEMAND)
        progress = self._progress(round_id, "paths")
        written = self.teacher.write(self.study, demand, progress=progress)
        body = {
            "demanded": written.demanded,
            "written": len(written.texts),
            "wrong": written.wrong,
            "dropped": written.dropped,
        }
        payload = rationales_payload(self.study, written.texts, view.cells)
        self.board.post(Kind.PATHS, body, payload=payload, round_id=round_id)

    def _inquire(self, task: Inquire) -> None:
        """Ask the sites about samples on which, as the opened sum says, they know more."""
        round_id = task.round_id
        opened = self._index.opened(round_id, CONFIDENCE_EXCESS, auditor=self.roster.auditor.id)
        values = self.board.opened_sum(round_id, CONFIDENCE_EXCESS)
        samples = self._llm_transfer.samples_to_ask(values, version=self._llm(round_id))
        body = {"opened": opened.message_hash, "samples": len(samples)}
        self.board.post(Kind.INQUIRY, body, payload=inquiry_bytes(samples), round_id=round_id)

    def _improve(self, task: ImproveModel) -> None:
        """Train on what the sites sent, decide, and only then tell; what is kept is on disk."""
        round_id = task.round_id
        inquiry, written = self._mine(Kind.INQUIRY, round_id), self._mine(Kind.PATHS, round_id)
        before = self._llm(round_id)
        decision = self._llm_transfer.improve(
            self._site_rationales(round_id, inquiry),
            parse_rationales(self.board.read(written.message_hash), self.study),
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
        self.events.write(LlmUpdate, round_id=round_id, step="uplink", asked=asked, **figures)

    def _site_rationales(
        self, round_id: int, inquiry: Envelope
    ) -> dict[str, tuple[SiteRationale, ...]]:
        """What each site wrote; an answer that cannot be used is left out, with a warning."""
        asked = parse_canonical_json(
            self.board.read(inquiry.message_hash),
            max_bytes=Kind.INQUIRY.rules.max_payload_bytes,
        )
        indices = [at for at in asked if type(at) is int] if isinstance(asked, list) else []
        found: dict[str, tuple[SiteRationale, ...]] = {}
        for site in sorted(party.id for party in self.roster.sites):
            answer = self._index.find(Kind.SITE_PATHS, sender=site, to=self._me, round_id=round_id)
            if answer is None:
                continue
            try:
                if parse_body(answer, SitePathsBody).inquiry != inquiry.message_hash:
                    raise PeerError("it answers another inquiry", reason="malformed")
                found[site] = parse_site_rationales(
                    self.board.read(answer.message_hash), asked=indices
                )
            except PeerError as error:
                LOG.warning("round %d: paths of %s are left out: %s", round_id, site, error)
        return found

    def _post_transcript(self, task: PostTranscript) -> None:
        round_id = task.round_id
        transcript = build_transcript(self._index, round_id, previous=self._previous(round_id))
        body = {"messages": len(transcript.entries)}
        self.board.post(Kind.TRANSCRIPT, body, payload=transcript.to_bytes(), round_id=round_id)

    def _close_round(self, task: CloseRound) -> None:
        body = {"transcript_sha256": self._previous(task.round_id + 1)}
        self.board.post(Kind.CLOSE, body, round_id=task.round_id)

    def _finish(self, _: Finish) -> None:
        self.board.post(Kind.FINISHED, {"rounds": self.study.plan.rounds})

    def _give_up(self, task: GiveUp) -> None:
        self.board.post(Kind.FAILED, {"code": task.code, "message": task.message})
        self.events.write(Failed, round_id=0, step="close", message=task.message)
        raise StudyFailed(task.message)

    def _previous(self, round_id: int) -> str:
        """Hash of the transcript before this round."""
        if round_id == 0:
            return FIRST
        return self._mine(Kind.TRANSCRIPT, round_id - 1).header.payload_sha256

    def _mine(self, kind: Kind, round_id: int) -> Envelope:
        """Our own message of this kind, which a task says is there."""
        message = self._index.find(kind, sender=self._me, round_id=round_id)
        if message is None:
            raise LocalProtocolError(f"round {round_id}: there is no {kind.value} of ours yet")
        return message

    def _progress(self, round_id: int, step: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self.events.write(Progress, round_id=round_id, step=step, done=done, total=total)

        return report
