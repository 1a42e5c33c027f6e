"""What models answer: judged as everywhere else, with a confidence that can be checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trainer_doubles import small_model

from lada_clients.site.results.answers import answers
from lada_secure.data.forms import FORMS
from lada_secure.data.records import PoolSample
from lada_secure.models.evaluation import (
    correct,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)

CHOICES = ("red", "blue", "green")
QUESTIONS = tuple(
    PoolSample(
        sample_id=f"q{at}",
        question=f"which colour is number {at}",
        choices=CHOICES if at % 3 else (),
        answer=CHOICES[at % 2] if at % 3 else "red",
    )
    for at in range(12)
)


@pytest.mark.parametrize("form", FORMS)
def test_right_is_what_held_out_accuracy_calls_right(form: str) -> None:
    lm = small_model().with_form(FORMS[form]())
    done: list[int] = []
    found = answers(lm, QUESTIONS, batch_size=5, max_new_tokens=6, told=done.append)
    expected = correct(lm, QUESTIONS, batch_size=12, max_new_tokens=6)
    assert [one.right for one in found] == expected.tolist()
    assert all(0.0 <= one.confidence <= 1.0 for one in found)
    assert done == [5, 5, 2]


def test_the_confidence_is_that_of_the_answer_and_not_of_the_right_one() -> None:
    lm = small_model()
    closed = [one for one in QUESTIONS if one.choices]
    found = answers(lm, closed, batch_size=4, max_new_tokens=6)
    for one, share in zip(found, option_probabilities(lm, closed, batch_size=4), strict=True):
        assert one.confidence == pytest.approx(float(share.max()), abs=1e-6)
        assert one.answer == CHOICES[int(np.argmax(share))]
    assert not all(one.right for one in found)


def test_an_open_answer_is_as_sure_as_its_tokens_are_on_average() -> None:
    lm = small_model()
    (question,) = QUESTIONS[:1]
    (found,) = answers(lm, [question], batch_size=1, max_new_tokens=6)
    prompt = lm.form.prompt(question.question, ())
    (path,) = greedy_rationales(lm, [prompt], batch_size=1, max_new_tokens=6)
    scored = rationale_log_probabilities(lm, [prompt], [path], batch_size=1)
    assert found.path == path
    assert found.confidence == pytest.approx(float(np.exp(scored.mean[0])))


def test_a_question_that_breaks_the_model_is_answered_wrongly_and_ends_nothing() -> None:
    # What no file can hold, as a stand-in for what nobody has thought of.
    broken: Any = SimpleNamespace(sample_id="x", choices=CHOICES, answer="red")
    found = answers(small_model(), [*QUESTIONS[1:3], broken], batch_size=8, max_new_tokens=4)
    assert (found[2].right, found[2].answer, found[2].confidence) == (False, None, 0.0)
    assert found[0].answer is not None
