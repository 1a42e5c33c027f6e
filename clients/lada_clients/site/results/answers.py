"""What a model answers to questions, whether that is right, and how sure of it the model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lada_secure.data.records import PoolSample, Record
from lada_secure.models.evaluation import (
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.text_model import TextModel
from lada_secure.privacy.release.private_records import for_each_unit

Question: TypeAlias = Record | PoolSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer.

    path: what the model writes; empty where it only chooses. answer: what is read from it, None
    where nothing can be. confidence: of the answer, in [0, 1]: its probability among the options,
    or exp(mean log-probability per token) of what was written for an open question.
    """

    path: str
    answer: str | None
    right: bool
    confidence: float


# Whatever a record holds, it counts; one that cannot be asked is answered wrongly.
_NONE = Answer(path="", answer=None, right=False, confidence=0.0)


def answers(
    lm: TextModel,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_new_tokens: int,
    told: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Answer questions as `lada_secure.models.evaluation.correct` judges them, greedily.

    Args: batch_size, max_new_tokens: >= 1. told: gets how many more are done, now and then.
    """
    found: list[Answer] = []
    for first in range(0, len(questions), batch_size):
        part = questions[first : first + batch_size]

        def judged(some: Sequence[Question]) -> list[Answer]:
            return _judged(lm, some, batch_size=batch_size, max_new_tokens=max_new_tokens)

        found += for_each_unit(part, judged, otherwise=_NONE, what="answers")
        told(len(part))
    return found


def _judged(
    lm: TextModel, questions: Sequence[Question], *, batch_size: int, max_new_tokens: int
) -> list[Answer]:
    form = lm.form
    written = [at for at, one in enumerate(questions) if form.writes_first(one.choices)]
    prompts = [form.prompt(questions[at].question, questions[at].choices) for at in written]
    paths = dict(
        zip(
            written,
            greedy_rationales(lm, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens),
            strict=True,
        )
    )
    read = {at: form.answer(path, questions[at].choices) for at, path in paths.items()}
    shares = _shares(lm, questions, paths, read, batch_size=batch_size)
    sure = _open_confidences(lm, questions, paths, read, batch_size=batch_size)
    found = []
    for at, one in enumerate(questions):
        answer = read[at] if at in paths else max(shares[at], key=lambda name: shares[at][name])
        if at in paths:
            right = form.right(paths[at], one.choices, one.answer)
        else:
            right = answer == one.answer
        confidence = shares[at].get(answer or "", 0.0) if at in shares else sure.get(at, 0.0)
        found.append(
            Answer(path=paths.get(at, ""), answer=answer, right=right, confidence=confidence)
        )
    return found


def _shares(
    lm: TextModel,
    questions: Sequence[Question],
    paths: dict[int, str],
    read: dict[int, str | None],
    *,
    batch_size: int,
) -> dict[int, dict[str, float]]:
    """The probability of each option, by place of the question; none where a path is unreadable."""
    form = lm.form
    places = [
        at
        for at, one in enumerate(questions)
        if one.choices and (at not in paths or read[at] is not None)
    ]
    found = option_probabilities(
        lm,
        [questions[at] for at in places],
        batch_size=batch_size,
        begun=[form.before_answer(paths[at]) if at in paths else "" for at in places],
    )
    return {
        at: dict(zip(questions[at].choices, map(float, share), strict=True))
        for at, share in zip(places, found, strict=True)
    }


def _open_confidences(
    lm: TextModel,
    questions: Sequence[Question],
    paths: dict[int, str],
    read: dict[int, str | None],
    *,
    batch_size: int,
) -> dict[int, float]:
    places = [at for at in paths if not questions[at].choices and read[at] is not None]
    prompts = [lm.form.prompt(questions[at].question, ()) for at in places]
    scored = rationale_log_probabilities(
        lm, prompts, [paths[at] for at in places], batch_size=batch_size
    )
    return dict(zip(places, np.minimum(np.exp(scored.mean), 1.0).tolist(), strict=True))
