"""Scores and paths with padding and caches against one sequence at a time, in every family."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from architecture_doubles import FAMILIES, WINDOW, family_tokenizer, small_lm

from lada_secure.data.prompts import option_text, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models import forward
from lada_secure.models.evaluation import (
    cache_deviation,
    choose,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.loading import LanguageModel
from lada_secure.models.preflight import probe_model

QUESTIONS = ("Which?", "The patient has a fever?", "The patient has a fever and a cough. " * 3, "")
SAMPLES = tuple(
    PoolSample(
        sample_id=str(at),
        question=question,
        choices=("gout", "chronic kidney disease of the patient", "a fever")[: 2 + at % 2],
        answer="gout",
    )
    for at, question in enumerate(QUESTIONS)
)
PATH = " gout. Because the kidneys have failed for years."


@cache
def lm_of(family: str) -> LanguageModel:
    return small_lm(family_tokenizer(family), family=family)


def scores(lm: LanguageModel, context: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    """The definition: one sequence, no padding, no cache."""
    with torch.no_grad():
        ids = torch.tensor([[*context, *target]])
        logits = lm.model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return [float(logits[len(context) - 1 + at, token]) for at, token in enumerate(target)]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_option_scores_equal_a_pass_without_any_cache(family: str, batch_size: int) -> None:
    lm = lm_of(family)
    found = option_probabilities(lm, SAMPLES, batch_size=batch_size)
    for sample, shares in zip(SAMPLES, found, strict=True):
        joined = [
            lm.join(prompt_of(sample.question, sample.choices), option_text(choice))
            for choice in sample.choices
        ]
        assert max(len(one.target) for one in joined) > WINDOW
        means = np.array([np.mean(scores(lm, one.context, one.target)) for one in joined])
        expected = np.exp(means - means.max())
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_score_and_are_written_as_without_padding_and_cache(family: str) -> None:
    lm = lm_of(family)
    found = rationale_log_probabilities(lm, QUESTIONS, [PATH] * 4, batch_size=4)
    for question, total in zip(QUESTIONS, found.total, strict=True):
        assert total == pytest.approx(sum(scores(lm, *lm.encode_pair(question, PATH))), rel=1e-4)
    written = greedy_rationales(lm, QUESTIONS, batch_size=4, max_new_tokens=2 * WINDOW)
    for question, text in zip(QUESTIONS, written, strict=True):
        context, own = lm.encode_prompt(question), list[int]()
        while len(own) < 2 * WINDOW:
            with torch.no_grad():
                ids = torch.tensor([[*context, *own]])
                token = int(lm.model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token in lm.end_tokens:
                break
            own.append(token)
        assert text == lm.continuation(context, own)


def test_models_that_carry_a_state_are_told_apart() -> None:
    assert [family for family in FAMILIES if not lm_of(family).pads] == [
        "LFM2",
        "Falcon-H1",
        "Mamba",
    ]


@pytest.mark.parametrize("family", ["Gemma 3", "Llama", "Mamba"])
def test_a_cache_that_changes_what_is_said_is_noticed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_of(family)
    assert cache_deviation(lm) < 1e-4
    padded = forward._left_padded

    def shifted(model: object, rows: list[list[int]], *, pad: int) -> tuple[torch.Tensor, ...]:
        ids, mask, positions = padded(model, rows, pad=pad)
        return ids, torch.ones_like(mask), positions

    monkeypatch.setattr(forward, "_left_padded", shifted)
    assert (cache_deviation(lm) > 0.05) == lm.pads
    if lm.pads:
        with pytest.raises(ParameterError, match="its cache changes what it says"):
            probe_model(lm, what="the model")


def test_choosing_does_not_depend_on_the_company() -> None:
    lm = lm_of("Gemma 3")
    together = choose(lm, SAMPLES, batch_size=4).tolist()
    assert together == [int(choose(lm, [one], batch_size=1)[0]) for one in SAMPLES]
