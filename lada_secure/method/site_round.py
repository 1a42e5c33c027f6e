"""One site's round but for its training: statistics, picks, and what the LLM may learn from it.

The site's service drives these steps by signed messages, the laboratory in process. Each takes a
`SiteState` and gives a value or the next state; nothing here knows of files, sockets or clocks.
What may leave a site is `Released`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.allocation.confidence_excess import excess_over_threshold
from lada_secure.allocation.measurement import measured_records
from lada_secure.allocation.statistics import (
    MeasuredRecord,
    NoisedStatistics,
    release_statistics,
    statistics_spec,
)
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.dpsgd.distillation import released_adapters, training_spec
from lada_secure.method.mechanisms import (
    privacy_parameters,
    round_release,
    statistics_parameters,
)
from lada_secure.method.plan import split_pool, transfer_of
from lada_secure.method.site_allocation import pick_samples
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_fallback import fallback_before_asking
from lada_secure.method.site_knowledge import site_choice, slm_knowledge
from lada_secure.method.site_state import SiteState
from lada_secure.method.training import trainer_settings
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import answer_pool
from lada_secure.models.rationales import GREEDY, generate_rationales
from lada_secure.privacy.ledger.terms import Reservation
from lada_secure.privacy.released import Released


def site_statistics(
    site: SiteContext, state: SiteState, round_id: int
) -> Released[NoisedStatistics]:
    """This round's noised statistics under the SLM as it is; the same value at every call."""

    def measured(paid: Reservation) -> list[tuple[MeasuredRecord, ...]]:
        site.wear(state)
        return measured_records(
            site.lm,
            site.records.units(paid),
            clusters=site.clusters,
            embedder=site.embedder,
            batch_size=site.execution.batch_size,
        )

    parameters = statistics_parameters(site.plan)
    return release_statistics(
        measured,
        parameters=parameters,
        book=site.book,
        spec=round_release(site.plan, round_id, statistics_spec, parameters),
    )


def pick(
    site: SiteContext, state: SiteState, round_id: int, noised: NoisedStatistics, scores: FloatArray
) -> SiteState:
    """Choose what to ask for, once; nothing where the site does without the pool.

    Args: scores: (n,) that came back for the round's utilities.
    """
    if round_id in state.picks:
        return state
    choice = site_choice(site, state, noised)
    # Before anything is decided: how long it takes must not hang on the scores.
    slm = slm_knowledge(site, state)
    fallback = fallback_before_asking(site, choice, noised, scores)
    if fallback is not None and fallback.action == "no_pool":
        return state.with_fallback(round_id, fallback).with_picks(round_id, ())
    picks = pick_samples(
        site.plan,
        state,
        noised,
        choice.utilities,
        scores,
        pool_clusters=site.pool_clusters,
        round_id=round_id,
        slm=slm,
    )
    return state.with_fallback(round_id, fallback).with_picks(round_id, picks)


def site_adapters(site: SiteContext, state: SiteState, round_id: int) -> Released[AdapterWeights]:
    """This round's adapters, after training; the same release at every call, also later.

    Raises: LedgerError: the round was not trained.
    """
    site.wear(state)
    privacy = privacy_parameters(site.plan)
    return released_adapters(
        site.lm,
        privacy=privacy,
        settings=trainer_settings(site.plan, site.execution, round_id=round_id),
        book=site.book,
        spec=round_release(site.plan, round_id, training_spec, privacy),
    )


def confidence_excess(site: SiteContext, state: SiteState) -> IntArray:
    """By how much the SLM's confidence in the gold answers passes the plan's bar, (n,)."""
    uplink, candidates = transfer_of(site.plan), split_pool(site.plan).candidates
    site.wear(state)
    answers = answer_pool(
        site.lm,
        [site.pool[at] for at in candidates],
        batch_size=site.execution.batch_size,
        max_new_tokens=site.plan.paths.max_new_tokens,
    )
    return excess_over_threshold(
        answers.confidence,
        candidates,
        pool_size=site.plan.pool_size,
        threshold=uplink.bar,
        clip=uplink.clip,
        scale=uplink.integer_scale,
    )


def solved(site: SiteContext, state: SiteState, asked: Sequence[int]) -> dict[int, str]:
    """Greedy rationales of the SLM that reach the gold answer, by pool index.

    Args: asked: pool indices.
    """
    indices = {site.pool[at].sample_id: at for at in asked}
    site.wear(state)
    written = generate_rationales(
        site.lm,
        [site.pool[at] for at in asked],
        max_new_tokens=site.plan.paths.max_new_tokens,
        sampling=GREEDY,
        batch_size=site.execution.batch_size,
    )
    return {indices[one.sample_id]: one.path for one in written.paths}
