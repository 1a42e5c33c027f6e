"""A coordinator without a model, driven by the round logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from protocol_world import (
    MemoryBoard,
    signed,
)
from sealed_sums import add_sealed
from simulated_site import scores_of

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.blind_scoring import ROW_BOUND
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.llm_transfer import (
    inquiry_bytes,
    llm_version,
)
from lada_protocol.rounds.secure_aggregation import (
    opened_values,
    purpose_parameters,
)
from lada_protocol.rounds.tasks import GiveUp, Post, Task
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.wire.envelope import Envelope
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.method.plan import (
    CONFIDENCE_EXCESS,
    transfer_of,
)


@dataclass(slots=True, kw_only=True)
class SimulatedCoordinator:
    """A coordinator without a model.

    `given_up` is for the test to set, and `committed`: bytes in place of the matrix.
    """

    roster: Roster
    key: Ed25519PrivateKey
    certificate: str
    plan: StudyPlan
    board: MemoryBoard
    given_up: set[tuple[int, str]] = field(default_factory=set)
    index: MessageIndex = field(init=False)
    features: np.ndarray = field(init=False)
    committed: bytes | None = None
    _seen: int = 0

    def __post_init__(self) -> None:
        self.index = MessageIndex(self.plan, self.roster)
        rows = np.random.default_rng(7).uniform(
            size=(self.plan.pool_size, self.plan.allocation.cells)
        )
        self.features = rows / rows.sum(axis=1, keepdims=True)

    def sync(self) -> None:
        """Read everything that is new."""
        for number, envelope in self.board.visible(self.roster.coordinator, self._seen):
            self._seen = number
            self.index.add(envelope)

    def next(self) -> Task:
        """The next task after reading the board."""
        self.sync()
        return next_coordinator_task(self.index, given_up=frozenset(self.given_up))

    def step(self) -> Task:
        """Read the board and carry out one task."""
        task = self.next()
        self.carry_out(task)
        return task

    def carry_out(self, task: Task) -> None:
        """Carry out a task."""
        match task:
            case Post(kind=Kind.PLAN):
                self.post(
                    Kind.PLAN, {"certificate": self.certificate}, payload=self.plan.to_bytes()
                )
                self.post(Kind.POOL, {}, payload=b"pool")
                self.post(Kind.CLUSTERS, {}, payload=b"clusters")
            case Post(kind=Kind.COHORT, attempt=attempt, sites=sites):
                self.post_at(Kind.COHORT, attempt, {"sites": list(sites)})
            case Post(kind=Kind.ABORT, attempt=attempt):
                self.post_at(Kind.ABORT, attempt, {"code": "timeout", "message": "no answer"})
            case Post(kind=Kind.SUM, attempt=attempt, sites=cohort):
                self.add_up(attempt, cohort)
            case Post(kind=Kind.MATRIX, round_id=round_id):
                self.commit(round_id)
            case Post(kind=Kind.SCORES, round_id=round_id, to=site):
                self.score(round_id, site)
            case Post(kind=Kind.PATHS, round_id=round_id):
                body = {"demanded": 3, "written": 3, "wrong": 0, "dropped": 0}
                self.post(Kind.PATHS, body, payload=b"[]", round_id=round_id)
            case Post(kind=Kind.INQUIRY, round_id=round_id):
                self.inquire(round_id)
            case Post(kind=Kind.LLM_UPDATE, round_id=round_id):
                self.improve(round_id)
            case Post(kind=Kind.TRANSCRIPT, round_id=round_id):
                transcript = build_transcript(
                    self.index, round_id, previous=self._transcript_hash(round_id - 1)
                )
                self.post(
                    Kind.TRANSCRIPT,
                    {"messages": len(transcript.entries)},
                    payload=transcript.to_bytes(),
                    round_id=round_id,
                )
            case Post(kind=Kind.CLOSE, round_id=round_id):
                digest = self._transcript_hash(round_id)
                self.post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)
            case Post(kind=Kind.FINISHED):
                self.post(Kind.FINISHED, {"rounds": self.plan.rounds})
            case GiveUp(code=code, message=message):
                self.post(Kind.FAILED, {"code": code, "message": message})
            case _:
                pass

    def commit(self, round_id: int) -> Envelope:
        """Post the matrix of a round."""
        matrix = encode_matrix(self.features, row_bound=ROW_BOUND)
        body = {"parameters_digest": matrix.parameters.digest}
        payload = matrix.to_bytes() if self.committed is None else self.committed
        return self.post(Kind.MATRIX, body, payload=payload, round_id=round_id)

    def score(
        self, round_id: int, site: str, *, payload: bytes | None = None, **changes: Any
    ) -> Envelope:
        """Answer a query from the round's matrix; a test may replace bytes or body fields."""
        query = self.index.find(Kind.QUERY, sender=site, to="coordinator", round_id=round_id)
        matrix = self.index.find(Kind.MATRIX, sender="coordinator", round_id=round_id)
        if query is None or matrix is None:
            raise AssertionError("asked to score without query and matrix")
        if payload is None:
            payload = scores_of(self.features, self.board.payload(query.message_hash))
        body = {
            "matrix": matrix.message_hash,
            "query": query.message_hash,
            "pool_size": self.plan.pool_size,
        }
        return self.post(
            Kind.SCORES, {**body, **changes}, payload=payload, round_id=round_id, to=site
        )

    def inquire(self, round_id: int, *, samples: list[int] | None = None) -> Envelope:
        """Ask about the samples with the largest sums, or about those that a test wants."""
        opened = self.index.opened(round_id, CONFIDENCE_EXCESS)
        values = opened_values(
            self.board.payload(opened.message_hash), self.plan, CONFIDENCE_EXCESS
        )
        if samples is None:
            known = [one for one in range(len(values)) if values[one] > 0]
            samples = sorted(sorted(known, key=lambda one: -values[one])[: self.budget])
        body = {"opened": opened.message_hash, "samples": len(samples)}
        return self.post(Kind.INQUIRY, body, payload=inquiry_bytes(samples), round_id=round_id)

    @property
    def budget(self) -> int:
        """Most samples of an inquiry."""
        return transfer_of(self.plan).budget

    def improve(self, round_id: int, **changes: Any) -> Envelope:
        """Publish a decision: kept in even rounds, dropped in odd ones, unless changed."""
        inquiry = self.index.find(Kind.INQUIRY, sender="coordinator", round_id=round_id)
        if inquiry is None:
            raise AssertionError("an update without an inquiry")
        before = llm_version(self.index, before_round=round_id)
        kept = round_id % 2 == 0
        body = {
            "inquiry": inquiry.message_hash,
            "received": 6,
            "used": 4,
            "holdout": transfer_of(self.plan).holdout,
            "right_before": 1,
            "right_after": 2 if kept else 1,
            "certainty_before": 9,
            "certainty_after": 15 if kept else 9,
            "accepted": kept,
            "llm_before": before,
            "llm_after": f"{round_id + 1:064x}" if kept else before,
        }
        return self.post(Kind.LLM_UPDATE, {**body, **changes}, round_id=round_id)

    def add_up(
        self,
        attempt: Attempt,
        cohort: tuple[str, ...],
        *,
        payload: bytes | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Envelope:
        """Post the sum; a test may replace its bytes or the contributions that it names."""
        sent = self.index.all_at(Kind.CONTRIBUTION, attempt)
        if payload is None:
            parameters = purpose_parameters(self.plan, attempt.purpose)
            payload = add_sealed(
                parameters, [self.board.payload(sent[site].message_hash) for site in cohort]
            )
        if names is None:
            names = {site: sent[site].message_hash for site in cohort}
        return self.post_at(Kind.SUM, attempt, {"contributions": dict(names)}, payload=payload)

    def post_at(
        self, kind: Kind, attempt: Attempt, body: dict[str, Any], *, payload: bytes = b""
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
        self, kind: Kind, body: dict[str, Any], *, payload: bytes = b"", **place: Any
    ) -> Envelope:
        """Sign and post a message."""
        envelope = signed(
            self.roster, self.key, self.plan, kind, "coordinator", body, payload, **place
        )
        self.board.post(envelope, payload)
        self.index.add(envelope)
        return envelope

    def _transcript_hash(self, round_id: int) -> str:
        if round_id < 0:
            return FIRST
        message = self.index.find(Kind.TRANSCRIPT, sender="coordinator", round_id=round_id)
        if message is None:
            raise AssertionError(f"round {round_id} has no transcript")
        return message.header.payload_sha256
