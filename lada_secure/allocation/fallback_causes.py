"""Why a site should not follow its own choice of samples, or do without the pool.

A choice is worth no more than what it rests on. Where that is nothing, a site falls back to what
is no worse than having no pool, and says so:

| cause | found from | what is done instead |
|---|---|---|
| one_topic | the plan's clusters | any topic |
| few_records | the noised masses beside their noise | any topic |
| llm_mostly_wrong | scores, and rationales that did not come | no pool |
| llm_weaker | the same, beside the untaught SLM's own answers | no pool |
| known_already | the untaught SLM's answers, and the noised masses | no pool |

All of it is public, the LLM's own or released under differential privacy, so that a fallback costs
no privacy. The *untaught* SLM is the one from before any training: what a student knows after it
was taught the pool says nothing against the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.allocation.selection import SCORE_STEP, read_scores
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.arrays import BoolArray, FloatArray, IntArray, float_vector, index_vector
from lada_secure.ranges import within

# "Mostly wrong" is wrong on more than half.
LEAST_LLM_RIGHT: Final = 0.5
# Of what the LLM solves. Below one sample in ten there is too little to gain for the drift that
# repeating the rest would bring.
MOST_KNOWN: Final = 0.9
# Confidence of an SLM that knows its right answer, and has not hit on it.
SURE: Final = 0.5
_SAMPLING_STDS = 2.0
_FALSE_SIGNAL = 1e-4
# A score that is at least so many steps wherever the LLM is right is 0 only where it is wrong.
_CLEAR_STEPS = 4


def unfounded_choice(noised: NoisedStatistics) -> Fallback | None:
    """Why topics should decide nothing; None where the statistics tell topics apart.

    The mean square of the noised masses is that of the noise where there are no records, and over
    it chi-squared with as many degrees of freedom as there are topics. It must be more than noise
    alone gives once in ten thousand rounds, and at least twice the noise's, so that the masses
    weigh as much as the noise in them.
    """
    from scipy.special import chdtri

    topics = noised.parameters.clusters
    if topics == 1:
        return Fallback(
            action="any_topic",
            cause="one_topic",
            because="all of the pool is one topic, so that there is none to prefer",
        )
    needed = max(2.0, float(chdtri(topics, _FALSE_SIGNAL)) / topics)
    found = noised.signal
    if found >= needed:
        return None
    return Fallback(
        action="any_topic",
        cause="few_records",
        because=(
            f"too few records for the noise on them: over {topics} topics the mean square of the "
            f"noised masses is {found:.1f} times the noise's, expected at least {needed:.1f}"
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LlmOutcomes:
    """On which pool samples a site knows the LLM to be right, and on which wrong.

    right, wrong: (n,) bool, never both; neither where it cannot be told.
    """

    right: BoolArray
    wrong: BoolArray

    @property
    def told(self) -> int:
        """Samples of which it is known."""
        return int(self.right.sum() + self.wrong.sum())


def outcomes_by_score(
    scores: npt.ArrayLike,
    utilities: npt.ArrayLike,
    grid: CellGrid,
    *,
    pool_clusters: npt.ArrayLike,
    confident: BoolArray,
) -> LlmOutcomes:
    """What decrypted scores say of the LLM.

    A sample's score is the LLM's confidence times the utilities of its topics in its own bin of
    difficulty, which the site does not know. Its nearest topic counts for at least 1/C of it. Where
    even the least such score would be seen, a score of 0 is a confidence of 0.

    Args: scores: (n,) decrypted. utilities: (d,) that were encrypted. pool_clusters: (n,).
        confident: (n,) bool, where the LLM's confidence says whether its answer is right; see
        `lada_secure.method.llm_round.view_pool`.
    """
    worth = float_vector("utilities", utilities, length=grid.cells)
    places = index_vector("clusters of samples", pool_clusters, below=grid.clusters)
    exact = read_scores(float_vector("scores", scores, length=len(places)))
    by_topic = worth.reshape(grid.clusters, grid.bins).min(axis=1)
    nearest = 1.0 / grid.clusters
    least = nearest * by_topic + (1.0 - nearest) * min(float(worth.min()), 0.0)
    clear = confident & (least[places] >= _CLEAR_STEPS * SCORE_STEP)
    right = exact >= SCORE_STEP
    return LlmOutcomes(right=clear & right, wrong=clear & ~right)


def weak_llm(
    outcomes: LlmOutcomes, slm_right: BoolArray, *, least_right: float = LEAST_LLM_RIGHT
) -> Fallback | None:
    """Why nothing should be learned from this LLM; None where nothing speaks against it.

    Args: slm_right: (n,) of the untaught SLM. least_right: share of samples that the LLM must be
        right on, in [0, 1]; 0 for none.
    """
    within(0.0, 1.0, least_right=least_right)
    told, right = outcomes.told, int(outcomes.right.sum())
    if _highest_share(right, told) < least_right:
        return Fallback(
            action="no_pool",
            cause="llm_mostly_wrong",
            because=(
                f"the LLM is right on {right} of {told} pool samples ({right / told:.0%}), "
                f"expected at least {least_right:.0%}"
            ),
        )
    # Samples on which both are right, or both wrong, say nothing of who is better (McNemar 1947).
    llm_alone = int((outcomes.right & ~slm_right).sum())
    slm_alone = int((outcomes.wrong & slm_right).sum())
    if slm_alone - llm_alone > _SAMPLING_STDS * math.sqrt(slm_alone + llm_alone):
        return Fallback(
            action="no_pool",
            cause="llm_weaker",
            because=(
                f"the LLM is weaker than the SLM: of {told} pool samples the LLM alone is right on "
                f"{llm_alone}, the SLM alone on {slm_alone}"
            ),
        )
    return None


def nothing_to_learn(
    outcomes: LlmOutcomes,
    slm: SlmKnowledge,
    *,
    pool_clusters: IntArray,
    shares: FloatArray | None,
) -> Fallback | None:
    """Why the pool has nothing for this SLM; None where it has.

    It knows a sample that it answers rightly and surely. What the LLM is known to get wrong is not
    counted, because nobody would be taught it.

    Args: slm: the untaught one. shares: (C,) of the site's noised mass, so that a topic counts by
        how much it matters here; None to count every sample alike.
    """
    teachable = ~outcomes.wrong
    known = slm.right & (slm.confidence >= SURE)
    weights = np.ones(len(known))
    if shares is not None:
        each = np.bincount(pool_clusters[teachable], minlength=len(shares))
        weights = (shares / np.maximum(each, 1))[pool_clusters]
    total = float(weights[teachable].sum())
    if total <= 0.0:
        return None
    share = float(weights[teachable & known].sum()) / total
    if share < MOST_KNOWN:
        return None
    return Fallback(
        action="no_pool",
        cause="known_already",
        because=(
            f"the SLM knows {share:.0%} already of what the pool could teach it in this site's "
            f"topics, and from {MOST_KNOWN:.0%} on there is too little to gain"
        ),
    )


def _highest_share(right: int, told: int) -> float:
    """Upper end of Wilson's interval for a share, 1 where nothing was told (Wilson 1927)."""
    if not told:
        return 1.0
    z2 = _SAMPLING_STDS**2
    share = right / told
    spread = math.sqrt(share * (1.0 - share) / told + z2 / (4.0 * told**2))
    return (share + z2 / (2.0 * told) + _SAMPLING_STDS * spread) / (1.0 + z2 / told)
