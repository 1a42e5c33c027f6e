"""Asking, scoring, writing and learning in every answer form, with a model that knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from form_models import TAUGHT, form_model, taught_records, taught_samples

from lada_secure.data.forms import FORMS, FormName, ListedForm, answer_form, letter
from lada_secure.data.records import PoolSample, Record
from lada_secure.data.verification import Verifier
from lada_secure.errors import ParameterError
from lada_secure.models import rationales
from lada_secure.models.confidence import answer_pool
from lada_secure.models.evaluation import (
    choose,
    correct,
    generate_texts,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.examples import private_unit, record_example
from lada_secure.models.loading import LanguageModel
from lada_secure.models.preflight import needed_tokens
from lada_secure.models.rationales import Keep, Sampling, generate_rationales
from lada_secure.privacy.release.units import Unit

SAMPLES = taught_samples()
CLOSED = [sample for sample in SAMPLES if sample.choices]
NEW_TOKENS = 40
ALL_FORMS = pytest.mark.parametrize("name", FORMS)


def reason_of(sample: PoolSample) -> str:
    return next(reason for question, _, _, reason in TAUGHT if question == sample.question)


def crossed(samples: Sequence[PoolSample]) -> list[PoolSample]:
    """The same questions with another gold answer, which the model does not give."""
    return [
        replace(
            one,
            answer=next((other for other in one.choices if other != one.answer), one.answer + "0"),
        )
        for one in samples
    ]


@ALL_FORMS
def test_held_out_accuracy(name: FormName) -> None:
    lm = form_model(name)
    mixed = [*SAMPLES, *crossed(SAMPLES)]
    found = correct(lm, mixed, batch_size=5, max_new_tokens=NEW_TOKENS)
    assert found.tolist() == [True] * len(SAMPLES) + [False] * len(SAMPLES)


@ALL_FORMS
def test_an_option_is_judged_alone_as_in_company(name: FormName) -> None:
    lm = form_model(name)
    together = correct(lm, SAMPLES, batch_size=6, max_new_tokens=NEW_TOKENS)
    alone = [
        bool(correct(lm, [one], batch_size=1, max_new_tokens=NEW_TOKENS)[0]) for one in SAMPLES
    ]
    assert together.tolist() == alone


def test_letters_are_scored_as_the_model_finds_them_after_the_prompt() -> None:
    """Single tokens: nothing is left to read behind the prompt."""
    lm = form_model("listed")
    shares = option_probabilities(lm, CLOSED, batch_size=3)
    for sample, share in zip(CLOSED, shares, strict=True):
        prompt = lm.form.prompt(sample.question, sample.choices)
        # Less what the end token costs, which no option has.
        scored = [
            rationale_log_probabilities(lm, [prompt], [text], batch_size=1).total[0]
            - _end_after(lm, prompt + text)
            for text in lm.form.options(sample.choices)
        ]
        # Two characters: a space and a letter.
        weights = np.exp(np.array(scored) / 2)
        np.testing.assert_allclose(share, weights / weights.sum(), rtol=1e-3, atol=1e-6)
    assert [
        CLOSED[at].choices[pick] for at, pick in enumerate(choose(lm, CLOSED, batch_size=2))
    ] == [one.answer for one in CLOSED]


def _end_after(lm: LanguageModel, text: str) -> float:
    return float(rationale_log_probabilities(lm, [text], [""], batch_size=1).total[0])


class OneToken(ListedForm):
    """Most tokenizers have a token for a space with a letter; this one has single characters."""

    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(letter(place) for place in range(len(choices)))


def test_an_option_of_one_token_is_scored_by_the_prompt_alone() -> None:
    lm = form_model("cloze").with_form(OneToken())
    (share,) = option_probabilities(lm, CLOSED[:1], batch_size=1)
    prompt = lm.form.prompt(CLOSED[0].question, CLOSED[0].choices)
    scored = [
        rationale_log_probabilities(lm, [prompt], [text], batch_size=1).total[0]
        - _end_after(lm, prompt + text)
        for text in "ABC"
    ]
    np.testing.assert_allclose(share, np.exp(scored) / np.exp(scored).sum(), rtol=1e-3, atol=1e-6)


def test_a_form_that_reasons_first_has_no_choice_before_it_has_written() -> None:
    with pytest.raises(ParameterError, match="behind what the model writes"):
        choose(form_model("reasoned"), CLOSED, batch_size=2)


@ALL_FORMS
def test_confidence_in_the_gold_answer(name: FormName) -> None:
    lm = form_model(name)
    found = answer_pool(lm, SAMPLES, batch_size=4, max_new_tokens=NEW_TOKENS)
    assert found.right.all()
    assert (found.confidence > 0.4).all()
    missed = answer_pool(lm, crossed(SAMPLES), batch_size=4, max_new_tokens=NEW_TOKENS)
    assert not missed.right.any()
    assert (missed.confidence < 0.4).all()
    # What the model says has nothing to do with the gold answer.
    assert found.paths == missed.paths


def test_a_reasoned_path_that_cannot_be_read_has_no_confidence() -> None:
    lm = form_model("reasoned")
    cut_off = answer_pool(lm, SAMPLES, batch_size=4, max_new_tokens=4)
    assert not cut_off.right.any()
    assert (cut_off.confidence == 0.0).all()
    whole = answer_pool(lm, CLOSED, batch_size=4, max_new_tokens=NEW_TOKENS)
    begun = [lm.form.before_answer(path) for path in whole.paths]
    shares = option_probabilities(lm, CLOSED, batch_size=2, begun=begun)
    wanted = [
        share[one.choices.index(one.answer)] for one, share in zip(CLOSED, shares, strict=True)
    ]
    np.testing.assert_allclose(whole.confidence, wanted, rtol=1e-4)


@ALL_FORMS
def test_rationales_that_are_kept_reach_the_gold_answer_and_have_reasons(name: FormName) -> None:
    lm = form_model(name)
    mixed = [*SAMPLES, replace(crossed(SAMPLES)[0], sample_id="never")]
    found = generate_rationales(
        lm, mixed, max_new_tokens=NEW_TOKENS, sampling=Sampling(attempts=2), batch_size=4
    )
    assert [one.sample_id for one in found.paths] == [one.sample_id for one in SAMPLES]
    assert found.dropped == ("never",)
    # A choice is the same at every attempt; a path that reasons first is drawn again.
    assert found.wrong == (2 if name == "reasoned" else 1)
    for one, sample in zip(found.paths, SAMPLES, strict=True):
        assert lm.form.right(one.path, sample.choices, sample.answer)
        assert reason_of(sample) in one.path


def paths_of(
    monkeypatch: pytest.MonkeyPatch, texts: Sequence[Sequence[str]], *, keep: Keep, attempts: int
) -> tuple[rationales.GeneratedRationales, list[tuple[float, float]]]:
    """What is kept of the texts of each attempt, and how each attempt was drawn."""
    drawn: list[tuple[float, float]] = []

    def write(
        _lm: LanguageModel,
        prompts: list[str],
        *,
        temperature: float,
        top_p: float,
        **_sizes: object,
    ) -> list[str]:
        drawn.append((temperature, top_p))
        return list(texts[len(drawn) - 1])[: len(prompts)]

    monkeypatch.setattr(rationales, "generate_texts", write)
    found = generate_rationales(
        form_model("reasoned"),
        [SAMPLES[0]],
        max_new_tokens=NEW_TOKENS,
        sampling=Sampling(attempts=attempts, temperature=0.9, top_p=0.8, keep=keep),
        batch_size=4,
    )
    return found, drawn


KNOWN = " it has a mane\nAnswer: B"
ODD = " zq~ #\nAnswer: B"
WRONG = " x\nAnswer: A"


@pytest.mark.parametrize(
    ("keep", "texts", "kept", "draws"),
    [
        pytest.param("first", [ODD, KNOWN], ODD, 1, id="the first right one ends it"),
        pytest.param("first", [WRONG, KNOWN, ODD], KNOWN, 2, id="a wrong one is drawn again"),
        pytest.param("shortest", [KNOWN, WRONG, ODD], ODD, 3, id="the shortest right one"),
        pytest.param("most_probable", [ODD, WRONG, KNOWN], KNOWN, 3, id="the most probable one"),
        pytest.param("shortest", [KNOWN, KNOWN, WRONG], KNOWN, 3, id="equal ones"),
    ],
)
def test_which_right_path_is_kept(
    monkeypatch: pytest.MonkeyPatch, keep: Keep, texts: list[str], kept: str, draws: int
) -> None:
    found, drawn = paths_of(monkeypatch, [[text] for text in texts], keep=keep, attempts=len(texts))
    assert [one.path for one in found.paths] == [kept]
    # Greedy first, then as the plan says.
    assert drawn == [(0.0, 1.0), (0.9, 0.8), (0.9, 0.8)][:draws]
    assert found.wrong == texts[:draws].count(WRONG)


def test_a_choice_with_several_reasons_keeps_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, reasons = form_model("listed"), iter([["it is long"], ["short"]])
    monkeypatch.setattr(rationales, "generate_texts", lambda *_a, **_k: next(reasons))
    found = generate_rationales(
        lm,
        [SAMPLES[0]],
        max_new_tokens=NEW_TOKENS,
        sampling=Sampling(attempts=2, keep="shortest"),
        batch_size=1,
    )
    assert found.paths[0].path == " B\nshort"


def test_a_small_nucleus_draws_what_greedy_writes() -> None:
    lm = form_model("reasoned")
    prompts = [lm.form.prompt(one.question, one.choices) for one in SAMPLES]
    greedy = greedy_rationales(lm, prompts, batch_size=6, max_new_tokens=NEW_TOKENS)
    drawn = {
        top_p: generate_texts(
            lm,
            prompts,
            batch_size=6,
            max_new_tokens=NEW_TOKENS,
            temperature=5.0,
            top_p=top_p,
            seed=1,
        )
        for top_p in (1e-6, 1.0)
    }
    assert drawn[1e-6] == greedy
    assert drawn[1.0] != greedy
    for wrong in (0.0, 1.1):
        with pytest.raises(ParameterError, match="top_p in"):
            generate_texts(
                lm, ["a"], batch_size=1, max_new_tokens=1, temperature=1.0, top_p=wrong, seed=1
            )


@ALL_FORMS
def test_reasons_that_a_model_writes_for_bare_answers_are_each_units_own(name: FormName) -> None:
    """The bound per unit rests on it: who else is there changes nothing."""
    lm = form_model(name)
    records = taught_records(bare=True)
    units = [Unit(unit_id=f"u{at}", records=records[2 * at : 2 * at + 2]) for at in range(3)]
    together = rationales.self_generated_rationales(
        lm, units, batch_size=6, max_new_tokens=NEW_TOKENS
    )
    alone = [
        one
        for unit in units
        for one in rationales.self_generated_rationales(
            lm, [unit], batch_size=1, max_new_tokens=NEW_TOKENS
        )
    ]
    assert together == alone
    assert all(path is not None for paths in together for path in paths)
    taught = private_unit(units[0], lm.form, with_reasons_only=True, written=together[0])
    assert [one.path for one in taught.examples] == [
        lm.form.target(answer, choices, reason) for _, choices, answer, reason in TAUGHT[:2]
    ]


@ALL_FORMS
def test_a_record_is_learned_in_the_form(name: FormName) -> None:
    form = answer_form(name)
    told, bare = taught_records(bare=False)[0], taught_records(bare=True)[0]
    example = record_example(told, form)
    assert example.prompt == form.prompt(told.question, told.choices)
    assert example.path == form.target("lion", told.choices, "it has a mane")
    assert record_example(bare, form).path == form.target("lion", told.choices, None)


@ALL_FORMS
def test_lengths_count_what_the_form_adds(name: FormName) -> None:
    lm = form_model(name)
    record = taught_records(bare=False)[0]
    prompt = lm.form.prompt(record.question, record.choices)
    path = lm.form.target(record.answer, record.choices, record.rationale)
    (needed,) = needed_tokens(lm, [record], written=[0])
    assert needed == len(prompt) + len(path) + 1
    assert needed_tokens(lm, [record], written=[90]) == [len(prompt) + 90]


def test_records_that_got_past_the_files_are_judged_and_move_nobody() -> None:
    """Options that repeat, an answer that is none, 30 options: wrong or right, never an end."""
    hostile = [
        replace(CLOSED[0], choices=("A", "A"), answer="A"),
        replace(CLOSED[0], choices=("x", "y"), answer="no option"),
        replace(CLOSED[0], choices=tuple("o" * n for n in range(30)), answer="oo"),
        replace(CLOSED[0], choices=("\n", "Answer: A\n"), answer="\n"),
        replace(CLOSED[0], question="", choices=("only",), answer="only"),
    ]
    for name in FORMS:
        lm = form_model(name)
        found = correct(lm, [*hostile, *SAMPLES], batch_size=4, max_new_tokens=NEW_TOKENS)
        assert found[len(hostile) :].all()


def test_open_answers_are_right_by_the_plans_verifier() -> None:
    near = Verifier(rule="numeric", tolerance=0.2)
    asked = [replace(one, answer=f"{one.answer}.5") for one in SAMPLES if not one.choices]
    records = [_record(one) for one in asked]
    units = [Unit(unit_id="u", records=tuple(records))]
    for name in FORMS:
        for verifier, right in ((Verifier(), False), (near, True)):
            lm = form_model(name, verifier)
            assert (
                correct(lm, asked, batch_size=2, max_new_tokens=NEW_TOKENS).tolist() == [right] * 2
            )
            answers = answer_pool(lm, asked, batch_size=2, max_new_tokens=NEW_TOKENS)
            assert answers.right.tolist() == [right] * 2
            assert (answers.confidence > 0).tolist() == [right] * 2
            written = generate_rationales(
                lm, asked, max_new_tokens=NEW_TOKENS, sampling=rationales.GREEDY, batch_size=2
            )
            assert len(written.paths) == (2 if right else 0)
            (own,) = rationales.self_generated_rationales(
                lm, units, batch_size=2, max_new_tokens=NEW_TOKENS
            )
            assert [path is not None for path in own] == [right] * 2


def _record(sample: PoolSample) -> Record:
    return Record(
        record_id=sample.sample_id,
        unit="u",
        question=sample.question,
        choices=(),
        answer=sample.answer,
        rationale=None,
    )
