"""Accuracy and path probabilities against one sequence at a time, without padding or cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lada_lab.worlds.federation import build_federation
from lada_secure.data.prompts import answer_of, option_text, prompt_of, rationale_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError
from lada_secure.models import evaluation
from lada_secure.models.evaluation import (
    accuracy,
    choose,
    correct,
    generate_texts,
    greedy_rationales,
    rationale_log_probabilities,
)
from lada_secure.models.loading import LanguageModel

TINY = build_federation("tiny", sites=3, seed=0)


def slow_log_probability(lm: LanguageModel, head: list[int], tail: list[int]) -> float:
    """One sequence, the whole vocabulary at every place: the definition."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(head) - 1 + at, token]) for at, token in enumerate(tail))


def slow_choice(lm: LanguageModel, sample: PoolSample) -> int:
    head = lm.encode_prompt(prompt_of(sample.question, sample.choices))
    scores = []
    for choice in sample.choices:
        tail = lm.encode_prompt(option_text(choice))
        scores.append(slow_log_probability(lm, head, tail) / len(tail))
    return int(np.argmax(scores))


def slow_path(lm: LanguageModel, prompt: str, limit: int) -> str:
    tokens = lm.encode_prompt(prompt)
    written: list[int] = []
    while len(written) < limit:
        with torch.no_grad():
            logits = lm.model(torch.tensor([tokens + written])).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == lm.end_token:
            break
    return lm.decode(written)


def choice_questions() -> list[PoolSample]:
    """Questions with options of different lengths and numbers."""
    rng = np.random.default_rng(0)
    samples = []
    for number, one in enumerate(TINY.pool[:24]):
        wrong = [str(digit) for digit in range(10) if str(digit) != one.answer]
        drawn = [wrong[int(at)] for at in rng.choice(9, 1 + number % 4, replace=False)]
        longer = [f"{digit}{'a' * (number % 3)}" for digit in drawn]
        choices = (one.answer, *longer)
        samples.append(
            PoolSample(
                sample_id=one.sample_id,
                question=one.question,
                choices=tuple(choices[int(at)] for at in rng.permutation(len(choices))),
                answer=one.answer,
            )
        )
    return samples


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_log_probabilities_equal_those_of_single_sequences(
    tiny_slm: LanguageModel, batch_size: int
) -> None:
    records = TINY.sites["site-a"].train[:8] + TINY.sites["site-b"].train[:8]
    prompts = [prompt_of(one.question, ()) for one in records]
    paths = [rationale_of(one.answer, (), one.rationale) for one in records]
    found = rationale_log_probabilities(tiny_slm, prompts, paths, batch_size=batch_size)
    for at, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        tail = tiny_slm.encode_rationale(path)
        assert found.tokens[at] == len(tail)
        expected = slow_log_probability(tiny_slm, tiny_slm.encode_prompt(prompt), tail)
        assert found.total[at] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(found.mean, found.total / found.tokens)


def test_no_paths_give_empty_results(tiny_slm: LanguageModel) -> None:
    found = rationale_log_probabilities(tiny_slm, [], [], batch_size=4)
    assert found.total.shape == found.tokens.shape == (0,)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_chosen_option_is_the_one_that_single_sequences_prefer(
    tiny_slm: LanguageModel, batch_size: int
) -> None:
    samples = choice_questions()
    found = choose(tiny_slm, samples, batch_size=batch_size)
    assert found.tolist() == [slow_choice(tiny_slm, one) for one in samples]
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("batch_size", [1, 16])
def test_greedy_paths_equal_token_by_token_decoding(
    tiny_slm: LanguageModel, batch_size: int
) -> None:
    prompts = [prompt_of(one.question, ()) for one in TINY.pool[:16]]
    found = greedy_rationales(tiny_slm, prompts, batch_size=batch_size, max_new_tokens=7)
    assert found == [slow_path(tiny_slm, prompt, 7) for prompt in prompts]


def test_accuracy_of_open_questions_is_the_share_of_right_greedy_answers(
    tiny_slm: LanguageModel,
) -> None:
    records = TINY.pool[:40]
    paths = [slow_path(tiny_slm, prompt_of(one.question, ()), 12) for one in records]
    right = [answer_of(path, ()) == one.answer for path, one in zip(paths, records, strict=True)]
    found = correct(tiny_slm, records, batch_size=16, max_new_tokens=12)
    assert found.tolist() == right
    assert 0 < sum(right) < len(right)
    assert accuracy(tiny_slm, records, batch_size=3) == pytest.approx(np.mean(right))


def test_open_and_closed_questions_may_be_mixed(tiny_slm: LanguageModel) -> None:
    closed = choice_questions()[:6]
    opened = list(TINY.pool[:6])
    mixed: list[Record | PoolSample] = [
        one for pair in zip(closed, opened, strict=True) for one in pair
    ]
    found = correct(tiny_slm, mixed, batch_size=4, max_new_tokens=12)
    assert found[0::2].tolist() == correct(tiny_slm, closed, batch_size=4).tolist()
    assert found[1::2].tolist() == correct(tiny_slm, opened, batch_size=4).tolist()


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone(
    tiny_slm: LanguageModel,
) -> None:
    prompts = [prompt_of(one.question, ()) for one in TINY.pool[:20]]
    before = torch.random.get_rng_state()
    drawn = [
        generate_texts(
            tiny_slm, prompts, batch_size=8, max_new_tokens=12, temperature=1.5, seed=seed
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda lm: accuracy(lm, [], batch_size=1), "at least one record", id="no records"
        ),
        pytest.param(
            lambda lm: choose(lm, TINY.pool[:1], batch_size=1), "open question", id="no options"
        ),
        pytest.param(
            lambda lm: rationale_log_probabilities(lm, ["4a\n"], [], batch_size=1),
            "1 prompts and 0 paths",
            id="unequal numbers",
        ),
        pytest.param(
            lambda lm: greedy_rationales(lm, ["4a\n"], batch_size=1, max_new_tokens=64),
            "takes 64 with the prompt",
            id="more to write than the model takes",
        ),
        pytest.param(
            lambda lm: greedy_rationales(lm, ["4a\n"], batch_size=0, max_new_tokens=1),
            "batch_size: expected 1 or more",
            id="empty batches",
        ),
        pytest.param(
            lambda lm: greedy_rationales(lm, ["4a\n"], batch_size=1, max_new_tokens=0),
            "max_new_tokens >= 1",
            id="nothing to write",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tiny_slm: LanguageModel, call: object, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        call(tiny_slm)  # type: ignore[operator]


LONG = "4f" * 200
ODD = ("", "\ud800", "\x00\x07", "<end>", "\u2028", LONG)


@pytest.mark.parametrize("odd", ODD)
def test_whatever_a_record_holds_its_company_is_judged_as_without_it(
    tiny_slm: LanguageModel, odd: str
) -> None:
    def record(number: int, question: str, answer: str, *choices: str) -> Record:
        return Record(
            record_id=str(number),
            unit=str(number),
            question=question,
            choices=choices,
            answer=answer,
            rationale=None,
        )

    good = [record(0, "4fg", "3"), record(1, "8cb", "5", "5", "6"), record(2, "7bc", "1")]
    hostile = [
        record(3, odd, "4"),
        record(4, "4fg", odd),
        record(5, odd, odd, odd),
        record(6, "4fg", "a", odd, "b"),
        record(7, "4fg", "0", *(f"{odd}{number}" for number in range(30))),
    ]
    right = correct(tiny_slm, [*hostile, *good], batch_size=4)
    assert right[5:].tolist() == correct(tiny_slm, good, batch_size=4).tolist()
    losses = rationale_log_probabilities(tiny_slm, ["4fg\n", odd], ["3", odd], batch_size=2).losses
    alone = rationale_log_probabilities(tiny_slm, ["4fg\n"], ["3"], batch_size=2).losses
    assert losses[0] == pytest.approx(alone[0], rel=1e-5)
    assert np.isfinite(losses).all()


def test_a_record_that_the_model_fails_on_counts_as_wrong_and_the_others_as_they_are(
    tiny_slm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = TINY.pool[:6]
    expected = correct(tiny_slm, records, batch_size=3)
    generate = evaluation.generate_texts

    def fails(lm: LanguageModel, prompts: list[str], **options: object) -> list[str]:
        if any(prompt.startswith(records[2].question) for prompt in prompts):
            raise MemoryError
        return generate(lm, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "generate_texts", fails)
    found = correct(tiny_slm, records, batch_size=3)
    assert not found[2]
    assert np.delete(found, 2).tolist() == np.delete(expected, 2).tolist()


def test_a_greedy_path_that_has_ended_is_computed_no_further(tiny_slm: LanguageModel) -> None:
    prompts = [prompt_of(one.question, ()) for one in TINY.pool[:16]]
    lengths = [len(tiny_slm.tokens_of(slow_path(tiny_slm, prompt, 12))) + 1 for prompt in prompts]
    rows: list[int] = []
    handle = tiny_slm.model.model.layers[0].mlp.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]))
    )
    try:
        greedy_rationales(tiny_slm, prompts, batch_size=16, max_new_tokens=12)
    finally:
        handle.remove()
    assert rows == [sum(length > at for length in lengths) for at in range(max(lengths))]
    assert rows[-1] < len(prompts)
