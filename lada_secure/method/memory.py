"""How much memory a party's part of a study will take, told before its model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_secure.dpsgd.rehearsal import step_peak
from lada_secure.dpsgd.trainer import FROZEN_CACHE_BYTES
from lada_secure.method.llm_round import BATCH_SIZE, GENERATION_BATCH_SIZE
from lada_secure.method.mechanisms import adapter_shape, privacy_parameters
from lada_secure.method.plan import DistillationPlan, MethodPlan, TransferPlan
from lada_secure.method.training import written_tokens
from lada_secure.models.memory import (
    MemoryBudget,
    MemoryForecast,
    fits_easily,
    generation_peak,
    option_peak,
    scoring_peak,
    tuning_peak,
)
from lada_secure.models.placement import Placement
from lada_secure.models.preflight import TextSizes
from lada_secure.models.rehearsal import Rehearsal, layer_count
from lada_secure.models.tuning import PREFIX_CACHE_BYTES

LOWER_AT_A_SITE: Final = (
    'Lower physical_batch_size or max_tokens, set dtype = "bfloat16" or gradient_checkpointing = '
    "true in [model], or name a smaller model; nothing was promised or spent"
)
LOWER_AT_THE_COORDINATOR: Final = (
    'Set dtype = "bfloat16" or gradient_checkpointing = true, or lower max_tokens in [model], '
    "lower [uplink] batch_size, or name a smaller model; nothing was proposed"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSizes:
    """What a site's forecast is made from: no more than lengths.

    batch_size: rows at a time, by the site's settings. records, pool: the longest texts, in the
    SLM's tokens. count: records of the site.
    """

    batch_size: int
    records: TextSizes
    count: int
    pool: TextSizes


def site_fits_easily(
    plan: MethodPlan, folder: Path, placement: Placement, sizes: SiteSizes
) -> bool:
    """Whether `site_memory` need not be asked; see `models.memory.fits_easily`."""
    both = sizes.records.largest(sizes.pool)
    rows = max(
        sizes.batch_size * max(1, both.options),
        plan.privacy.max_records_per_unit,
        2 * _pool_examples(plan),
    )
    length = both.row + plan.paths.max_new_tokens + 1
    return fits_easily(folder, placement, rows=rows, length=length)


def site_memory(
    plan: MethodPlan, folder: Path, placement: Placement, sizes: SiteSizes
) -> MemoryForecast:
    """Of a site's SLM over a study, at the largest batches that plan and settings allow.

    Args: placement: `on_this_machine`.
    """
    part, batch_size = plan.distillation, sizes.batch_size
    records, count, pool = sizes.records, sizes.count, sizes.pool
    budget = _budget(folder, placement, part, seed=plan.seed)
    rehearsal = budget.rehearsal
    alone = placement.dtype != "float32" or placement.quantization is not None
    private = plan.privacy.max_records_per_unit if alone else batch_size
    bound = plan.privacy.max_units * plan.privacy.max_records_per_unit
    private = min(private, bound)
    path = max(pool.path, plan.paths.max_new_tokens + 1)
    public = TextSizes(prompt=pool.prompt, path=path, row=pool.prompt + path)
    budget.add(
        f"a private step of {private} x {records.row} tokens",
        step_peak(
            rehearsal,
            rows=private,
            length=records.row,
            privacy=privacy_parameters(plan),
            cache_bytes=FROZEN_CACHE_BYTES,
        ),
    )
    # Beside private steps the trainer's batches are bounded; tuning takes a step's rows at once.
    examples = _pool_examples(plan)
    if plan.guide is None:
        examples = min(examples, batch_size)
    rows = examples * (2 if part.contrastive_weight > 0.0 else 1)
    budget.add(
        f"a step on {rows} x {public.row} tokens of the pool",
        tuning_peak(rehearsal, rows=rows, length=public.row, cache_bytes=PREFIX_CACHE_BYTES),
    )
    both = records.largest(pool).largest(public)
    _add_inference(budget, both, scored=batch_size, written=batch_size, tokens=written_tokens(plan))
    if not alone:
        kept = min(count, bound) + plan.paths.budget
        _keep_frozen_outputs(budget, part, rows=kept, length=both.row, most=FROZEN_CACHE_BYTES)
    return budget.forecast()


def _pool_examples(plan: MethodPlan) -> int:
    """Examples of one step on the pool: those to learn, and those that are repeated."""
    replayed = 0 if plan.guide is None else plan.guide.replay_batch_size or 0
    return plan.distillation.pool_batch_size + replayed


def llm_fits_easily(
    plan: MethodPlan, folder: Path, placement: Placement, *, pool: TextSizes
) -> bool:
    """Whether `llm_memory` need not be asked; see `models.memory.fits_easily`."""
    part = plan.uplink
    taught = 0 if part is None else 2 * (part.batch_size + part.replay_batch_size)
    rows = max(BATCH_SIZE * max(1, pool.options), GENERATION_BATCH_SIZE, taught)
    length = pool.row + plan.paths.max_new_tokens + 1
    return fits_easily(folder, placement, rows=rows, length=length)


def llm_memory(
    plan: MethodPlan, folder: Path, placement: Placement, *, pool: TextSizes
) -> MemoryForecast:
    """Of the coordinator's LLM over a study, where its weights are on this machine.

    Args: placement: `on_this_machine`. pool: the longest texts, in the LLM's tokens.
    """
    part = plan.uplink
    budget = _budget(folder, placement, part, seed=plan.seed)
    path = max(pool.path, plan.paths.max_new_tokens + 1)
    both = pool.largest(TextSizes(prompt=pool.prompt, path=path, row=pool.prompt + path))
    _add_inference(
        budget,
        both,
        scored=BATCH_SIZE,
        written=GENERATION_BATCH_SIZE,
        tokens=plan.paths.max_new_tokens,
    )
    if part is not None:
        rows = (part.batch_size + part.replay_batch_size) * (2 if part.contrastive_weight else 1)
        budget.add(
            f"a step on {rows} x {both.row} tokens",
            tuning_peak(
                budget.rehearsal, rows=rows, length=both.row, cache_bytes=PREFIX_CACHE_BYTES
            ),
        )
        if placement.dtype == "float32" and placement.quantization is None:
            examples = 2 * (part.budget + part.candidates)
            _keep_frozen_outputs(
                budget, part, rows=examples, length=both.row, most=PREFIX_CACHE_BYTES
            )
    return budget.forecast()


def _budget(
    folder: Path,
    placement: Placement,
    part: DistillationPlan | TransferPlan | None,
    *,
    seed: int,
) -> MemoryBudget:
    adapters = None
    if part is not None:
        adapters = adapter_shape(part, layers=layer_count(folder), seed=seed)
    return MemoryBudget(folder=folder, rehearsal=Rehearsal(folder, placement, adapters))


def _add_inference(
    budget: MemoryBudget, sizes: TextSizes, *, scored: int, written: int, tokens: int
) -> None:
    rehearsal = budget.rehearsal
    budget.add(
        f"scores of {scored} x {sizes.row} tokens",
        scoring_peak(rehearsal, rows=scored, length=sizes.row, target=sizes.path),
    )
    if sizes.options:
        budget.add(
            f"scores of {sizes.options} options of {scored} questions",
            option_peak(
                rehearsal,
                questions=scored,
                options=sizes.options,
                prompt=sizes.prompt,
                option=max(1, sizes.option),
            ),
        )
    budget.add(
        f"writing {written} paths of {tokens} tokens",
        generation_peak(rehearsal, rows=written, prompt=sizes.prompt, written=tokens),
    )


def _keep_frozen_outputs(
    budget: MemoryBudget,
    part: DistillationPlan | TransferPlan,
    *,
    rows: int,
    length: int,
    most: int,
) -> None:
    """What `FrozenPrefix` may keep in training: an input of the first trained layer per row."""
    config = budget.rehearsal.model.config.get_text_config()
    if part.adapter_layers < int(config.num_hidden_layers):
        size = rows * length * int(config.hidden_size) * 4
        budget.keep("kept outputs of frozen layers", min(most, size))
