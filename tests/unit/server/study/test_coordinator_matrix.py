"""The coordinator commits to one matrix for a round, and after a restart to no other one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_coordinator_llm_transfer import STUDY

from lada_protocol.events import EventLog
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, check_answer, scoring_parameters_of
from lada_protocol.rounds.tasks import Post
from lada_protocol.wire.envelope import Envelope, Header, sign_envelope
from lada_protocol.wire.messages import ScoresBody, parse_body
from lada_secure.canonical import sha256_hex
from lada_secure.encryption.matrix import parse_matrix
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.errors import PeerError
from lada_secure.method.llm_round import PoolView
from lada_server.board.client import LocalBoardClient
from lada_server.board.store import BoardStore
from lada_server.study.coordinator import Coordinator
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher

PLAN = STUDY.plan
CELLS = PLAN.allocation.cells


class ForgetfulTeacher(Teacher):
    """Sees another matrix in the pool each time it looks."""

    def __init__(self, study: Study) -> None:
        """There is nothing to load."""
        self.study = study

    def use(self, version: str) -> None:
        """One version is as good as another."""

    def view_pool(self) -> PoolView:
        """Random cells."""
        size = len(self.study.pool)
        cells = np.random.default_rng().integers(0, CELLS, size)
        return PoolView(features=np.eye(CELLS)[cells], cells=cells)


@pytest.fixture
def start(study, tmp_path: Path):
    """Starts the coordinator of one and the same board, again and again."""
    stores: list[BoardStore] = []

    def make() -> Coordinator:
        for old in stores[-1:]:
            old.close()
        store = BoardStore(
            f"sqlite:///{tmp_path / 'board.sqlite'}",
            payload_dir=tmp_path / "payloads",
            roster=study.roster,
        )
        stores.append(store)
        made = Coordinator(
            study=STUDY,
            board=LocalBoardClient(
                plan=STUDY.plan,
                store=store,
                signing_key=study.credentials("coordinator").signing_key,
                events=EventLog(party="coordinator", sink=lambda _line: None, clock=lambda: 0.0),
            ),
            certificate="PEM",
            teacher=ForgetfulTeacher(STUDY),
        )
        made.board.sync(wait_s=0.0)
        return made

    yield make
    stores[-1].close()


def ask(coordinator: Coordinator, study, site: str) -> tuple[ScoringKey, np.ndarray, Envelope]:
    """A site's query on the board."""
    key = ScoringKey.generate(CELLS, row_bound=ROW_BOUND)
    utilities = np.linspace(-1.0, 1.0, CELLS)
    payload = key.encrypt(utilities)
    header = Header(
        kind="query",
        study_id=PLAN.study_id,
        plan_hash=PLAN.hash,
        roster_hash=study.roster.hash,
        round_id=0,
        attempt=0,
        purpose="",
        sender=site,
        to="coordinator",
        body={"cells": CELLS},
        payload_sha256=sha256_hex(payload),
        payload_bytes=len(payload),
    )
    query = sign_envelope(header, study.credentials(site).signing_key)
    coordinator.board.store.post(query, payload)
    coordinator.board.sync(wait_s=0.0)
    return key, utilities, query


def test_every_site_is_answered_from_the_posted_matrix_also_after_a_restart(study, start) -> None:
    first = start()
    first.loop.carry_out(Post(kind=Kind.MATRIX))
    read = {}
    for site in ("hospital-a", "hospital-b"):
        # The second site is answered by a process that has never looked at the pool.
        coordinator = first if site == "hospital-a" else start()
        key, utilities, query = ask(coordinator, study, site)
        coordinator.loop.carry_out(Post(kind=Kind.SCORES, to=site))
        index = coordinator.board.index
        scores = index.find(Kind.SCORES, sender="coordinator", to=site)
        matrix = index.find(Kind.MATRIX, sender="coordinator")
        assert scores is not None
        assert matrix is not None
        check_answer(scores, query, PLAN)
        assert parse_body(scores, ScoresBody).matrix == matrix.message_hash
        raw = coordinator.board.read(matrix.message_hash)
        rows = parse_matrix(raw, scoring_parameters_of(PLAN), PLAN.pool_size).rows(0)
        read[site] = key.decrypt(coordinator.board.read(scores.message_hash), PLAN.pool_size)
        assert np.abs(read[site] - rows[: PLAN.pool_size] @ utilities).max() < 1e-4
        assert not coordinator._views or site == "hospital-a"
    assert np.abs(read["hospital-a"] - read["hospital-b"]).max() < 1e-4


def test_the_matrix_of_a_round_is_posted_once(study, start) -> None:
    start().loop.carry_out(Post(kind=Kind.MATRIX))
    with pytest.raises(PeerError) as caught:
        start().loop.carry_out(Post(kind=Kind.MATRIX))
    assert caught.value.reason == "equivocation"
