"""The coordinator: carries out its next task until the study is over.

Whoever imports this imports the libraries of models, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from lada_protocol.events import LlmUpdate, StallTimer
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, scoring_parameters_of
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.llm_transfer import (
    SiteRationale,
    inquiry_bytes,
    llm_version,
    parse_site_rationales,
)
from lada_protocol.rounds.secure_aggregation import purpose_parameters
from lada_protocol.rounds.tasks import GiveUp, Post, Task, Wait
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.run_loop import ByteCounts, Handler, RunLoop, StudyFailed
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
from lada_secure.models.endpoint.opening import ServedFolder
from lada_server.board.client import LocalBoardClient
from lada_server.settings import ServerSettings
from lada_server.study.llm_transfer import improve_llm, samples_to_ask
from lada_server.study.local_llm import LocalLlm
from lada_server.study.proposal import Study
from lada_server.study.served_llm import ServedLlm
from lada_server.study.teacher import CoordinatorLlm, Teacher, parse_rationales, rationales_payload

LOG = logging.getLogger(__name__)
# In the state folder: what is kept of the LLM.
LLM_FOLDER: Final = "llm"
POLL_S = 5.0


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """One study at the coordinator. All state that matters is on the board."""

    study: Study
    board: LocalBoardClient
    certificate: str
    teacher: Teacher
    loop: RunLoop = field(init=False)
    _given_up: set[tuple[int, str]] = field(default_factory=set)
    _stall: StallTimer = field(default_factory=lambda: StallTimer(clock=time.monotonic))
    # What the LLM of a version sees in the pool, and the matrix of a payload hash: the newest one.
    _views: dict[str, PoolView] = field(default_factory=dict)
    _matrices: dict[str, PoolMatrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loop = RunLoop(
            events=self.board.events,
            rounds=self.study.plan.rounds,
            next_task=self._next_task,
            wait=self._wait,
            handlers=self._handlers(),
            traffic=lambda: ByteCounts(self.board.sent_bytes, self.board.read_bytes),
            clock=time.monotonic,
            entered=self.board.stall.enter,
        )

    def _handlers(self) -> dict[Kind, Handler]:
        return {
            Kind.PLAN: Handler("plan", self._propose),
            Kind.COHORT: Handler("opening", self._start_attempt),
            Kind.ABORT: Handler("opening", self._abort_attempt),
            Kind.SUM: Handler("opening", self._add_up),
            Kind.MATRIX: Handler("scoring", self._post_matrix),
            Kind.SCORES: Handler("scoring", self._score),
            Kind.PATHS: Handler("paths", self._write_rationales),
            Kind.INQUIRY: Handler("uplink", self._inquire),
            Kind.LLM_UPDATE: Handler("uplink", self._improve),
            Kind.TRANSCRIPT: Handler("close", self._post_transcript),
            Kind.CLOSE: Handler("close", self._close_round),
            Kind.FINISHED: Handler("close", self._finish),
            Kind.FAILED: Handler("close", self._give_up),
        }

    def _next_task(self) -> Task:
        self.board.sync(wait_s=0.0)
        return next_coordinator_task(self.board.index, given_up=frozenset(self._given_up))

    def _wait(self, task: Wait) -> None:
        self.board.stall.enter(task.round_id, task.step)
        if self.board.stall.was_interrupted():
            # Nobody could answer while the board was down: everybody's time begins again.
            self._stall = StallTimer(clock=time.monotonic)
        waited_s = self._stall.wait(task, self.board.events)
        timeout_s = self.study.plan.phase_timeout_s
        if task.is_overdue(waited_s, timeout_s=timeout_s, now=datetime.now(UTC)):
            joined = bool(self.board.index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS))
            round_id = task.round_id if joined else -1
            self._given_up.update((round_id, party) for party in task.parties)
            return
        proposed = self.board.index.find(Kind.CLUSTERS, sender=self.board.me) is not None
        if proposed and self._llm(task.round_id) not in self._views:
            # The LLM looks at the pool while the sites compute their statistics.
            self._look_at_pool(task.round_id)
            return
        self.board.sync(wait_s=POLL_S)

    def propose(self) -> None:
        """Post plan, pool and clusters, if they are not there yet; the study begins with `loop`."""
        task = self._next_task()
        if isinstance(task, Post) and task.kind is Kind.PLAN:
            self.loop.carry_out(task)

    def _propose(self, _: Post) -> None:
        study = self.study
        self.board.post(Kind.PLAN, {"certificate": self.certificate}, payload=study.plan.to_bytes())
        self.board.post(Kind.POOL, {}, payload=pool_bytes(study.pool))
        clusters = canonical_json(study.clusters.to_json())
        self.board.post(Kind.CLUSTERS, {}, payload=clusters)

    def _start_attempt(self, task: Post) -> None:
        self.board.post(Kind.COHORT, {"sites": list(task.sites)}, attempt=task.attempt)

    def _abort_attempt(self, task: Post) -> None:
        body = {"code": "timeout", "message": f"no answer from {', '.join(task.sites)}"}
        self.board.post(Kind.ABORT, body, attempt=task.attempt)

    def _add_up(self, task: Post) -> None:
        sent = self.board.index.all_at(Kind.CONTRIBUTION, task.attempt)
        total = SealedSum(purpose_parameters(self.study.plan, task.attempt.purpose))
        for site in task.sites:
            try:
                total.add(self.board.read(sent[site].message_hash))
            except PeerError as error:
                self._exclude(task.attempt.round_id, site, error)
                return
        body = {"contributions": {site: sent[site].message_hash for site in task.sites}}
        self.board.post(Kind.SUM, body, payload=total.to_bytes(), attempt=task.attempt)

    def _llm(self, round_id: int) -> str:
        """The LLM that a round works with: an update counts from the next round on."""
        return llm_version(self.board.index, before_round=round_id)

    def _look_at_pool(self, round_id: int) -> PoolView:
        version = self._llm(round_id)
        if version not in self._views:
            with self.loop.step(round_id, "filter"):
                self.teacher.use(version)
                self._views = {version: self.teacher.view_pool()}
        return self._views[version]

    def _post_matrix(self, task: Post) -> None:
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

    def _score(self, task: Post) -> None:
        round_id, site = task.round_id, task.to
        matrix = self._posted(Kind.MATRIX, round_id)
        query = self._posted(Kind.QUERY, round_id, sender=site, to=self.board.me)
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

    def _write_rationales(self, task: Post) -> None:
        round_id = task.round_id
        view = self._look_at_pool(round_id)
        demand = self.board.opened_sum(round_id, DEMAND)
        written = self.teacher.write(demand)
        body = {
            "demanded": written.demanded,
            "written": len(written.texts),
            "wrong": written.wrong,
            "dropped": written.dropped,
        }
        payload = rationales_payload(self.study, written.texts, view.cells)
        self.board.post(Kind.PATHS, body, payload=payload, round_id=round_id)

    def _inquire(self, task: Post) -> None:
        """Ask the sites about samples on which, as the opened sum says, they know more."""
        round_id = task.round_id
        opened = self.board.index.opened(round_id, CONFIDENCE_EXCESS)
        values = self.board.opened_sum(round_id, CONFIDENCE_EXCESS)
        samples = samples_to_ask(self.teacher, values, version=self._llm(round_id))
        body = {"opened": opened.message_hash, "samples": len(samples)}
        self.board.post(Kind.INQUIRY, body, payload=inquiry_bytes(samples), round_id=round_id)

    def _improve(self, task: Post) -> None:
        """Train on what the sites sent, decide, and only then tell; what is kept is on disk."""
        round_id = task.round_id
        inquiry, written = self._posted(Kind.INQUIRY, round_id), self._posted(Kind.PATHS, round_id)
        body = improve_llm(
            self.teacher,
            self._site_rationales(round_id, inquiry),
            parse_rationales(self.board.read(written.message_hash), self.study),
            inquiry=inquiry.message_hash,
            version=self._llm(round_id),
            seed=self.study.plan.seed + round_id,
        )
        self.board.post(Kind.LLM_UPDATE, body.model_dump(), round_id=round_id)
        asked = parse_body(inquiry, InquiryBody).samples
        figures = body.model_dump(exclude={"inquiry"})
        self.board.events.write(LlmUpdate, round_id=round_id, step="uplink", asked=asked, **figures)

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
        for site in sorted(party.id for party in self.board.roster.sites):
            answer = self.board.index.find(
                Kind.SITE_PATHS, sender=site, to=self.board.me, round_id=round_id
            )
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

    def _post_transcript(self, task: Post) -> None:
        round_id = task.round_id
        transcript = build_transcript(self.board.index, round_id, previous=self._previous(round_id))
        body = {"messages": len(transcript.entries)}
        self.board.post(Kind.TRANSCRIPT, body, payload=transcript.to_bytes(), round_id=round_id)

    def _close_round(self, task: Post) -> None:
        body = {"transcript_sha256": self._previous(task.round_id + 1)}
        self.board.post(Kind.CLOSE, body, round_id=task.round_id)

    def _finish(self, _: Post) -> None:
        self.board.post(Kind.FINISHED, {"rounds": self.study.plan.rounds})

    def _give_up(self, task: GiveUp) -> None:
        self.board.post(Kind.FAILED, {"code": task.code, "message": task.message})
        raise StudyFailed(task.message)

    def _previous(self, round_id: int) -> str:
        """Hash of the transcript before this round."""
        if round_id == 0:
            return FIRST
        return self._posted(Kind.TRANSCRIPT, round_id - 1).header.payload_sha256

    def _posted(self, kind: Kind, round_id: int, *, sender: str = "", to: str = "") -> Envelope:
        """A message, by default our own, which a task says is there."""
        whose = sender or self.board.me
        message = self.board.index.find(kind, sender=whose, to=to, round_id=round_id)
        if message is None:
            raise LocalProtocolError(f"round {round_id}: there is no {kind.value} of {whose} yet")
        return message


def open_llm(settings: ServerSettings) -> CoordinatorLlm:
    """The LLM of the settings; nothing is loaded and nobody is asked yet.

    Raises: ParameterError: the key file or the URL of a served one.
    """
    called, placed = settings.model.calling, settings.model.placement
    if isinstance(settings.llm, str):
        return LocalLlm(
            settings.llm,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
            calling=called,
            placement=placed,
        )
    return ServedLlm(
        settings.llm.address(),
        tokenizer=settings.llm.tokenizer,
        adapters=settings.llm.adapters,
        kept=ServedFolder(folder=settings.state_dir / LLM_FOLDER),
        threads=settings.threads,
        calling=called,
        placement=placed,
    )
