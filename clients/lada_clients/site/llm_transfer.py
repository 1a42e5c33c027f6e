"""A site's part in the uplink: what it knows better than the bar, and the paths it is asked for.

Both are functions of the released SLM and the public pool alone: post-processing of the round's
DP-SGD, which costs nothing and names the reservation that paid for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lada_clients.net.participant import Participant
from lada_clients.site.aggregation import SiteAggregation
from lada_clients.site.learner import SiteLearner
from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import SiteRationale, parse_inquiry, site_rationales_bytes
from lada_protocol.wire.messages import InquiryBody, parse_body
from lada_secure.arrays import IntArray
from lada_secure.errors import LocalProtocolError
from lada_secure.method.plan import CONFIDENCE_EXCESS
from lada_secure.privacy.released import Released, post_process, require_released


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTransfer:
    """Step 10 at a site, during one study."""

    participant: Participant
    opening: SiteAggregation
    learner: SiteLearner

    def excess_over_threshold(self, round_id: int) -> Released[IntArray]:
        """The vector of the round, one entry per pool sample; the same at every call."""
        adapters = self.learner.released_adapters(round_id)

        def vector(_: object) -> IntArray:
            return np.array(self.learner.confidence_excess(round_id), dtype=np.int64)

        return post_process(adapters, vector, label=CONFIDENCE_EXCESS)

    def answer(self, round_id: int) -> None:
        """Send the paths that reach the gold answer on what the coordinator asks about.

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
            opened=self.opening.opened(round_id, CONFIDENCE_EXCESS),
        )
        adapters = self.learner.released_adapters(round_id)
        paths: Released[list[SiteRationale]] = post_process(
            adapters, lambda _: self.learner.solved(samples), label="site paths"
        )
        require_released(paths, what="site paths")
        me.post(
            Kind.SITE_PATHS,
            {"inquiry": inquiry.message_hash, "written": len(paths.value)},
            lambda: site_rationales_bytes(paths.value),
            round_id=round_id,
            to=me.roster.coordinator.id,
        )
