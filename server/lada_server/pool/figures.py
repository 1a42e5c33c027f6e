"""What a pool is like, from its samples alone: public figures, each for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from lada_secure.allocation.cells import Clusters
from lada_secure.arrays import Float32Array
from lada_secure.data.forms import AnswerForm, letter
from lada_secure.data.records import PoolSample
from lada_secure.models.confidence import Answers
from lada_secure.models.text_model import ModelTexts

# Of answers that occur most, and of samples that were hardest, so many are named.
_NAMED = 10
_SHOWN = 80
_FIFTHS = 5


class Part(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(Part):
    """Of whole numbers. p95: 95 of 100 are no larger."""

    least: int
    median: int
    p95: int
    most: int


class Lengths(Part):
    """In tokens. tokenizer: whose. prompt: as the LLM reads it, options included where its form
    lists them. answer: the gold one alone."""

    tokenizer: str
    prompt: Spread
    answer: Spread


class AnswerShares(Part):
    """Gold answers. choices: samples by their number of choices, 0 for open questions. places:
    samples by the letter of the gold choice. commonest: the answers that occur most, by text."""

    choices: dict[int, int]
    places: dict[str, int]
    different: int
    commonest: dict[str, int]


class TopicFigures(Part):
    """One cluster. example: the question nearest to its centre. right: share that the LLM solves;
    null where it was not asked."""

    topic: int
    samples: int
    example: str
    right: float | None = None


class Difficulty(Part):
    """What the LLM makes of the pool. confidence: of the gold answer, samples by fifths from
    unsure to sure. hardest: ids of those it is least sure of."""

    llm: str
    answer_form: str
    right: float
    confidence: tuple[int, ...]
    hardest: tuple[str, ...]


def answer_shares(pool: Sequence[PoolSample]) -> AnswerShares:
    """How gold answers are distributed: a pool whose answers are mostly A teaches A."""
    choices = Counter(len(one.choices) for one in pool)
    places = Counter(letter(one.choices.index(one.answer)) for one in pool if one.choices)
    texts = Counter(one.answer for one in pool)
    # Of equally common ones the first in the alphabet: every run says the same.
    common = sorted(texts.items(), key=lambda one: (-one[1], one[0]))[:_NAMED]
    return AnswerShares(
        choices=dict(sorted(choices.items())),
        places=dict(sorted(places.items())),
        different=len(texts),
        commonest=dict(common),
    )


def said_counts(said: Sequence[str | None]) -> dict[str, int]:
    """How often each licence or source is named, the commonest first; "" where none is."""
    counts = Counter(one or "" for one in said)
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def lengths(pool: Sequence[PoolSample], texts: ModelTexts, form: AnswerForm) -> Lengths:
    """Lengths in the tokens of a model."""
    prompts = texts.token_counts([form.prompt(one.question, one.choices) for one in pool])
    answers = texts.token_counts([one.answer for one in pool])
    return Lengths(tokenizer=texts.name, prompt=_spread(prompts), answer=_spread(answers))


def topic_figures(
    pool: Sequence[PoolSample],
    clusters: Clusters,
    embeddings: Float32Array,
    answers: Answers | None,
) -> tuple[TopicFigures, ...]:
    """The topics of a pool, as a study makes them of it. embeddings: (n, e) of the questions."""
    distances = clusters.squared_distances(embeddings)
    own, nearest = distances.argmin(axis=1), distances.argmin(axis=0)
    return tuple(
        TopicFigures(
            topic=topic,
            samples=int((own == topic).sum()),
            example=_short(pool[int(nearest[topic])].question),
            right=_mean(answers, own == topic),
        )
        for topic in range(clusters.count)
    )


def difficulty(
    pool: Sequence[PoolSample], answers: Answers, *, llm: str, form: AnswerForm
) -> Difficulty:
    """What the LLM's answers say of the pool."""
    fifths = np.minimum((answers.confidence * _FIFTHS).astype(np.int64), _FIFTHS - 1)
    order = np.argsort(answers.confidence, kind="stable")[:_NAMED]
    return Difficulty(
        llm=llm,
        answer_form=form.name,
        right=float(answers.right.mean()),
        confidence=tuple(np.bincount(fifths, minlength=_FIFTHS).tolist()),
        hardest=tuple(pool[int(at)].sample_id for at in order),
    )


def _mean(answers: Answers | None, which: np.ndarray) -> float | None:
    if answers is None or not which.any():
        return None
    return float(answers.right[which].mean())


def _spread(counts: Sequence[int]) -> Spread:
    ordered = sorted(counts)
    return Spread(
        least=ordered[0],
        median=ordered[(len(ordered) - 1) // 2],
        p95=ordered[-(-95 * len(ordered) // 100) - 1],
        most=ordered[-1],
    )


def _short(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
