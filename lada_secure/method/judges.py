"""Which received rationales agree with the private records: a DP reference model, and valuation.

The DP reference model (`guide` on the wire) is what DP-SGD released. Judging with it is
post-processing, on public texts alone. Data valuation (`trials` on the wire) is a release of its
own: what students of each cluster's rationales make of the private records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_secure.allocation.agreement import agreeing_rationales
from lada_secure.allocation.data_valuation import (
    ClusterValuation,
    cluster_valuations,
    groups_to_value,
    useful_rationales,
)
from lada_secure.allocation.measurement import measured_gains, valuation_student
from lada_secure.allocation.valuation_gains import release_gains, valuation_spec
from lada_secure.arrays import BoolArray
from lada_secure.method.mechanisms import cell_grid, round_release, valuation_parameters
from lada_secure.method.plan import MethodPlan, ReferenceModelPlan
from lada_secure.method.site_allocation import valued_clusters
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import replayed
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.method.training import valuation_tuning
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.examples import RationaleExample
from lada_secure.models.reference_model import ContrastedRationale, lead_gains, sampled_responses


def drawn_beside(
    site: SiteContext, guide: ReferenceModelPlan, rationales: Sequence[KnownRationale]
) -> tuple[KnownRationale, ...]:
    """Let the model as it is now write beside each rationale that was not judged yet.

    The model wears the adapters from before any training.
    """
    new = [at for at, known in enumerate(rationales) if known.gain is None]
    found = list(rationales)
    if new:
        drawn = sampled_responses(
            site.lm,
            [site.prompt(rationales[at].pool_index) for at in new],
            count=guide.own_paths,
            max_new_tokens=site.plan.paths.max_new_tokens,
            batch_size=site.execution.batch_size,
            seed=site.plan.seed,
        )
        for at, texts in zip(new, drawn, strict=True):
            found[at] = replace(rationales[at], drawn=tuple(texts))
    return tuple(found)


def judge(
    site: SiteContext, rationales: Sequence[KnownRationale], dp_reference: AdapterWeights
) -> tuple[KnownRationale, ...]:
    """Measure all rationales against the DP reference model, in their order."""
    gains = lead_gains(
        site.lm,
        [
            ContrastedRationale(
                prompt=site.prompt(known.pool_index), path=known.text, own_paths=known.drawn
            )
            for known in rationales
        ],
        reference=site.reference,
        guide=dp_reference,
        batch_size=site.execution.batch_size,
    )
    return tuple(
        replace(known, gain=float(gain)) for known, gain in zip(rationales, gains, strict=True)
    )


def release_valuation(
    site: SiteContext,
    guide: ReferenceModelPlan,
    rationales: Sequence[KnownRationale],
    examples: Sequence[RationaleExample],
    round_id: int,
) -> list[ClusterValuation]:
    """Release what students of each cluster's rationales make of the records.

    Nothing happens, and nothing is paid, where the study has no valuation or no cluster has enough
    rationales. Training the students reads no private record.

    Args: examples: of the same rationales.
    """
    plan, parameters = site.plan, valuation_parameters(site.plan)
    groups = groups_to_value(_clusters(plan, rationales), clusters=plan.allocation.clusters)
    if parameters is None or not groups:
        return []
    # Students learn as the site's own does, whose effect on the records is asked for.
    replay = replayed(site, guide)
    tuning = valuation_tuning(plan, guide, round_id=round_id)
    students = {
        cluster: valuation_student(
            site.lm,
            [examples[at] for at in members],
            replay,
            reference=site.reference,
            tuning=tuning,
        )
        for cluster, members in groups.items()
    }
    noised = release_gains(
        lambda paid: measured_gains(
            site.lm,
            site.records.units(paid),
            students,
            reference=site.reference,
            clusters=parameters.clusters,
            batch_size=site.execution.batch_size,
        ),
        parameters=parameters,
        book=site.book,
        spec=round_release(plan, round_id, valuation_spec, parameters),
    ).value
    return cluster_valuations(
        noised, {cluster: len(members) for cluster, members in groups.items()}
    )


def agreeing(plan: MethodPlan, guide: ReferenceModelPlan, state: SiteState) -> BoolArray:
    """(m,) rationales of the state that agree with the records.

    By the DP reference model, and where a rationale's cluster was valued by that.
    """
    verdicts = agreeing_rationales(
        [0.0 if known.gain is None else known.gain for known in state.rationales],
        [known.cell for known in state.rationales],
        cells=cell_grid(plan).cells,
        least_share=guide.least_share,
    )
    return useful_rationales(
        valued_clusters(plan, state),
        _clusters(plan, state.rationales),
        verdicts,
        least_share=guide.least_share,
    )


def _clusters(plan: MethodPlan, rationales: Sequence[KnownRationale]) -> list[int]:
    return [known.cell // plan.allocation.difficulty_bins for known in rationales]
