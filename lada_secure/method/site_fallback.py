"""Whether a site does without the pool in a round: before it asks, and once rationales came.

The decisions are in `lada_secure.allocation.fallback_causes`; here is what they are made from.
Nothing of it reads a private record beyond what this round has released already.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.fallback_causes import (
    LEAST_LLM_RIGHT,
    LlmOutcomes,
    nothing_to_learn,
    outcomes_by_score,
    weak_llm,
)
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import strategy
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.method.mechanisms import cell_grid
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_allocation import CellChoice
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import untaught_knowledge


def fallback_before_asking(
    site: SiteContext, choice: CellChoice, noised: NoisedStatistics, scores: FloatArray
) -> Fallback | None:
    """Why a site asks for nothing, or for any topic; None where it follows its choice.

    Args: scores: (n,) that came back for the choice's utilities.
    """
    plan = site.plan
    if plan.allocation.fallback == "off":
        return None
    slm = untaught_knowledge(site)
    outcomes = outcomes_by_score(
        scores,
        choice.utilities,
        cell_grid(plan),
        pool_clusters=site.pool_clusters,
        confident=_writes_first(site),
    )
    no_pool = weak_llm(outcomes, slm.right, least_right=least_llm_right(plan))
    if no_pool is None:
        at_random = strategy(plan.allocation.strategy).sample_order == "random"
        no_pool = nothing_to_learn(
            outcomes,
            slm,
            pool_clusters=site.pool_clusters,
            shares=None if at_random or choice.fallback else noised.shares,
        )
    return no_pool or choice.fallback


def fallback_after_writing(
    site: SiteContext, picks: Collection[int], came: Collection[int], demanded: int | None
) -> Fallback | None:
    """Why nothing is learned from what came, where only that shows what the LLM can do.

    An LLM that chooses before it writes is found wrong when it writes. What a site asked for and
    did not get says so, if the LLM has tried everything that any site wants.

    Args: picks: pool indices that were asked for. came: those of all rationales of the round.
        demanded: how many samples any site wants; None where that is not known.
    """
    plan = site.plan
    if plan.allocation.fallback == "off" or demanded is None or demanded > plan.paths.budget:
        return None
    asked, written = np.zeros((2, len(site.pool)), dtype=np.bool_)
    asked[list(picks)] = True
    written[list(came)] = True
    asked &= ~_writes_first(site)
    return weak_llm(
        LlmOutcomes(right=asked & written, wrong=asked & ~written),
        untaught_knowledge(site).right,
        least_right=least_llm_right(plan),
    )


def least_llm_right(plan: MethodPlan) -> float:
    """Share of pool samples that the LLM must be right on."""
    named = plan.allocation.least_llm_right
    return LEAST_LLM_RIGHT if named is None else named


def _writes_first(site: SiteContext) -> BoolArray:
    """(n,) samples that a model must write for before its answer is known."""
    form = site.lm.form
    return np.array([form.writes_first(sample.choices) for sample in site.pool], dtype=np.bool_)
