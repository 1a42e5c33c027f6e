"""LaDa's own data filter, sample by sample and for each pair of models (arXiv 2602.18749).

For every pair of an SLM and the LLM an exploitation network predicts what training on a sample will
bring, and an exploration network, from the first one's gradient, how far off that is; the samples
of the largest sum are chosen. The reward is the change of exp(-loss) that training on a sample
brought. The first round knows no reward and starts from clusters. Both directions have a filter:
what an SLM may learn from the LLM, and what the LLM may learn from an SLM.

What is ours where the paper is silent, or was not at hand: a pair's features (below), quotas of the
first round by the site's noised masses, the networks' size and their pull to the mean
(`lada_secure.allocation.reward_model`), the split of the LLM's budget over sites.

Nothing here is blind: whoever chooses sees both models' losses on every sample. All SLMs are
released, so that it costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lada_lab.arms.llm import LabLlm
from lada_lab.arms.pool_rules import Turn, answer_losses, path_losses
from lada_secure.allocation.gap import probability
from lada_secure.allocation.reward_model import RewardHistory, RoundObservations, forecast
from lada_secure.allocation.selection import cluster_quotas, pick, pick_by_cluster
from lada_secure.arrays import BoolArray, FloatArray, IntArray
from lada_secure.method.plan import split_pool, transfer_of
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import SiteState
from lada_secure.method.site_training import TrainedRound

# Of the embeddings that also make the clusters.
_TOPIC_FEATURES = 16


@dataclass(slots=True, kw_only=True)
class PairFilter:
    """The filter of one pair in one direction, with what it has learned so far.

    alpha: weight of exploration. seed: of the networks, and of lots and ties.
    """

    alpha: float
    seed: int
    history: RewardHistory = field(default_factory=RewardHistory)
    _shown: FloatArray | None = None

    def choose(
        self,
        features: FloatArray,
        available: BoolArray,
        *,
        clusters: IntArray,
        shares: FloatArray,
        quota: int,
        round_id: int,
    ) -> BoolArray:
        """Samples of the largest predicted reward, (n,) bool; by clusters where none was seen.

        Args: features: (n, F), see `pair_features`. clusters: (n,) public cluster of each sample.
            shares: (C,) of the first round's quota, by cluster.
        """
        self._shown = features
        if not self.history.rounds:
            quotas = cluster_quotas(
                shares,
                quota,
                available=np.bincount(clusters[available], minlength=len(shares)),
            )
            # By lot: rewards of alike samples would say little of all others.
            lots = np.random.default_rng([self.seed, round_id]).random(len(available))
            return pick_by_cluster(lots, available, clusters, quotas, seed=self.seed)
        found = forecast(self.history, features, seed=self.seed)
        promise = found.exploitation + self.alpha * found.exploration
        return pick(promise, available, quota=quota, seed=self.seed + round_id)

    def learn(self, samples: Sequence[int], rewards: FloatArray, *, round_id: int) -> None:
        """Remember what training brought on samples, by the features that they were chosen by."""
        if self._shown is None or not len(samples):
            return
        self.history = self.history.with_round(
            RoundObservations(
                round_id=round_id,
                cells=np.array(samples, dtype=np.int64),
                features=self._shown[list(samples)],
                rewards=np.clip(rewards, -1.0, 1.0),
                samples=np.ones(len(samples)),
            )
        )


@dataclass(slots=True, kw_only=True)
class PaperRule:
    """The filter from the LLM to every SLM, one for each site."""

    llm: LabLlm
    _topics: FloatArray | None = None
    _filters: dict[str, PairFilter] = field(default_factory=dict)

    def choose(self, turn: Turn) -> BoolArray:
        """See `PoolRule`."""
        plan, paths = turn.site.plan, self.llm.paths()
        if self._topics is None:
            self._topics = topic_features(self.llm.embeddings)
        turn.site.wear(turn.state)
        slm: FloatArray = np.full(plan.pool_size, np.inf)
        slm[list(paths.texts)] = path_losses(turn.site, paths.texts)
        return self._filter_of(turn).choose(
            pair_features(llm=paths.losses, slm=slm, topics=self._topics),
            turn.available & paths.solved,
            clusters=turn.site.pool_clusters,
            shares=turn.noised.shares,
            quota=plan.allocation.quota,
            round_id=turn.round_id,
        )

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """Rewards of the round's samples that were trained on."""
        trained, asked = set(done.trained_on), set(done.state.picks[turn.round_id])
        fresh = [one for one in done.state.rationales if one.pool_index in trained & asked]
        turn.site.wear(done.state)
        after = turn.site.losses([turn.site.example(one) for one in fresh])
        rewards = probability(after) - np.array([one.p for one in fresh])
        self._filter_of(turn).learn(
            [one.pool_index for one in fresh], rewards, round_id=turn.round_id
        )

    def _filter_of(self, turn: Turn) -> PairFilter:
        plan = turn.site.plan
        return self._filters.setdefault(
            turn.name, PairFilter(alpha=plan.allocation.exploration_weight, seed=plan.seed)
        )


@dataclass(slots=True, kw_only=True)
class PaperTransfer:
    """The filter from every SLM to the LLM, one for each site.

    Losses are on gold answers: nobody has written a rationale yet.
    """

    llm: LabLlm
    _filters: dict[str, PairFilter] = field(default_factory=dict)
    _before: dict[tuple[str, int], float] = field(default_factory=dict)

    def ask(
        self, sites: Mapping[str, tuple[SiteContext, SiteState]], round_id: int
    ) -> dict[str, tuple[int, ...]]:
        """What to ask each site about: pool indices, its part of the budget of inquiries."""
        plan = self.llm.plan
        candidates: BoolArray = np.zeros(plan.pool_size, dtype=np.bool_)
        candidates[list(split_pool(plan).candidates)] = True
        topics = topic_features(self.llm.embeddings)
        asked = {}
        for name, (site, state) in sites.items():
            site.wear(state)
            pair = self._filter_of(name)
            # What the LLM has learned from this site already it is not asked about again.
            left = candidates.copy()
            left[[int(at) for seen in pair.history.rounds for at in seen.cells]] = False
            chosen = pair.choose(
                pair_features(llm=self.llm.answer_losses(), slm=answer_losses(site), topics=topics),
                left,
                clusters=site.pool_clusters,
                shares=np.ones(self.llm.clusters.count),
                quota=transfer_of(plan).budget // len(sites),
                round_id=round_id,
            )
            asked[name] = tuple(int(at) for at in np.flatnonzero(chosen))
        return asked

    def before(self, written: Mapping[str, Mapping[int, str]]) -> None:
        """Note how likely the LLM finds what the sites wrote, before it learns from any of it."""
        self._before = {
            (name, at): p
            for name, texts in written.items()
            for at, p in zip(texts, self._probabilities(texts), strict=True)
        }

    def after(self, written: Mapping[str, Mapping[int, str]], round_id: int) -> None:
        """Learn what training brought; nothing, where the hold-out made the LLM stay."""
        for name, texts in written.items():
            rewards = self._probabilities(texts) - [self._before[name, at] for at in texts]
            self._filter_of(name).learn(list(texts), rewards, round_id=round_id)

    def _probabilities(self, texts: Mapping[int, str]) -> FloatArray:
        return probability(self.llm.losses_on(texts))

    def _filter_of(self, name: str) -> PairFilter:
        plan = self.llm.plan
        return self._filters.setdefault(
            name, PairFilter(alpha=plan.allocation.exploration_weight, seed=plan.seed)
        )


def topic_features(embeddings: npt.ArrayLike) -> FloatArray:
    """What samples are about, (n, 16): the main directions of their embeddings, within [-1, 1].

    Fewer columns where the pool or its embeddings have fewer.
    """
    points = np.asarray(embeddings, dtype=np.float64)
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:_TOPIC_FEATURES].T
    topics: FloatArray = found / max(float(np.abs(found).max(initial=0.0)), 1e-12)
    return topics


def pair_features(*, llm: FloatArray, slm: FloatArray, topics: FloatArray) -> FloatArray:
    """What a pair's filter sees of each sample, (n, 3 + topics), all in [-1, 1].

    Columns: p = exp(-loss) of the LLM, of the SLM, their difference (the learnability gap), topics.

    Args: llm, slm: (n,) losses, nats per token, +inf for what the LLM cannot solve.
    """
    sure, own = probability(llm), probability(slm)
    return np.concatenate([np.stack([sure, own, sure - own], axis=1), topics], axis=1)
