"""Multiple-choice questions whose options betray nothing by how often they occur.

Within one set of questions every option text is offered three times as a distractor for each time
it is right, exactly, and the right option stands at every place equally often. Knowing how common
an option is therefore does not help to find the answer: given any text, the chance is one in four.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_lab.worlds.sites import Question
from lada_secure.arrays import IntArray
from lada_secure.errors import ParameterError

OPTIONS = 4
# An answer above this share of a set leaves too few other texts to be exchanged with.
MAX_ANSWER_SHARE = 0.2
_MAX_SWEEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Something to ask about, from public reference material.

    `key`: what hold-out goes by (a code, a synset). `forbidden`: texts that must not stand beside
    the answer because they would be right as well.
    """

    key: str
    question: str
    answer: str
    rationale: str
    forbidden: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A topic with its four options in order; `topic.answer` is one of them."""

    topic: Topic
    options: tuple[str, ...]

    def asked(self, *, with_reason: bool = True) -> Question:
        """The question, with its reasoning or without."""
        return Question(
            question=self.topic.question,
            answer=self.topic.answer,
            rationale=self.topic.rationale if with_reason else None,
            choices=self.options,
        )


def with_options(topics: Sequence[Topic], rng: np.random.Generator) -> tuple[Choice, ...]:
    """Give every topic three distractors, drawn from the other topics' answers.

    Each of the three columns of distractors is a permutation of the answers, which is what makes
    the frequencies exact. A topic may occur several times.

    Returns: one choice per topic, in the same order.
    Raises: ParameterError: the topics exclude each other too often, see `limit_answers`.
    """
    columns = [rng.permutation(len(topics)) for _ in range(OPTIONS - 1)]
    _repair(topics, columns, rng)
    places = np.resize(np.arange(OPTIONS), len(topics))
    rng.shuffle(places)
    choices: list[Choice] = []
    for row, topic in enumerate(topics):
        options = [topics[column[row]].answer for column in columns]
        options.insert(int(places[row]), topic.answer)
        choices.append(Choice(topic=topic, options=tuple(options)))
    return tuple(choices)


def limit_answers(topics: Sequence[Topic]) -> tuple[Topic, ...]:
    """Drop topics, last first, until no answer is right in more than a fifth of the set.

    Returns: the rest in the same order; empty where fewer than eight would remain.
    """
    kept = list(topics)
    while len(kept) >= 2 * OPTIONS:
        most = int(MAX_ANSWER_SHARE * len(kept))
        seen: Counter[str] = Counter()
        rest: list[Topic] = []
        for topic in kept:
            seen[topic.answer] += 1
            if seen[topic.answer] <= most:
                rest.append(topic)
        if len(rest) == len(kept):
            return tuple(kept)
        kept = rest
    return ()


def _repair(topics: Sequence[Topic], columns: list[IntArray], rng: np.random.Generator) -> None:
    """Exchange distractors between rows until no row offers a text twice or a second right one."""
    for _ in range(_MAX_SWEEPS):
        clean = True
        for row in range(len(topics)):
            for column in columns:
                if not _fits(topics, columns, row, column):
                    clean = False
                    _exchange(topics, columns, row, column, rng)
        if clean:
            return
    raise ParameterError(
        f"no options for {len(topics)} questions: too few different answers to exchange; "
        "give more questions, or drop those with the most frequent answers"
    )


def _fits(topics: Sequence[Topic], columns: list[IntArray], row: int, column: IntArray) -> bool:
    topic, text = topics[row], topics[column[row]].answer
    beside = [topics[other[row]].answer for other in columns if other is not column]
    return text != topic.answer and text not in topic.forbidden and text not in beside


def _exchange(
    topics: Sequence[Topic],
    columns: list[IntArray],
    row: int,
    column: IntArray,
    rng: np.random.Generator,
) -> None:
    """Swap this row's entry with the first other row where both then fit, if there is one."""
    for other in rng.permutation(len(topics)):
        column[row], column[other] = column[other], column[row]
        if _fits(topics, columns, row, column) and _fits(topics, columns, other, column):
            return
        column[row], column[other] = column[other], column[row]
