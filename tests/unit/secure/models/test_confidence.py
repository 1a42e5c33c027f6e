"""How sure a model is of the gold answers of public questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trainer_doubles import small_model

from lada_lab.worlds.federation import build_federation
from lada_secure.data.prompts import answer_of, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.confidence import answer_pool
from lada_secure.models.evaluation import (
    choose,
    correct,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.loading import LanguageModel

POOL = build_federation("tiny", sites=3, seed=0).pool[:40]


def test_certainty_is_the_probability_of_a_right_path_and_zero_elsewhere(
    tiny_slm: LanguageModel,
) -> None:
    found = answer_pool(tiny_slm, POOL, batch_size=16, max_new_tokens=12)
    right = [answer_of(path, ()) == one.answer for path, one in zip(found.paths, POOL, strict=True)]
    assert found.right.tolist() == right
    assert 0 < sum(right) < len(POOL)
    assert (found.confidence[~found.right] == 0.0).all()
    scored = rationale_log_probabilities(
        tiny_slm, [prompt_of(one.question, ()) for one in POOL], list(found.paths), batch_size=8
    )
    wanted = np.exp(scored.mean)[found.right]
    np.testing.assert_allclose(found.confidence[found.right], wanted, rtol=1e-4)
    assert (found.right == correct(tiny_slm, POOL, batch_size=8, max_new_tokens=12)).all()


def test_a_gold_answer_that_the_model_never_gives_has_no_certainty(tiny_slm: LanguageModel) -> None:
    never = [replace(one, answer="11") for one in POOL[:5]]
    found = answer_pool(tiny_slm, never, batch_size=4, max_new_tokens=12)
    assert not found.right.any()
    assert (found.confidence == 0.0).all()


def test_multiple_choice_takes_the_share_of_the_gold_option() -> None:
    lm = small_model()
    samples = [
        PoolSample(sample_id=f"q{at}", question=question, choices=("f", "gh", "3"), answer=answer)
        for at, (question, answer) in enumerate([("4fg", "gh"), ("7", "f"), ("22f", "3")])
    ]
    shares = option_probabilities(lm, samples, batch_size=2)
    assert all(one.sum() == pytest.approx(1.0) for one in shares)
    picks = choose(lm, samples, batch_size=2)
    assert [int(np.argmax(one)) for one in shares] == picks.tolist()

    mixed = [*samples, POOL[0]]
    found = answer_pool(lm, mixed, batch_size=2, max_new_tokens=4)

    for at, (one, share) in enumerate(zip(samples, shares, strict=True)):
        assert found.confidence[at] == pytest.approx(share[one.choices.index(one.answer)])
        assert answer_of(found.paths[at], one.choices) == one.choices[picks[at]]
        assert found.right[at] == (one.choices[picks[at]] == one.answer)


def test_no_questions_have_no_answers(tiny_slm: LanguageModel) -> None:
    found = answer_pool(tiny_slm, [], batch_size=4, max_new_tokens=4)
    assert (found.paths, len(found.right), len(found.confidence)) == ((), 0, 0)


def test_open_questions_have_no_options_to_share(tiny_slm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="open question"):
        option_probabilities(tiny_slm, POOL[:1], batch_size=1)
