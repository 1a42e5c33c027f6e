"""What a site remembers between the steps of a study: released values and public ones alone.

A state is a value. Every step takes one and returns the next, so that a step that was interrupted
is simply taken again from the state before it; what was paid for comes out of the ledger then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.reward_model import RewardHistory
from lada_secure.models.adapters import AdapterWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRationale:
    """One rationale of the LLM, checked against the pool. cell: of the grid."""

    pool_index: int
    cell: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRationale:
    """A rationale that a site was given and asked for.

    p: exp(-loss) under the site's SLM, in [0, 1]; see `site_round` for when it is measured.
    drawn: what the SLM wrote for the same question before any training, to compare with.
    gain: by how much the newest DP reference model favours it, nats per token; None: not judged.
    """

    pool_index: int
    cell: int
    text: str
    p: float
    drawn: tuple[str, ...] = ()
    gain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """One site during one study. All numbers of samples are pool indices.

    picks: by round, what was asked for. fallbacks: by round, of those that fell back. trained:
    rounds that ended with training. rationales: by ascending pool index. history: of the reward
    model. valuations: of all rounds. excess: by round, the confidence excess that was sent.
    student: the SLM's adapters, None before any training. dp_reference: what DP-SGD released last,
    where the plan has a guide.
    """

    picks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    fallbacks: Mapping[int, Fallback] = field(default_factory=dict)
    trained: tuple[int, ...] = ()
    rationales: tuple[KnownRationale, ...] = ()
    history: RewardHistory = field(default_factory=RewardHistory)
    valuations: tuple[ClusterValuation, ...] = ()
    excess: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    student: AdapterWeights | None = None
    dp_reference: AdapterWeights | None = None

    def picked_before(self, round_id: int) -> frozenset[int]:
        """What was asked for in earlier rounds that this site has trained in.

        Only there was the demand opened with this site in it, and so the scores checked. Picks by
        other scores must not be seen in what is asked for later: a coordinator that sent a ladder,
        and then left this site out of the sum, would read them there.
        """
        return frozenset(
            pool_index
            for earlier in self.trained
            if earlier < round_id
            for pool_index in self.picks.get(earlier, ())
        )

    def with_picks(self, round_id: int, picks: Sequence[int]) -> SiteState:
        """Remember what is asked for in a round."""
        return replace(self, picks={**self.picks, round_id: tuple(picks)})

    def with_fallback(self, round_id: int, found: Fallback | None) -> SiteState:
        """Remember that a round falls back; the same state where it does not."""
        if found is None:
            return self
        return replace(self, fallbacks={**self.fallbacks, round_id: found})

    def without_pool(self, round_id: int) -> bool:
        """Whether a round does without the pool."""
        found = self.fallbacks.get(round_id)
        return found is not None and found.action == "no_pool"

    def with_excess(self, round_id: int, vector: Sequence[int]) -> SiteState:
        """Remember a round's confidence excess: a retry sends the same vector."""
        return replace(self, excess={**self.excess, round_id: tuple(vector)})
