"""The LLM's part of a round: what it thinks of the public pool, and the rationales it writes.

Everything here is computed on public samples alone. The coordinator drives it by messages, the
laboratory in process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lada_secure.allocation.cells import Clusters, difficulty_bins, pool_features
from lada_secure.arrays import Float32Array, FloatArray, IntArray
from lada_secure.data.records import PoolSample
from lada_secure.method.mechanisms import cell_grid
from lada_secure.method.plan import MethodPlan
from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities
from lada_secure.models.rationales import Sampling, generate_rationales
from lada_secure.models.text_model import TextModel

BATCH_SIZE = 16
GENERATION_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolView:
    """What the LLM thinks of its pool; only the demanded rationales and their cells leave it.

    features: (n, d) float64 in [0, 1], the private matrix of blind scoring. cells: (n,) int64, each
    sample's own.
    """

    features: FloatArray
    cells: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRationales:
    """What the LLM wrote in a round.

    texts: by pool index, those that reach the gold answer. demanded: samples that any site wants.
    wrong: attempts with another answer or none. dropped: samples that no attempt solved.
    """

    texts: Mapping[int, str]
    demanded: int
    wrong: int
    dropped: int


def view_pool(
    lm: TextModel,
    plan: MethodPlan,
    pool: Sequence[PoolSample],
    clusters: Clusters,
    embeddings: Float32Array,
) -> PoolView:
    """Difficulty bins and confidence of the LLM for every pool sample (Guo et al. 2026).

    Difficulty is the LLM's loss on the rationale it would write or choose. Confidence says how
    likely that is right: whether its greedy answer is the gold one where the LLM must write before
    its answer is known; 1 where it chooses first, for a wrong choice is found and dropped when the
    rationale is written.

    Args: embeddings: (n, e) of the pool.
    """
    grid = cell_grid(plan)
    losses, confidence = _judge(lm, plan, pool)
    bins = difficulty_bins(losses, grid.bins)
    return PoolView(
        features=pool_features(
            grid,
            membership=clusters.membership(embeddings),
            difficulty=bins,
            confidence=confidence,
        ),
        cells=grid.index(clusters.assign(embeddings), bins),
    )


def _judge(
    lm: TextModel, plan: MethodPlan, pool: Sequence[PoolSample]
) -> tuple[FloatArray, FloatArray]:
    """Loss (n,) >= 0 in nats per token, and confidence (n,) in [0, 1]."""
    form = lm.form
    prompts = [form.prompt(sample.question, sample.choices) for sample in pool]
    places = [at for at, sample in enumerate(pool) if form.writes_first(sample.choices)]
    texts = [form.target(sample.answer, sample.choices, None) for sample in pool]
    written = greedy_rationales(
        lm,
        [prompts[at] for at in places],
        batch_size=GENERATION_BATCH_SIZE,
        max_new_tokens=plan.paths.max_new_tokens,
    )
    for at, text in zip(places, written, strict=True):
        texts[at] = text or texts[at]
    losses = rationale_log_probabilities(lm, prompts, texts, batch_size=BATCH_SIZE).losses
    confidence = np.ones(len(pool), dtype=np.float64)
    for at, text in zip(places, written, strict=True):
        confidence[at] = float(form.right(text, pool[at].choices, pool[at].answer))
    return losses, confidence


def most_wanted(plan: MethodPlan, demand: Sequence[int]) -> list[int]:
    """Pool indices to write for, within the plan's budget: most wanted first, then in their order.

    Args: demand: (n,) how many sites want each pool sample.
    """
    order = np.lexsort((np.arange(len(demand)), -np.asarray(demand)))
    return [int(index) for index in order if demand[index] > 0][: plan.paths.budget]


def write_rationales(
    lm: TextModel,
    plan: MethodPlan,
    pool: Sequence[PoolSample],
    demand: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenRationales:
    """Write for the samples in demand, most wanted first, within the plan's budget.

    Args: demand: (n,) how many sites want each pool sample.
    """
    chosen = most_wanted(plan, demand)
    texts: dict[int, str] = {}
    wrong = dropped = 0
    for start in range(0, len(chosen), BATCH_SIZE):
        batch = {pool[index].sample_id: index for index in chosen[start : start + BATCH_SIZE]}
        generated = generate_rationales(
            lm,
            [pool[index] for index in batch.values()],
            max_new_tokens=plan.paths.max_new_tokens,
            sampling=_sampling(plan),
            batch_size=BATCH_SIZE,
        )
        wrong += generated.wrong
        dropped += len(generated.dropped)
        texts.update({batch[one.sample_id]: one.path for one in generated.paths})
        if progress is not None:
            progress(min(start + BATCH_SIZE, len(chosen)), len(chosen))
    return WrittenRationales(
        texts=texts, demanded=sum(count > 0 for count in demand), wrong=wrong, dropped=dropped
    )


def _sampling(plan: MethodPlan) -> Sampling:
    paths = plan.paths
    return Sampling(
        attempts=paths.attempts,
        temperature=paths.temperature,
        top_p=paths.top_p,
        keep=paths.keep,
    )
