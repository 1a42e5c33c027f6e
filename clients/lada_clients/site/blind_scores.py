"""A site's end of blind scoring: its own query, and what the coordinator answered."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, check_answer
from lada_secure.arrays import FloatArray
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.errors import LocalProtocolError, PeerError
from lada_secure.privacy.released import Released, require_released

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScoring:
    """Step 7 at the site. Keys and decrypted scores never leave it."""

    participant: Participant
    secrets: SecretFolder

    def ask(self, round_id: int, utilities: Released[FloatArray]) -> None:
        """Send the one query of a round.

        Args: utilities: (cells,) float64 in [-1, 1].
        """
        require_released(utilities, what="blind query")
        me, values = self.participant, utilities.value
        me.post(
            Kind.QUERY,
            {"cells": len(values)},
            lambda: self._key(round_id).encrypt(values),
            round_id=round_id,
            to=me.roster.coordinator.id,
        )

    def read(self, round_id: int) -> FloatArray | None:
        """The scores of the pool, (pool_size,) float64; None where they are out of range.

        Whether they are depends on the utilities, so nothing that others see may depend on it: a
        site that stopped would answer one question of the coordinator's about its utilities. It
        goes on and wants nothing. Scores from the committed matrix are never out of range, and
        with any others the auditor opens no demand.

        Raises: PeerError: wrong_scores, or bytes that are no scores; neither depends on a secret.
        """
        me = self.participant
        coordinator = me.roster.coordinator.id
        query = me.index.find(Kind.QUERY, sender=me.party, to=coordinator, round_id=round_id)
        scores = me.index.find(Kind.SCORES, sender=coordinator, to=me.party, round_id=round_id)
        if query is None or scores is None:
            raise LocalProtocolError(f"round {round_id}: demand before scores")
        check_answer(scores, query, me.plan)
        try:
            return self._key(round_id).decrypt(me.payload(scores), me.plan.pool_size)
        except PeerError as error:
            if error.reason != "out_of_range":
                raise
            LOG.warning("round %d: %s; nothing is asked for in this round", round_id, error)
            return None

    def _key(self, round_id: int) -> ScoringKey:
        plan = self.participant.plan
        raw = self.secrets.once(
            f"scores-{round_id}",
            lambda: ScoringKey.generate(plan.allocation.cells, row_bound=ROW_BOUND).to_bytes(),
        )
        return ScoringKey.from_bytes(raw)
