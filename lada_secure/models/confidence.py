"""How sure a model is of the right answer to a public question, and what it would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lada_secure.data.records import PoolSample
from lada_secure.models.evaluation import (
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.text_model import TextModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """A model's answers to n public questions.

    paths: what it would write; the option alone where that comes first, empty where it writes
    nothing. right: (n,) bool, whether the answer is the gold one. confidence: (n,)
    float64 in [0, 1].
    """

    paths: tuple[str, ...]
    right: NDArray[np.bool_]
    confidence: NDArray[np.float64]


def answer_pool(
    lm: TextModel, samples: Sequence[PoolSample], *, batch_size: int, max_new_tokens: int
) -> Answers:
    """Answer public questions and say how sure the model is of each gold answer.

    Multiple choice: confidence is the probability of the gold option among the options. In a form
    that reasons first that is the probability behind the model's own greedy reasoning, and 0 where
    what it wrote cannot be read. Open questions have no path to score beforehand, so the model
    writes one: confidence is exp(mean log-probability per token) of that path where it ends in the
    gold answer, and 0 elsewhere.

    Args: batch_size, max_new_tokens: >= 1.
    """
    form = lm.form
    paths = [""] * len(samples)
    written = [at for at, sample in enumerate(samples) if form.writes_first(sample.choices)]
    prompts = [form.prompt(sample.question, sample.choices) for sample in samples]
    texts = greedy_rationales(
        lm,
        [prompts[at] for at in written],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    for at, path in zip(written, texts, strict=True):
        paths[at] = path
    confidence = np.zeros(len(samples), dtype=np.float64)
    unread = {at for at in written if form.answer(paths[at], samples[at].choices) is None}
    closed = [at for at, sample in enumerate(samples) if sample.choices and at not in unread]
    shares = option_probabilities(
        lm,
        [samples[at] for at in closed],
        batch_size=batch_size,
        begun=[form.before_answer(paths[at]) for at in closed],
    )
    for at, share in zip(closed, shares, strict=True):
        choices, gold = samples[at].choices, samples[at].answer
        confidence[at] = min(float(share[choices.index(gold)]), 1.0)
        if not form.writes_first(choices):
            paths[at] = form.target(choices[int(np.argmax(share))], choices, None)
    right = np.array(
        [
            form.right(path, sample.choices, sample.answer)
            for path, sample in zip(paths, samples, strict=True)
        ],
        dtype=np.bool_,
    )
    solved = [at for at in written if right[at] and not samples[at].choices]
    scored = rationale_log_probabilities(
        lm, [prompts[at] for at in solved], [paths[at] for at in solved], batch_size=batch_size
    )
    confidence[solved] = np.minimum(np.exp(scored.mean), 1.0)
    return Answers(paths=tuple(paths), right=right, confidence=confidence)
