"""How a site draws samples within its quota: the best, by lot, or in the pool's mix of answers.

All randomness here is public: it is fixed by the plan's seed and the round, the same for all sites,
and a site that is started again draws the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.gap import SampleValue, SlmKnowledge, sample_values
from lada_secure.allocation.selection import cluster_quotas, pick_by_cluster, split_quota
from lada_secure.arrays import BoolArray, FloatArray, IntArray, float_vector
from lada_secure.errors import ParameterError
from lada_secure.ranges import within

DrawName: TypeAlias = Literal["top", "soft", "stratified"]

# Stratum of the answers that only one sample has.
_SINGLE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRule:
    """What a sample is worth, how samples are drawn by that, and how many known ones there are.

    known_share: of the quota, in [0, 1], kept for samples that the SLM answers rightly already. A
    set of nothing but what it gets wrong is not like the pool, and a student of it forgets.
    """

    value: SampleValue = "score"
    draw: DrawName = "top"
    known_share: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ParameterError: a share outside [0, 1]."""
        within(0.0, 1.0, known_share=self.known_share)

    @property
    def reads_slm(self) -> bool:
        """Whether the SLM has to answer the pool first."""
        return self.value != "score" or self.known_share > 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Eligible:
    """What a site may ask for in a round, and how its quota is split.

    passing: (n,) bool, samples that were not asked for before and whose scores pass. groups: (n,)
    the public cluster of each sample, or all 0 where the quota is not split. shares: of the groups,
    any scale. strata: (n,) from `answer_strata`. ties: seed of the shuffle that breaks them.
    seed: of the lots.
    """

    passing: BoolArray
    groups: IntArray
    shares: FloatArray
    strata: IntArray
    ties: int
    seed: tuple[int, ...]

    def quotas(self, candidates: BoolArray, quota: int) -> IntArray:
        """The quota split over groups, as far as they have candidates."""
        rooms = np.bincount(self.groups[candidates], minlength=len(self.shares))
        return cluster_quotas(self.shares, quota, available=rooms)


def draw_samples(
    rule: SampleRule,
    scores: FloatArray,
    eligible: Eligible,
    *,
    quota: int,
    slm: SlmKnowledge | None = None,
) -> BoolArray:
    """Which samples a site asks for, (n,) bool with at most `quota` True.

    First `rule.known_share` of the quota, rounded, from samples that the SLM knows, by their
    scores; then the rest by their values, known or not. What is worth nothing is not asked for, so
    that there may be fewer than the quota; by "score" alone every passing sample may be.

    Args: scores: (n,) as read. slm: needed where `rule.reads_slm`.
    Raises: ParameterError: the SLM's answers are missing.
    """
    values = sample_values(rule.value, scores, slm)
    picked = np.zeros(len(values), dtype=np.bool_)
    kept = round(rule.known_share * quota)
    if kept > 0:
        if slm is None:
            raise ParameterError("known_share: expected the SLM's answers to the pool, got nothing")
        plain = sample_values("score", scores)
        known = eligible.passing & slm.right
        picked = _drawn(rule.draw, plain, known, eligible, quota=kept, lot=1)
    rest = eligible.passing & ~picked
    if rule.value != "score":
        rest &= values > 0.0
    left = quota - int(picked.sum())
    return picked | _drawn(rule.draw, values, rest, eligible, quota=left, lot=0)


def _drawn(
    draw: DrawName,
    values: FloatArray,
    candidates: BoolArray,
    eligible: Eligible,
    *,
    quota: int,
    lot: int,
) -> BoolArray:
    quotas, seed = eligible.quotas(candidates, quota), (*eligible.seed, lot)
    if draw == "stratified":
        return pick_stratified(values, candidates, eligible, quotas, seed=seed)
    order = soft_order(values, seed=seed) if draw == "soft" else values
    return pick_by_cluster(order, candidates, eligible.groups, quotas, seed=eligible.ties)


def soft_order(values: npt.ArrayLike, *, seed: Sequence[int]) -> FloatArray:
    """An order whose first k are k samples drawn by lot, without replacement, (n,) float64.

    The next one drawn is always sample i with a probability of its value over the values of all
    that are left. That is a race: i arrives after an exponential time of rate value_i, and the
    first k to arrive are drawn (Efraimidis and Spirakis 2006, algorithm A). They have the k largest
    of log value + Gumbel noise. Any part of the samples races as if alone.

    Args: values: (n,) >= 0. Those of 0 are -inf, behind all others.
    Raises: ParameterError: negative values, or none.
    """
    rates = float_vector("values", values, low=0.0)
    times = np.random.default_rng(seed).standard_exponential(len(rates))
    order: FloatArray = np.full(len(rates), -np.inf)
    runs = rates > 0.0
    order[runs] = np.log(rates[runs]) - np.log(np.maximum(times[runs], np.finfo(np.float64).tiny))
    return order


def answer_strata(answers: Sequence[str]) -> IntArray:
    """Number samples by their gold answers, (n,) int64 in [0, n]: equal answers share a number.

    Answers that occur once in the pool share stratum 0, so that open questions whose answers are
    all different are not split at all.
    """
    counts = Counter(answers)
    several = (answer for answer, count in counts.items() if count > 1)
    numbers = {answer: number for number, answer in enumerate(several, start=_SINGLE + 1)}
    return np.array([numbers.get(answer, _SINGLE) for answer in answers], dtype=np.int64)


def pick_stratified(
    values: FloatArray,
    candidates: BoolArray,
    eligible: Eligible,
    quotas: IntArray,
    *,
    seed: tuple[int, ...],
) -> BoolArray:
    """Pick the best of each gold answer, as many of it as its share says, (n,) bool.

    An answer's share of a group's quota is its share of all that passes there, whether it is worth
    something or not. What an SLM gets wrong is often wrong in one direction (an answer that it
    never gives): by value alone a student would be taught that direction with the content.

    Args: candidates: (n,) among the passing. quotas: (G,) per group.
    """
    strata = int(eligible.strata.max(initial=0)) + 1
    picked = np.zeros(len(values), dtype=np.bool_)
    for group in np.flatnonzero(quotas).tolist():
        here = eligible.groups == group
        given = stratum_quotas(
            np.bincount(eligible.strata[eligible.passing & here], minlength=strata),
            int(quotas[group]),
            available=np.bincount(eligible.strata[candidates & here], minlength=strata),
            seed=(*seed, group),
        )
        picked |= pick_by_cluster(
            values, candidates & here, eligible.strata, given, seed=eligible.ties
        )
    return picked


def stratum_quotas(
    shares: npt.ArrayLike, quota: int, *, available: npt.ArrayLike, seed: Sequence[int]
) -> IntArray:
    """Split a quota over strata in proportion to their shares, by systematic sampling.

    Each stratum gets its exact part rounded up or down, and on average over seeds exactly its part
    (Madow 1949). Rounding by the largest remainder would give a quota of 4 to the same 4 answers
    in every cluster and round.

    Args: shares: (S,) >= 0. available: (S,) samples that each stratum has. seed: of the one random
        start. See `split_quota`.
    """
    start = float(np.random.default_rng(seed).random())

    def systematic(weights: FloatArray, left: int) -> IntArray:
        reach = np.cumsum(weights)
        # Strata lie end to end on a line of length `left`; a tick at every whole step from a random
        # start picks the stratum that it falls into.
        ends = np.minimum(np.floor(left * (reach / reach[-1]) + start), left).astype(np.int64)
        step: IntArray = np.diff(ends, prepend=0)
        return step

    return split_quota("stratum", shares, quota, available=available, whole=systematic)
