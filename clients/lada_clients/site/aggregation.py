"""A site's part in a secure aggregation: fresh keys, masks, sealing, and its own contribution.

What goes in is `Released`; nothing else is masked or sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt
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
from lada_protocol.wire.messages import OpenedBody, parse_body
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import PeerError
from lada_secure.privacy.released import Released, require_released


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAggregation:
    """Steps 2 and 4 for any purpose, and the site's own check of step 5."""

    participant: Participant
    secrets: SecretFolder

    def post_mask_key(self, attempt: Attempt) -> None:
        """Step 2: the public half of a key for this attempt alone."""
        body = {"public_key": self._mask_key(attempt).public_bytes.hex()}
        self.participant.post_at(Kind.MASK_KEY, attempt, body)

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
        me.post_at(Kind.CONTRIBUTION, attempt, body, sealed)

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
            raise PeerError(
                f"round {round_id}, {purpose}: the opened sum does not hold what this site sent",
                reason="not_in_opening",
                peer=me.roster.auditor.id,
                round_id=round_id,
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
