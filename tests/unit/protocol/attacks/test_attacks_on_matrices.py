"""A coordinator that commits to one matrix, and answers by another or by two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lying_scorer import (
    OTHERS,
    PLAN,
    READ,
    VICTIM,
    TwoFacedBoard,
    assert_refused,
    ladder,
    make_sites,
    queried,
    query_of,
    read_ladder,
    recovered,
    silence,
    to_opening,
)
from protocol_world import MemoryBoard
from simulated_parties import make_auditor, refusal
from simulated_site import THREE, scores_of

from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
)
from lada_secure.encryption.parsing import pack, unpack
from lada_secure.errors import PeerError
from lada_secure.method.plan import STATISTICS


def test_whether_a_site_is_out_of_range_is_not_to_be_seen(tmp_path: Path) -> None:
    """Twice the ladder: out of range exactly where a utility is above a half.

    A site that stopped there would answer a question about its utilities by stopping. It sends
    what it always sends, and the auditor refuses the matrix.
    """
    world = make_sites(tmp_path)
    for name, site in world.sites.items():
        site.utilities[0][:] = 0.45
        site.utilities[0][0] = 0.9 if name == VICTIM else 0.45
    rows = encode_matrix(ladder(), row_bound=ROW_BOUND)
    doubled = (2 * rows.columns).astype("<i4").tobytes()
    world.coordinator.committed = rows.to_bytes()[:HEADER_BYTES] + doubled
    queried(world)
    for site in THREE:
        answer = _twice(scores_of(ladder(), query_of(world, site)))
        world.coordinator.score(0, site, payload=answer)

    attempt = to_opening(world)

    wanted = {name: site.vector(attempt).any() for name, site in world.sites.items()}
    assert wanted == {VICTIM: False, **dict.fromkeys(OTHERS, True)}
    sent = world.coordinator.index.all_at(Kind.CONTRIBUTION, attempt)
    assert len({one.header.payload_bytes for one in sent.values()}) == 1
    assert set(sent) == set(THREE)
    assert_refused(world, attempt, "wrong_matrix")


def _twice(scores: bytes) -> bytes:
    body = unpack(scores[HEADER_BYTES:], SCORING_COEFFICIENT_BYTES).astype(object)
    product = (body * 2 % SCORING_MODULUS).astype(np.uint64)
    return scores[:HEADER_BYTES] + pack(product, SCORING_COEFFICIENT_BYTES)


def test_scores_that_name_another_matrix_open_nothing(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        changes = {"matrix": "e" * 64} if site == VICTIM else {}
        world.coordinator.score(0, site, **changes)

    fault = assert_refused(world, to_opening(world), "wrong_matrix")
    assert VICTIM in fault.message


def test_a_round_without_a_matrix_opens_nothing(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    matrix = world.coordinator.index.find(Kind.MATRIX, sender="coordinator", round_id=0)
    assert matrix is not None
    for site in THREE:
        world.coordinator.score(0, site)
    attempt = to_opening(world)
    # The coordinator keeps it back from the auditor.
    world.board.rows = [one for one in world.board.rows if one[0] is not matrix]
    world.auditor = make_auditor(world.cast, world.board, tmp_path / "auditor")

    assert_refused(world, attempt, "wrong_matrix")


def test_a_second_matrix_of_a_round_is_equivocation_and_nothing_is_opened(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site)
    to_opening(world)
    other = encode_matrix(ladder(), row_bound=ROW_BOUND)
    aside = MemoryBoard(world.cast.roster)
    first = world.coordinator.index
    world.coordinator.board, honest = aside, world.board
    world.coordinator.index = type(first)(PLAN, first.roster)
    second = world.coordinator.post(
        Kind.MATRIX, {"parameters_digest": other.parameters.digest}, payload=other.to_bytes()
    )
    honest.insert(second, other.to_bytes())

    with pytest.raises(PeerError) as caught:
        world.settle_auditor()

    assert caught.value.reason == "equivocation"
    assert recovered(world) == []


def test_other_scores_for_the_site_than_for_the_auditor_open_nothing(tmp_path: Path) -> None:
    """The board shows the victim the ladder, and the auditor what the matrix gives."""
    world = make_sites(tmp_path)
    board = TwoFacedBoard(world.cast.roster, world.board.rows)
    world.board = world.coordinator.board = board
    for party in (world.auditor, *world.sites.values()):
        me = party.participant if party is world.auditor else party.me
        me.client.board = board
    queried(world)
    shown = world.coordinator.score(0, VICTIM, payload=silence(world, VICTIM))
    aside = world.coordinator.index
    world.coordinator.index = type(aside)(PLAN, aside.roster)
    for one in aside:
        if one is not shown:
            world.coordinator.index.add(one)
    board.rows, kept = [row for row in board.rows if row[0] is not shown], board.rows
    good = world.coordinator.score(0, VICTIM)
    board.rows = [*kept, board.rows[-1]]
    board.hidden = {
        (VICTIM, good.message_hash),
        ("auditor", shown.message_hash),
        ("coordinator", shown.message_hash),
    }
    for site in OTHERS:
        world.coordinator.score(0, site)

    attempt = to_opening(world)

    assert (
        np.abs(
            read_ladder(world.sites[VICTIM].vector(attempt))
            - world.sites[VICTIM].utilities[0][:READ]
        ).max()
        <= 0.03
    ), "the victim did pick by the ladder"
    fault = assert_refused(world, attempt, "wrong_basis")
    assert VICTIM in fault.message


def test_a_query_of_another_round_answers_nothing(tmp_path: Path) -> None:
    """Round 1, scored from what the sites asked in round 0, under the names of round 1."""
    world = make_sites(tmp_path)
    queried(world)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=1, purpose=STATISTICS)
        )
    )
    before = len(recovered(world))
    queried(world, round_id=1)
    for site in THREE:
        old = scores_of(world.coordinator.features, query_of(world, site, 0))
        world.coordinator.score(1, site, payload=old)

    attempt = to_opening(world, round_id=1)

    assert refusal(world, attempt).code == "wrong_scores"
    assert len(recovered(world)) == before


def test_scores_that_name_another_query_are_refused_by_the_site(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    other = world.coordinator.index.find(Kind.QUERY, sender=OTHERS[0], to="coordinator")
    assert other is not None
    for site in THREE:
        changes = {"query": other.message_hash} if site == VICTIM else {}
        world.coordinator.score(0, site, **changes)

    with pytest.raises(PeerError) as caught:
        to_opening(world)

    assert caught.value.reason == "wrong_scores"
    assert recovered(world) == []
