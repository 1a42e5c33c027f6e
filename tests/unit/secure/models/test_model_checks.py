"""What `lada check` says of a model: probes of style and form, the frame, public questions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from architecture_doubles import BYTES, family_folder, small_lm
from form_models import form_model, taught_samples
from tokenizer_doubles import CHAT, KINDS, small_tokenizer

from lada_secure.check.running import Request
from lada_secure.data.forms import FormName
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle, open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.form_probe import FormMeasurement, FormResult, measure_forms
from lada_secure.models.loading import LanguageModel
from lada_secure.models.memory import MemoryForecast
from lada_secure.models.model_checks import (
    ModelChecks,
    embedder_found,
    folder_findings,
    form_probe_found,
    frame_text,
    memory_found,
    style_probe_found,
    tokenizer_findings,
    weights_memory,
)
from lada_secure.models.placement import ON_CPU
from lada_secure.models.public_questions import public_questions, spread
from lada_secure.models.style_probe import StyleScore


def checks_of(
    lm: LanguageModel, *, asked_in: FormName | None = None, questions: int = 6
) -> ModelChecks[LanguageModel]:
    return ModelChecks(
        what="the model",
        load=lambda: lm,
        pool=taught_samples,
        asked_in=lambda: asked_in,
        path_tokens=lambda: 64,
        batch_size=lambda: 4,
        request=Request(questions=questions),
    )


def score(name: str, right: list[int]) -> StyleScore:
    return StyleScore(style=CallingStyle(name=name), right=np.array(right, dtype=bool))


def measured(
    *, recommended: FormName, worse: tuple[FormName, ...] = (), **right: int
) -> FormMeasurement:
    """Forms with so many of 40 questions right, four options each."""
    results = tuple(
        FormResult(
            form=name,
            right=np.arange(40) < count,
            readable=np.ones(40, dtype=bool),
            chance=0.25,
        )
        for name, count in right.items()
    )
    return FormMeasurement(results=results, recommended=recommended, worse=worse)  # type: ignore[arg-type]


def test_a_model_that_knows_its_questions_is_fine_in_every_form() -> None:
    (found,) = checks_of(form_model("cloze"), asked_in="reasoned").probe_forms()
    assert found.level == "ok"
    assert found.facts["recommended"] == "cloze"
    assert found.facts["questions"] == 6
    assert "cloze 100.0%" in found.message


@pytest.mark.parametrize(
    ("found", "asked_in", "said"),
    [
        pytest.param(
            measured(cloze=38, listed=10, reasoned=8, recommended="cloze", worse=("listed",)),
            None,
            "",
            id="no study yet and one form that it can do",
        ),
        pytest.param(
            measured(cloze=12, listed=10, reasoned=8, recommended="cloze"),
            None,
            "In none of them",
            id="no form that it can do",
        ),
        pytest.param(
            measured(cloze=38, listed=12, reasoned=8, recommended="cloze", worse=("listed",)),
            "listed",
            "right no more often than by guessing: it learns little from paths and its own answers "
            'say nothing. Propose answer_form = "cloze"',
            id="a study in a form that it cannot do",
        ),
        pytest.param(
            measured(cloze=12, listed=10, reasoned=8, recommended="cloze"),
            "cloze",
            "In none of them",
            id="a study in the form that it can do least badly",
        ),
        pytest.param(
            measured(cloze=38, listed=28, reasoned=8, recommended="cloze", worse=("listed",)),
            "listed",
            'does worse than "cloze" by more than noise',
            id="a study in a form that it does worse",
        ),
        pytest.param(
            measured(cloze=38, listed=36, reasoned=8, recommended="cloze"),
            "listed",
            "",
            id="a study in a form that it does as well",
        ),
    ],
)
def test_the_form_of_a_study_is_compared_with_what_the_model_can_do(
    found: FormMeasurement, asked_in: FormName | None, said: str
) -> None:
    one = form_probe_found(found, asked_in)
    assert one.level == ("warning" if said else "ok")
    assert said in one.message
    assert "recommended is cloze" in one.message


def test_forms_measured_in_parts_are_those_of_the_whole() -> None:
    told: list[tuple[int, int]] = []
    parts = measure_forms(
        form_model("cloze"),
        taught_samples(),
        batch_size=4,
        max_new_tokens=64,
        progress=lambda done, whole: told.append((done, whole)),
    )
    whole = measure_forms(form_model("cloze"), taught_samples(), batch_size=6, max_new_tokens=64)
    assert told == [(4, 18), (6, 18), (10, 18), (12, 18), (16, 18), (18, 18)]
    for one, other in zip(parts.results, whole.results, strict=True):
        assert one.right.tolist() == other.right.tolist()
        assert one.chance == pytest.approx(other.chance)


def test_a_style_that_loses_is_a_warning_and_one_style_alone_is_none() -> None:
    lm = small_lm(small_tokenizer(BYTES))
    losing = style_probe_found(lm, [score("plain", [0] * 40), score("chat", [1] * 40)])
    assert losing.level == "warning"
    assert 'Set style = "chat" in the table [model]' in losing.message
    ahead = style_probe_found(lm, [score("chat", [1] * 40), score("plain", [0] * 40)])
    assert ahead.level == "ok"
    assert ahead.facts["styles"] == {
        "chat": {"right_percent": 100.0, "standard_error": 0.0},
        "plain": {"right_percent": 0.0, "standard_error": 0.0},
    }
    assert style_probe_found(lm, [score("plain", [1])]).level == "skipped"


def test_styles_are_compared_on_the_questions_of_the_pool() -> None:
    lm = small_lm(small_tokenizer(BYTES, chat=CHAT))
    checks = checks_of(lm, questions=4)
    assert [one.sample_id for one in checks.questions] == ["q0", "q1", "q3", "q4"]
    (found,) = checks.probe_styles()
    assert found.facts["questions"] == 4


def test_the_frame_is_shown_as_text() -> None:
    lm = small_lm(small_tokenizer(BYTES, chat=CHAT))
    assert frame_text(lm.style, lm) == "QUESTION"
    chat = open_style(Calling(style="chat"), lm.tokenizer, name="small")
    assert frame_text(chat, replace(lm, style=chat)) == (
        "<s><|user|>\\nQUESTION<|end|>\\n<|assistant|>\\n"
    )


def test_a_tokenizer_that_makes_control_tokens_of_texts_is_refused() -> None:
    lm = small_lm(small_tokenizer("metaspace unigram"))
    fine, *_ = tokenizer_findings(lm, ())
    assert fine.level == "ok"
    with pytest.raises(ParameterError, match="becomes that control token"):
        list(tokenizer_findings(replace(lm, spelled={}), ()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_keeps_control_tokens_text(kind: str) -> None:
    fine, *_ = tokenizer_findings(small_lm(small_tokenizer(kind)), public_questions())
    assert fine.level == "ok"
    assert fine.facts["control_tokens"] >= 6  # type: ignore[operator]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="there is no such folder"):
        list(folder_findings(tmp_path / "nowhere"))
    (found,) = folder_findings(family_folder("Llama", tmp_path / "there"))
    assert found.facts["weight_files"] == 1


@pytest.mark.parametrize(("free", "level"), [(10_000, "ok"), (1_100, "warning"), (900, "fault")])
def test_a_forecast_is_compared_with_what_is_free(free: int, level: str) -> None:
    forecast = MemoryForecast(
        device="the CPU",
        lasting={"weights": 500},
        passing={"a step": 500},
        loading=0,
        free=free,
        here=0,
    )
    if level == "fault":
        with pytest.raises(ParameterError, match=r"the SLM does not fit.*Lower it"):
            memory_found(forecast, what="the SLM", lower="Lower it")
        return
    found = memory_found(forecast, what="the SLM", lower="Lower it")
    assert (found.level, found.facts["working_bytes"]) == (level, 1_000)


def test_without_a_plan_the_weights_alone_are_told(tmp_path: Path) -> None:
    folder = family_folder("Llama", tmp_path / "there")
    forecast = weights_memory(folder, ON_CPU)
    # Nothing is trained, so there is no optimiser.
    assert set(forecast.lasting) == {"this process", "weights"}
    found = memory_found(forecast, what="the SLM", lower="")
    assert found.level == "ok"
    assert "its plan tells how much" in found.message


def test_embedders_are_tried() -> None:
    assert embedder_found("hashed-ngrams").facts == {"dimensions": {"hashed-ngrams": 128}}
    with pytest.raises(ParameterError, match="got 'word2vec'"):
        embedder_found("word2vec")


def test_public_questions_are_questions_with_one_right_option_at_every_place() -> None:
    questions = public_questions()
    assert len({one.sample_id for one in questions}) == len(questions) == 138
    assert all(len(set(one.choices)) == 4 for one in questions)
    places = Counter(one.choices.index(one.answer) for one in questions)
    assert min(places.values()) > 0.8 * max(places.values())
    assert len({one.question.split()[0] for one in spread(questions, 16)}) > 2


def test_questions_are_spread_over_a_pool() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 100) == [0, 1, 2]
