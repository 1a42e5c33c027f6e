"""One site's round but for its training: statistics, picks, and what the LLM may learn from it.

The site's service drives these steps by signed messages, the laboratory in process. Each takes a
`SiteState` and gives a value or the next state; nothing here knows of files, sockets or clocks.
What may leave a site is `Released`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.allocation.confidence_excess import excess_over_threshold
from lada_secure.allocation.measurement import measured_records
from lada_secure.allocation.statistics import MeasuredRecord, NoisedStatistics, release_statistics
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.dpsgd.distillation import released_adapters
from lada_secure.method.mechanisms import (
    privacy_parameters,
    statistics_parameters,
    statistics_release,
)
from lada_secure.method.plan import split_pool, transfer_of
from lada_secure.method.site_allocation import choose_cells, pick_samples
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import SiteState
from lada_secure.method.training import trainer_settings, training_release
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import answer_pool
from lada_secure.models.rationales import generate_rationales
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

    return release_statistics(
        measured,
        parameters=statistics_parameters(site.plan),
        book=site.book,
        spec=statistics_release(site.plan, round_id),
    )


def pick(
    site: SiteContext, state: SiteState, round_id: int, noised: NoisedStatistics, scores: FloatArray
) -> SiteState:
    """Choose what to ask for, once.

    Args: scores: (n,) that came back for the round's utilities.
    """
    if round_id in state.picks:
        return state
    return state.with_picks(
        round_id,
        pick_samples(
            site.plan,
            state,
            noised,
            choose_cells(site.plan, state, noised).utilities,
            scores,
            pool_clusters=site.pool_clusters,
            round_id=round_id,
        ),
    )


def site_adapters(site: SiteContext, state: SiteState, round_id: int) -> Released[AdapterWeights]:
    """This round's adapters, after training; the same release at every call, also later.

    Raises: LedgerError: the round was not trained.
    """
    site.wear(state)
    return released_adapters(
        site.lm,
        privacy=privacy_parameters(site.plan),
        settings=trainer_settings(site.plan, site.execution, round_id=round_id),
        book=site.book,
        spec=training_release(site.plan, round_id),
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
        attempts=1,
        batch_size=site.execution.batch_size,
    )
    return {indices[one.sample_id]: one.path for one in written.paths}
