"""Blind scores that an auditor can compute again (SPEC.md, section 8).

A coordinator that may answer each site as it likes reads one site's picks: it silences the
others, and the opened demand is the victim's. So it commits to one matrix for the round before
it answers anybody, and no demand is opened until every site of the sum was answered by it.
Here is what signed messages alone show of that; the auditor compares the bytes as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import MatrixBody, QueryBody, ScoresBody, parse_body
from lada_secure.encryption.parameters import ScoringParameters, scoring_parameters
from lada_secure.errors import PeerError

# A row of the matrix adds up to at most this, so scores lie in [-1, 1] as utilities do.
ROW_BOUND: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredQuery:
    """One site's query and the coordinator's answer to it."""

    query: Envelope
    scores: Envelope


def scoring_parameters_of(plan: StudyPlan) -> ScoringParameters:
    """CKKS parameters of a study; a function of the plan, so no party sends any."""
    return scoring_parameters(cells=plan.allocation.cells, row_bound=ROW_BOUND)


def check_answer(scores: Envelope, query: Envelope, plan: StudyPlan) -> ScoresBody:
    """Check that scores answer this very query, over the plan's pool.

    Raises: PeerError(reason="wrong_scores"), malformed.
    """
    body, head = parse_body(scores, ScoresBody), scores.header
    if body.query != query.message_hash or body.pool_size != plan.pool_size:
        raise scores.fault(
            f"round {head.round_id}: the scores of {head.sender} for {query.header.sender} answer "
            f"query {body.query[:16]} over {body.pool_size} samples, expected "
            f"{query.message_hash[:16]} over {plan.pool_size}",
            reason="wrong_scores",
        )
    return body


def check_scored_round(
    index: MessageIndex, sites: tuple[str, ...], *, round_id: int
) -> tuple[Envelope, dict[str, ScoredQuery]]:
    """Check that each of these sites was answered from the one matrix of the round.

    Returns: the matrix, and query and scores of every site.
    Raises: PeerError that names coordinator and site: wrong_matrix (none, under other parameters,
        or scores that name another one), missing_scores (no query, or no answer), wrong_scores,
        wrong_parameters (a query of other cells), malformed.
    """
    coordinator, parameters = index.coordinator, scoring_parameters_of(index.plan)
    where = f"round {round_id}:"
    matrix = index.find(Kind.MATRIX, sender=coordinator, round_id=round_id)
    if matrix is None or parse_body(matrix, MatrixBody).parameters_digest != parameters.digest:
        raise PeerError(
            f"{where} {coordinator} committed to no matrix under the plan's parameters",
            reason="wrong_matrix",
            peer=coordinator,
            round_id=round_id,
        )
    found: dict[str, ScoredQuery] = {}
    for site in sites:
        query = index.find(Kind.QUERY, sender=site, to=coordinator, round_id=round_id)
        scores = index.find(Kind.SCORES, sender=coordinator, to=site, round_id=round_id)
        if query is None or scores is None:
            raise matrix.fault(
                f"{where} {coordinator} lets {site} contribute to the demand without "
                f"{'a query' if query is None else 'scores'} of it",
                reason="missing_scores",
            )
        if parse_body(query, QueryBody).cells != parameters.cells:
            raise query.fault(
                f"{where} the query of {site} has other than {parameters.cells} cells",
                reason="wrong_parameters",
            )
        named = check_answer(scores, query, index.plan).matrix
        if named != matrix.message_hash:
            raise scores.fault(
                f"{where} the scores of {coordinator} for {site} name matrix {named[:16]}, the "
                f"round's is {matrix.message_hash[:16]}",
                reason="wrong_matrix",
            )
        found[site] = ScoredQuery(query=query, scores=scores)
    return matrix, found
