"""A site's end of the three exchanges of a round: sealed sums, blind scores, paths for the LLM.

What goes in is `Released`; nothing else is masked, encrypted or sent. Keys and decrypted scores
never leave the site.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.learner import SiteLearner
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, check_answer
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.llm_transfer import SiteRationale, parse_inquiry, site_rationales_bytes
from lada_protocol.rounds.secure_aggregation import (
    basis_of,
    check_mask_keys,
    check_opened_range,
    keys_digest,
    mask_context,
    opened_values,
    purpose_parameters,
    site_bound_of,
)
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import InquiryBody, OpenedBody, parse_body
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import LocalProtocolError, PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS
from lada_secure.privacy.released import Released, post_process, require_released

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteExchanges:
    """Steps 2, 4, 7 and 10 at a site, and its own check of step 5, during one study."""

    participant: Participant
    secrets: SecretFolder

    def post_mask_key(self, attempt: Attempt) -> None:
        """Step 2: the public half of a key for this attempt alone."""
        body = {"public_key": self._mask_key(attempt).public_bytes.hex()}
        self.participant.post(Kind.MASK_KEY, body, attempt=attempt)

    def _mask_key(self, attempt: Attempt) -> MaskKey:
        """Fresh per round, purpose and attempt: one key for two attempts would reveal the
        difference of two masks to whoever sees both sums."""
        return MaskKey.from_secret_bytes(
            self.secrets.once(
                f"mask-{attempt.round_id}-{attempt.purpose}-{attempt.number}",
                lambda: MaskKey.generate().to_secret_bytes(),
            )
        )

    def send(
        self, attempt: Attempt, cohort: tuple[str, ...], vector: Released[npt.NDArray[np.int64]]
    ) -> None:
        """Step 4: mask for this attempt, seal, send.

        Raises: PeerError: missing or repeated mask keys, or no aggregate key.
        """
        require_released(vector, what=f"contribution to {attempt.purpose}")
        me, auditor = self.participant, self.participant.roster.auditor.id
        parameters = purpose_parameters(me.plan, attempt.purpose)
        mask_keys = me.index.all_at(Kind.MASK_KEY, attempt)
        raw_keys = check_mask_keys(cohort, mask_keys, attempt)
        digest = keys_digest({site: mask_keys[site] for site in cohort})
        opening_key = me.index.find(Kind.OPENING_KEY, sender=auditor, purpose=attempt.purpose)
        if opening_key is None:
            raise PeerError("the auditor has posted no opening key", reason="missing_message")
        key_message = opening_key

        def sealed() -> bytes:
            mask = pairwise_mask(
                self._mask_key(attempt),
                me.party,
                {site: raw for site, raw in raw_keys.items() if site != me.party},
                context=mask_context(me.plan, me.roster, attempt, digest),
                length=parameters.length,
                modulus=parameters.plain_modulus,
            )
            hidden = masked(
                vector.value,
                mask,
                bound=site_bound_of(me.plan, attempt.purpose),
                modulus=parameters.plain_modulus,
            )
            key = parse_public_key(me.payload(key_message), parameters)
            return seal(key, parameters, hidden)

        basis = basis_of(me.index, attempt, site=me.party)
        body = {
            "keys_digest": digest,
            "opening_key": opening_key.message_hash,
            "paid_by": vector.paid_by,
            "parameters_digest": parameters.digest,
            "rests_on": basis.message_hash,
        }
        me.post(Kind.CONTRIBUTION, body, sealed, attempt=attempt)

    def check_own_contribution(self, round_id: int, purpose: str) -> Envelope:
        """Step 5, the site's side: the signed sum must hold this site's own contribution.

        Returns: the secure aggregation.
        Raises: PeerError(reason="not_in_opening").
        """
        me = self.participant
        opened = me.index.opened(round_id, purpose)
        attempt = Attempt(round_id=round_id, purpose=purpose, number=opened.header.attempt)
        mine = me.index.at(Kind.CONTRIBUTION, attempt, sender=me.party)
        listed = parse_body(opened, OpenedBody).contributions.get(me.party)
        if mine is None or listed != mine.message_hash:
            raise attempt.fault(
                "the opened sum does not hold what this site sent",
                reason="not_in_opening",
                peer=me.roster.auditor.id,
            )
        return opened

    def opened(self, round_id: int, purpose: str) -> list[int]:
        """The opened sum, once it is clear that this site is in it.

        Raises: PeerError: not_in_opening, malformed, out_of_range, over_quota.
        """
        me = self.participant
        message = self.check_own_contribution(round_id, purpose)
        values = opened_values(me.payload(message), me.plan, purpose)
        sites = len(parse_body(message, OpenedBody).contributions)
        check_opened_range(values, me.plan, purpose, sites)
        return values

    def ask_scores(self, round_id: int, utilities: Released[FloatArray]) -> None:
        """Step 7: send the one query of a round.

        Args: utilities: (cells,) float64 in [-1, 1].
        """
        require_released(utilities, what="blind query")
        me, values = self.participant, utilities.value
        me.post(
            Kind.QUERY,
            {"cells": len(values)},
            lambda: self._scoring_key(round_id).encrypt(values),
            round_id=round_id,
            to=me.roster.coordinator.id,
        )

    def read_scores(self, round_id: int) -> FloatArray | None:
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
            return self._scoring_key(round_id).decrypt(me.payload(scores), me.plan.pool_size)
        except PeerError as error:
            if error.reason != "out_of_range":
                raise
            LOG.warning("round %d: %s; nothing is asked for in this round", round_id, error)
            return None

    def _scoring_key(self, round_id: int) -> ScoringKey:
        plan = self.participant.plan
        raw = self.secrets.once(
            f"scores-{round_id}",
            lambda: ScoringKey.generate(plan.allocation.cells, row_bound=ROW_BOUND).to_bytes(),
        )
        return ScoringKey.from_bytes(raw)

    def confidence_excess(self, round_id: int, learner: SiteLearner) -> Released[IntArray]:
        """The vector of step 10, one entry per pool sample; the same at every call.

        As the paths below, it is a function of the released SLM and the public pool alone:
        post-processing of the round's DP-SGD, which costs nothing and names the reservation that
        paid for it.
        """
        adapters = learner.released_adapters(round_id)

        def vector(_: object) -> IntArray:
            return np.array(learner.confidence_excess(round_id), dtype=np.int64)

        return post_process(adapters, vector, label=CONFIDENCE_EXCESS)

    def answer_inquiry(self, round_id: int, learner: SiteLearner) -> None:
        """Step 10: send the paths that reach the gold answer on what the coordinator asks about.

        Every site of the sum answers, whatever its own confidence excesses: who knows a sample
        shows in the answer only through the released model, never through staying away.

        Raises: PeerError: not_in_opening, malformed, bad_inquiry.
        """
        me = self.participant
        inquiry = me.index.find(Kind.INQUIRY, sender=me.roster.coordinator.id, round_id=round_id)
        if inquiry is None:
            raise LocalProtocolError(f"round {round_id}: an answer before the inquiry")
        samples = parse_inquiry(
            me.payload(inquiry),
            parse_body(inquiry, InquiryBody),
            plan=me.plan,
            opened=self.opened(round_id, CONFIDENCE_EXCESS),
        )
        adapters = learner.released_adapters(round_id)
        paths: Released[list[SiteRationale]] = post_process(
            adapters, lambda _: learner.solved(samples), label="site paths"
        )
        require_released(paths, what="site paths")
        me.post(
            Kind.SITE_PATHS,
            {"inquiry": inquiry.message_hash, "written": len(paths.value)},
            lambda: site_rationales_bytes(paths.value),
            round_id=round_id,
            to=me.roster.coordinator.id,
        )
