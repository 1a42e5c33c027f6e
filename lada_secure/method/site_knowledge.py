"""What a site's SLM makes of the public pool, and what the site therefore wants of it.

Reads the pool and models that are public or were released, so that it costs no privacy. The whole
pool is answered, whatever a site may ask for: the time that it takes says nothing of its scores.
"""

from __future__ import annotations

import numpy as np

from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.arrays import FloatArray
from lada_secure.method.mechanisms import reads_slm
from lada_secure.method.plan import ReferenceModelPlan
from lada_secure.method.site_allocation import CellChoice, choose_cells
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import SiteState
from lada_secure.models.adapters import load_adapters
from lada_secure.models.confidence import answer_pool
from lada_secure.models.examples import RationaleExample


def untaught_knowledge(site: SiteContext) -> SlmKnowledge:
    """What the SLM made of every pool sample before any training; asked once and kept.

    Afterwards the model wears the adapters from before any training.
    """
    if site.untaught is None:
        load_adapters(site.lm, site.reference)
        site.untaught = _answers(site)
    return site.untaught


def slm_knowledge(site: SiteContext, state: SiteState) -> SlmKnowledge | None:
    """What the SLM as it is makes of every pool sample; None where the plan does not read it.

    A function of the state and the pool: a site that was interrupted gets the same. Several steps
    of a round need it, and it is kept until the SLM is another one.
    """
    if not reads_slm(site.plan):
        return None
    if state.student is None:
        return untaught_knowledge(site)
    if site.taught is None or site.taught[0] is not state.student:
        site.wear(state)
        site.taught = (state.student, _answers(site))
    return site.taught[1]


def replayed(site: SiteContext, guide: ReferenceModelPlan) -> tuple[RationaleExample, ...]:
    """What pool training repeats: the questions that the SLM answered rightly before any training.

    With the paths that it wrote itself; none where the plan has no replay. Afterwards the model may
    wear other adapters.
    """
    if guide.replay_batch_size is None:
        return ()
    slm = untaught_knowledge(site)
    return tuple(
        RationaleExample(
            example_id=site.pool[at].sample_id,
            prompt=site.prompt(at),
            path=slm.paths[at],
            rejected=None,
        )
        for at in np.flatnonzero(slm.right).tolist()
    )


def site_choice(site: SiteContext, state: SiteState, noised: NoisedStatistics) -> CellChoice:
    """What every cell is worth to a site in this round; see `choose_cells`."""
    slm = slm_knowledge(site, state)
    lacking = None if slm is None else lacking_by_topic(site, slm)
    return choose_cells(site.plan, state, noised, lacking=lacking)


def lacking_by_topic(site: SiteContext, slm: SlmKnowledge) -> FloatArray:
    """How much of each topic the SLM lacks, (C,) in [0, 1]: the mean of one less its confidence.

    Confidence is in the gold answers of the topic's pool samples; 0 for a topic without any.
    """
    topics = site.plan.allocation.clusters
    counts = np.bincount(site.pool_clusters, minlength=topics)
    lacks = np.bincount(site.pool_clusters, weights=1.0 - slm.confidence, minlength=topics)
    lacking: FloatArray = lacks / np.maximum(counts, 1)
    return lacking


def _answers(site: SiteContext) -> SlmKnowledge:
    answers = answer_pool(
        site.lm,
        site.pool,
        batch_size=site.execution.batch_size,
        max_new_tokens=site.plan.paths.max_new_tokens,
    )
    return SlmKnowledge(right=answers.right, confidence=answers.confidence, paths=answers.paths)
