"""The other side of the contrast: what a site's SLM says today, where that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_secure.data.records import PoolSample
from lada_secure.method.plan import MethodPlan
from lada_secure.models.evaluation import choose, greedy_rationales
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel


def with_rejected(
    lm: LanguageModel,
    plan: MethodPlan,
    examples: Sequence[RationaleExample],
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
) -> list[RationaleExample]:
    """Add the SLM's wrong responses to examples of pool samples, one sample each.

    That is the option it would choose where that comes first, elsewhere its own greedy rationale. A
    right one has nothing to be told apart from. Nothing is added where the plan has no contrastive
    term.
    """
    if plan.distillation.contrastive_weight == 0.0 or not examples:
        return list(examples)
    form = lm.form
    if not any(form.writes_first(sample.choices) for sample in samples):
        said = choose(lm, samples, batch_size=batch_size)
        own = [
            form.target(sample.choices[int(pick)], sample.choices, None)
            for sample, pick in zip(samples, said, strict=True)
        ]
    else:
        own = greedy_rationales(
            lm,
            [example.prompt for example in examples],
            batch_size=batch_size,
            max_new_tokens=plan.paths.max_new_tokens,
        )
    return [
        replace(
            example,
            rejected=text if text and not form.right(text, sample.choices, sample.answer) else None,
        )
        for example, text, sample in zip(examples, own, samples, strict=True)
    ]
