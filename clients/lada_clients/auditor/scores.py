"""The auditor computes every site's blind scores again before a demand is opened.

Adversary: a coordinator that answers one site otherwise than the rest, to see its picks in the
sum. Property: what is opened is a sum of picks that all follow from one matrix, to which the
coordinator was bound before it could know any of them. The auditor reads neither utilities nor
scores: queries and scores are under the sites' own keys. It does read the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from lada_clients.net.participant import Participant
from lada_protocol.rounds.blind_scoring import (
    ScoredQuery,
    check_scored_round,
    scoring_parameters_of,
)
from lada_protocol.rounds.index import Attempt
from lada_protocol.wire.envelope import Envelope
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import parse_matrix
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import PeerError


@dataclass(slots=True, kw_only=True)
class ScoreCheck:
    """Keeps the newest matrix: all sites of a round share it, encoded, and so do retries."""

    participant: Participant
    _matrix: PoolMatrix | None = None
    _matrix_of: str = ""

    def check(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        """Check what the coordinator answered to every site of a demand.

        One site at a time: memory does not grow with the cohort.

        Raises: PeerError: as `check_scored_round`; wrong_matrix: what was committed to is no
            matrix; wrong_scores: not the scores of this query under this matrix.
        """
        me = self.participant
        committed, by_site = check_scored_round(me.index, cohort, round_id=attempt.round_id)
        matrix = self._parsed(committed)
        for site, one in by_site.items():
            self._check_site(matrix, site, one)

    def _parsed(self, message: Envelope) -> PoolMatrix:
        if self._matrix is None or self._matrix_of != message.header.payload_sha256:
            me, head = self.participant, message.header
            try:
                parsed = parse_matrix(
                    me.payload(message), scoring_parameters_of(me.plan), me.plan.pool_size
                )
            except PeerError as error:
                raise PeerError(
                    f"round {head.round_id}: what {head.sender} committed to is no matrix: {error}",
                    reason="wrong_matrix",
                    peer=head.sender,
                    round_id=head.round_id,
                ) from error
            self._matrix = PoolMatrix(parsed, worker=shared_worker())
            self._matrix_of = head.payload_sha256
        return self._matrix

    def _check_site(self, matrix: PoolMatrix, site: str, one: ScoredQuery) -> None:
        me, head = self.participant, one.scores.header
        fault = "are not those of its query under the matrix of the round"
        try:
            same = matrix.score(me.payload(one.query)) == me.payload(one.scores)
        except PeerError as error:
            # Of all codes this one says what it means for the sum; none of it touched a key.
            same, fault = False, f"cannot be computed from its query ({error})"
        if not same:
            raise PeerError(
                f"round {head.round_id}: the scores of {head.sender} for {site} {fault}",
                reason="wrong_scores",
                peer=head.sender,
                round_id=head.round_id,
            )
