"""Scores of a round: one matrix, each site's own query, what signed messages alone show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed
from simulated_parties import make_world

from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import check_scored_round, scoring_parameters_of
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.transcript import FIRST, build_transcript, check_transcript
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import ScoresBody, parse_body
from lada_secure.errors import PeerError

SITES = ("site-a", "site-b", "site-c")
CAST, PLAN = make_cast(SITES), make_plan()
PARAMETERS = scoring_parameters_of(PLAN)


def _message(
    kind: Kind, sender: str, body: dict[str, Any], payload: bytes = b"", **place: Any
) -> Envelope:
    place = {"round_id": 1, **place}
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, payload, **place)


def _round(**changes: Any) -> MessageIndex:
    """Matrix, queries and scores of round 1; `changes` replace body fields by kind, for site-b.

    A kind that is None is left out, for site-b or for the round.
    """
    index = MessageIndex(PLAN, CAST.roster)

    def add(kind: Kind, envelope: Envelope, site: str) -> None:
        if site != "site-b" or changes.get(str(kind), {}) is not None:
            index.add(envelope)

    def body(kind: Kind, site: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, **((changes.get(str(kind)) or {}) if site == "site-b" else {})}

    matrix = _message(
        Kind.MATRIX,
        "coordinator",
        body(Kind.MATRIX, "site-b", {"parameters_digest": PARAMETERS.digest}),
    )
    add(Kind.MATRIX, matrix, "site-b")
    for site in SITES:
        asked = body(Kind.QUERY, site, {"cells": PARAMETERS.cells})
        query = _message(Kind.QUERY, site, asked, site.encode("ascii"), to="coordinator")
        add(Kind.QUERY, query, site)
        answer = {
            "matrix": matrix.message_hash,
            "query": query.message_hash,
            "pool_size": PLAN.pool_size,
        }
        scores = _message(Kind.SCORES, "coordinator", body(Kind.SCORES, site, answer), to=site)
        add(Kind.SCORES, scores, site)
    return index


def _check(index: MessageIndex) -> Any:
    return check_scored_round(index, SITES, round_id=1)


def test_a_round_in_which_everybody_was_answered_from_one_matrix_passes() -> None:
    matrix, by_site = _check(_round())
    assert tuple(by_site) == SITES
    assert matrix.kind is Kind.MATRIX


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"matrix": None}, "wrong_matrix"),
        ({"matrix": {"parameters_digest": "0" * 64}}, "wrong_matrix"),
        ({"matrix": {"parameters_digest": "no digest"}}, "malformed"),
        ({"query": None}, "missing_scores"),
        ({"query": {"cells": 13}}, "wrong_parameters"),
        ({"query": {"cells": 0}}, "malformed"),
        ({"scores": None}, "missing_scores"),
        ({"scores": {"query": "0" * 64}}, "wrong_scores"),
        ({"scores": {"pool_size": 8}}, "wrong_scores"),
        ({"scores": {"pool_size": 0}}, "malformed"),
        ({"scores": {"matrix": "0" * 64}}, "wrong_matrix"),
    ],
)
def test_a_round_is_refused_with_the_party_at_fault(changes: dict[str, Any], reason: str) -> None:
    index = _round(**changes)
    before = len(index)
    with pytest.raises(PeerError) as caught:
        _check(index)
    assert caught.value.reason == reason
    assert "coordinator" in str(caught.value) or caught.value.peer == "site-b"
    assert len(index) == before


def test_messages_of_another_round_do_not_count() -> None:
    with pytest.raises(PeerError) as caught:
        check_scored_round(_round(), SITES, round_id=0)
    assert caught.value.reason == "wrong_matrix"


def test_the_matrix_of_a_round_is_on_the_board_before_anybody_is_answered(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run()
    kinds = [(one.kind, one.header.round_id) for one, _ in world.board.rows]
    for round_id in range(PLAN.rounds):
        assert kinds.count((Kind.MATRIX, round_id)) == 1
        matrix = kinds.index((Kind.MATRIX, round_id))
        assert matrix < kinds.index((Kind.SCORES, round_id))
        opened = next(
            number
            for number, (one, _) in enumerate(world.board.rows)
            if one.kind is Kind.OPENED and one.header.round_id == round_id
        )
        assert opened < matrix
    seen = {one.kind for one in world.sites["site-a"].me.index}
    assert Kind.SCORES in seen
    assert Kind.MATRIX not in seen
    others = [one.header for one in world.sites["site-a"].me.index if one.kind is Kind.SCORES]
    assert {one.to for one in others} == {"site-a"}


def test_a_transcript_with_another_matrix_than_the_scores_name_is_not_signed() -> None:
    shown, other = _round(), _round(matrix={"parameters_digest": "e" * 64})
    mine = MessageIndex(PLAN, CAST.roster)
    for one in shown:
        if one.kind is Kind.SCORES and one.header.to == "site-a":
            mine.add(one)
    honest = build_transcript(shown, 1, previous=FIRST)
    check_transcript(honest, mine, round_id=1, previous=FIRST, reader="site-a")
    matrix = next(one for one in other if one.kind is Kind.MATRIX)
    entries = [
        one.model_copy(update={"message_hash": matrix.message_hash})
        if one.kind == "matrix"
        else one
        for one in honest.entries
    ]
    forged = honest.model_copy(update={"entries": entries})

    with pytest.raises(PeerError, match="another matrix") as caught:
        check_transcript(forged, mine, round_id=1, previous=FIRST, reader="site-a")

    assert caught.value.reason == "bad_transcript"
    assert parse_body(next(iter(mine)), ScoresBody).matrix != matrix.message_hash
