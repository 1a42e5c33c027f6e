"""The other side of the contrast: what a site's SLM says today, where that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_protocol.plan import StudyPlan
from lada_secure.data.prompts import answer_of, rationale_of
from lada_secure.data.records import PoolSample
from lada_secure.models.evaluation import choose, greedy_rationales
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel


def with_own_paths(
    lm: LanguageModel,
    plan: StudyPlan,
    examples: Sequence[RationaleExample],
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
) -> list[RationaleExample]:
    """Add the SLM's wrong paths to examples of pool samples, one sample each.

    For multiple choice that is the option it would choose, for open questions its own greedy path.
    A right own path has nothing to be told apart from. Nothing is added where the plan has no
    contrastive term.
    """
    if plan.distillation.contrastive_weight == 0.0 or not examples:
        return list(examples)
    if all(one.choices for one in samples):
        said = choose(lm, samples, batch_size=batch_size)
        own = [
            rationale_of(one.choices[int(letter)], one.choices, None)
            for one, letter in zip(samples, said, strict=True)
        ]
    else:
        own = greedy_rationales(
            lm,
            [one.prompt for one in examples],
            batch_size=batch_size,
            max_new_tokens=plan.paths.max_new_tokens,
        )
    return [
        replace(example, rejected=text if text and _is_wrong(text, sample) else None)
        for example, text, sample in zip(examples, own, samples, strict=True)
    ]


def _is_wrong(path: str, sample: PoolSample) -> bool:
    """Whether a path ends in another answer than the public gold answer."""
    return answer_of(path, sample.choices) != sample.answer
