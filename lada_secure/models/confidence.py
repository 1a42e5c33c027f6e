"""How sure a model is of the right answer to a public question, and what it would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lada_secure.data.prompts import answer_of, option_text, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.models.evaluation import (
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.loading import TextModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """A model's answers to n public questions.

    paths: what it would write, most probable first; the option alone for multiple choice, empty
    where it writes nothing. right: (n,) bool, whether the answer is the gold one. confidence: (n,)
    float64 in [0, 1].
    """

    paths: tuple[str, ...]
    right: NDArray[np.bool_]
    confidence: NDArray[np.float64]


def answer_pool(
    lm: TextModel, samples: Sequence[PoolSample], *, batch_size: int, max_new_tokens: int
) -> Answers:
    """Answer public questions and say how sure the model is of each gold answer.

    Multiple choice: confidence is the probability of the gold option among the options. Open
    questions have no path to score beforehand, so the model writes one: confidence is exp(mean
    log-probability per token) of that path where it ends in the gold answer, and 0 elsewhere.

    Args: batch_size, max_new_tokens: >= 1.
    """
    paths = [""] * len(samples)
    confidence = np.zeros(len(samples), dtype=np.float64)
    closed = [at for at, sample in enumerate(samples) if sample.choices]
    opened = [at for at, sample in enumerate(samples) if not sample.choices]
    shares = option_probabilities(lm, [samples[at] for at in closed], batch_size=batch_size)
    for at, share in zip(closed, shares, strict=True):
        choices = samples[at].choices
        paths[at] = option_text(choices[int(np.argmax(share))])
        confidence[at] = min(float(share[choices.index(samples[at].answer)]), 1.0)
    prompts = [prompt_of(sample.question, sample.choices) for sample in samples]
    written = greedy_rationales(
        lm,
        [prompts[at] for at in opened],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    for at, path in zip(opened, written, strict=True):
        paths[at] = path
    right = np.array(
        [
            answer_of(path, sample.choices) == sample.answer
            for path, sample in zip(paths, samples, strict=True)
        ],
        dtype=np.bool_,
    )
    solved = [at for at in opened if right[at]]
    scored = rationale_log_probabilities(
        lm, [prompts[at] for at in solved], [paths[at] for at in solved], batch_size=batch_size
    )
    confidence[solved] = np.minimum(np.exp(scored.mean), 1.0)
    return Answers(paths=tuple(paths), right=right, confidence=confidence)
