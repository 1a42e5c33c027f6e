"""Which received rationales agree with the private records: a DP reference model, and valuation.

The DP reference model (`guide` on the wire) is what DP-SGD released. Judging with it is
post-processing, on public texts alone. Data valuation (`trials` on the wire) is a release of its
own: what students of each cluster's rationales make of the private records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_secure.data.prompts import prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.distillation.adapters import AdapterWeights
from lada_secure.distillation.examples import PathExample
from lada_secure.distillation.guide import ContrastedPath, lead_gains, own_paths
from lada_secure.distillation.loss import LossSettings
from lada_secure.distillation.models import LanguageModel
from lada_secure.learnability.agreement import agreeing_paths
from lada_secure.learnability.arrays import BoolArray
from lada_secure.learnability.measured_trials import measured_trials, trial_student
from lada_secure.learnability.trial_gains import release_trials
from lada_secure.learnability.trials import ClusterTrial, groups_to_try, trials_of, useful_paths
from lada_secure.method.mechanisms import cell_grid, trial_parameters, valuation_release
from lada_secure.method.plan import GuidePlan, MethodPlan
from lada_secure.method.site_allocation import valued_clusters
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.method.training import pool_tuning
from lada_secure.privacy.ledger import LedgerBook
from lada_secure.privacy.private_records import PrivateRecords


def draw_rationales(
    lm: LanguageModel,
    plan: MethodPlan,
    guide: GuidePlan,
    rationales: Sequence[KnownRationale],
    pool: Sequence[PoolSample],
    *,
    batch_size: int,
) -> list[KnownRationale]:
    """Let the model as it is now write beside each rationale that has nothing drawn yet.

    Args: lm: with the adapters from before any training.
    """
    new = [at for at, known in enumerate(rationales) if known.gain is None]
    found = list(rationales)
    if new:
        drawn = own_paths(
            lm,
            [_prompt(pool, rationales[at]) for at in new],
            count=guide.own_paths,
            max_new_tokens=plan.paths.max_new_tokens,
            batch_size=batch_size,
            seed=plan.seed,
        )
        for at, texts in zip(new, drawn, strict=True):
            found[at] = replace(rationales[at], drawn=tuple(texts))
    return found


def judge(
    lm: LanguageModel,
    rationales: Sequence[KnownRationale],
    pool: Sequence[PoolSample],
    *,
    reference: AdapterWeights,
    dp_reference: AdapterWeights,
    batch_size: int,
) -> tuple[KnownRationale, ...]:
    """Measure all rationales against the DP reference model, in their order."""
    gains = lead_gains(
        lm,
        [
            ContrastedPath(prompt=_prompt(pool, known), path=known.text, own_paths=known.drawn)
            for known in rationales
        ],
        reference=reference,
        guide=dp_reference,
        batch_size=batch_size,
    )
    return tuple(
        replace(known, gain=float(gain)) for known, gain in zip(rationales, gains, strict=True)
    )


def release_valuation(
    lm: LanguageModel,
    plan: MethodPlan,
    guide: GuidePlan,
    rationales: Sequence[KnownRationale],
    examples: Sequence[PathExample],
    records: PrivateRecords,
    *,
    reference: AdapterWeights,
    book: LedgerBook,
    round_id: int,
    batch_size: int,
) -> list[ClusterTrial]:
    """Release what students of each cluster's rationales make of the records.

    Nothing happens, and nothing is paid, where the study has no valuation or no cluster has enough
    rationales. Training the students reads no private record.

    Args: examples: of the same rationales.
    """
    parameters = trial_parameters(plan)
    groups = groups_to_try(_clusters(plan, rationales), clusters=plan.allocation.clusters)
    if parameters is None or not groups:
        return []
    tuning = pool_tuning(
        plan,
        guide,
        round_id=round_id,
        steps=guide.pool_steps,
        loss=LossSettings(contrastive_weight=0.0),
    )
    students = {
        cluster: trial_student(
            lm, [examples[at] for at in members], reference=reference, tuning=tuning
        )
        for cluster, members in groups.items()
    }
    noised = release_trials(
        lambda paid: measured_trials(
            lm,
            records.units(paid),
            students,
            reference=reference,
            parameters=parameters,
            batch_size=batch_size,
        ),
        parameters=parameters,
        book=book,
        spec=valuation_release(plan, parameters, round_id),
    ).value
    return trials_of(noised, {cluster: len(members) for cluster, members in groups.items()})


def agreeing(
    plan: MethodPlan, guide: GuidePlan, state: SiteState, rationales: Sequence[KnownRationale]
) -> BoolArray:
    """(m,) rationales that agree with the records.

    By the DP reference model, and where a rationale's cluster was valued by that.
    """
    verdicts = agreeing_paths(
        [0.0 if known.gain is None else known.gain for known in rationales],
        [known.cell for known in rationales],
        cells=cell_grid(plan).cells,
        least_share=guide.least_share,
    )
    return useful_paths(
        valued_clusters(plan, state),
        _clusters(plan, rationales),
        verdicts,
        least_share=guide.least_share,
    )


def _clusters(plan: MethodPlan, rationales: Sequence[KnownRationale]) -> list[int]:
    return [known.cell // plan.allocation.difficulty_bins for known in rationales]


def _prompt(pool: Sequence[PoolSample], known: KnownRationale) -> str:
    sample = pool[known.pool_index]
    return prompt_of(sample.question, sample.choices)
