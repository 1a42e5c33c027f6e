"""Options whose frequency betrays nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lada_lab.worlds.multiple_choice import Choice, Topic, limit_answers, with_options
from lada_secure.errors import ParameterError


def topic(number: int, answer: str, *, forbidden: frozenset[str] = frozenset()) -> Topic:
    return Topic(
        key=f"key-{number}",
        question=f"question {number}",
        answer=answer,
        rationale="because",
        forbidden=forbidden,
    )


def uneven_topics() -> tuple[Topic, ...]:
    """Answers of very different frequency, as groups of diseases have."""
    answers = ["a"] * 12 + ["b"] * 12 + ["c"] * 12 + ["d"] * 9 + ["e"] * 7 + ["f"] * 5 + ["g"] * 3
    return tuple(topic(number, answer) for number, answer in enumerate(answers))


def offered(choices: tuple[Choice, ...]) -> Counter[str]:
    return Counter(
        option for choice in choices for option in choice.options if option != choice.topic.answer
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_a_distractor_three_times_as_often_as_it_is_right(seed: int) -> None:
    choices = with_options(uneven_topics(), np.random.default_rng(seed))
    right = Counter(choice.topic.answer for choice in choices)
    assert offered(choices) == {text: 3 * count for text, count in right.items()}


def test_knowing_how_common_a_text_is_does_not_help() -> None:
    choices = with_options(uneven_topics(), np.random.default_rng(0))
    right = Counter(choice.topic.answer for choice in choices)
    shown = Counter(option for choice in choices for option in choice.options)
    assert {right[text] / shown[text] for text in shown} == {0.25}


@pytest.mark.parametrize("count", [40, 41, 43])
def test_the_right_option_stands_equally_often_at_every_place(count: int) -> None:
    topics = [topic(number, f"answer {number}") for number in range(count)]
    choices = with_options(topics, np.random.default_rng(1))
    places = Counter(choice.options.index(choice.topic.answer) for choice in choices)
    assert max(places.values()) - min(places.values()) <= 1
    assert set(places) == {0, 1, 2, 3}


def test_options_are_four_different_texts_and_none_is_right_as_well() -> None:
    topics = [
        topic(number, f"answer {number}", forbidden=frozenset({f"answer {(number + 1) % 20}"}))
        for number in range(20)
    ]
    for choice in with_options(topics, np.random.default_rng(2)):
        assert len(set(choice.options)) == 4
        assert choice.topic.answer in choice.options
        assert not choice.topic.forbidden & (set(choice.options) - {choice.topic.answer})


def test_topics_keep_their_order() -> None:
    topics = uneven_topics()
    choices = with_options(topics, np.random.default_rng(3))
    assert tuple(choice.topic for choice in choices) == topics


def test_one_answer_for_most_topics_is_refused() -> None:
    topics = [topic(number, "same" if number < 15 else f"other {number}") for number in range(20)]
    with pytest.raises(ParameterError, match="too few different answers"):
        with_options(topics, np.random.default_rng(0))


def test_frequent_answers_are_limited_to_a_fifth() -> None:
    topics = [topic(number, "same" if number < 15 else f"other {number}") for number in range(30)]
    kept = limit_answers(topics)
    counts = Counter(one.answer for one in kept)
    assert max(counts.values()) <= len(kept) / 5
    assert counts["other 20"] == 1
    with_options(kept, np.random.default_rng(0))


def test_a_set_with_a_single_answer_is_given_up() -> None:
    assert limit_answers([topic(number, "same") for number in range(30)]) == ()
