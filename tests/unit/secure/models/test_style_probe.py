"""The probe of styles: which one a model was made for, and when a difference is more than noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from architecture_doubles import BYTES, small_lm
from tokenizer_doubles import CHAT, small_tokenizer

from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.calling import CallingStyle, open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.style_probe import StyleScore, probe_styles, style_warning
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

NAMES = ("gout", "fever", "cough", "loan", "bank", "house")


def samples(count: int = 24) -> list[PoolSample]:
    """Questions whose answer is in the question, so that a small model learns them by heart."""
    return [
        PoolSample(
            sample_id=str(at),
            question=f"{NAMES[at % 6]} {at}?",
            choices=(NAMES[at % 6], NAMES[(at + 1 + at // 6) % 6]),
            answer=NAMES[at % 6],
        )
        for at in range(count)
    ]


def score(name: str, right: list[int]) -> StyleScore:
    return StyleScore(style=CallingStyle(name=name), right=np.array(right, dtype=bool))


@pytest.fixture(scope="module")
def chatty() -> LanguageModel:
    """A model that has learned its answers in the chat template alone."""
    lm = small_lm(small_tokenizer(BYTES, chat=CHAT), calling=Calling(style="chat"))
    adapted = attach_adapters(
        lm, AdapterSettings(rank=8, target_modules=("q_proj", "v_proj", "up_proj", "down_proj"))
    )
    examples = [
        RationaleExample(
            example_id=one.sample_id,
            prompt=prompt_of(one.question, one.choices),
            path=rationale_of(one.answer, one.choices, None),
            rejected=None,
        )
        for one in samples()
    ]
    tune_on_rationales(
        adapted,
        examples,
        (),
        TuningSettings(
            steps=60, batch_size=8, replay_batch_size=0, learning_rate=0.01, max_epochs=99
        ),
    )
    return adapted


def test_a_model_called_in_another_style_than_its_own_is_warned_about(
    chatty: LanguageModel,
) -> None:
    plain = replace(
        chatty, style=open_style(Calling(style="plain"), chatty.tokenizer, name="plain")
    )
    scores = probe_styles(plain, samples(), batch_size=8)
    assert [one.style.name for one in scores] == ["plain", "chat"]
    assert scores[1].accuracy > scores[0].accuracy + 0.3
    warning = style_warning(plain, scores)
    assert warning is not None
    assert 'Set style = "chat"' in warning
    assert "of 24 public questions" in warning
    own = probe_styles(chatty, samples(), batch_size=8)
    assert [one.style.name for one in own] == ["chat", "plain"]
    assert own[0].right.tolist() == scores[1].right.tolist()
    assert style_warning(chatty, own) is None


def test_a_model_with_one_style_has_nothing_to_lose_against() -> None:
    lm = small_lm(small_tokenizer(BYTES))
    scores = probe_styles(lm, samples(6), batch_size=6)
    assert [one.style.name for one in scores] == ["plain"]
    assert style_warning(lm, scores) is None
    with pytest.raises(ParameterError, match="at least one"):
        probe_styles(lm, [], batch_size=6)


@pytest.mark.parametrize(
    ("chosen", "other", "warned"),
    [
        pytest.param([0] * 6 + [1] * 44, [1] * 50, True, id="six of six differences"),
        pytest.param([0] * 5 + [1] * 45, [1] * 50, False, id="five of five are noise"),
        pytest.param([0] * 9 + [1] * 41, [1] * 9 + [0] * 2 + [1] * 39, False, id="nine to two"),
        pytest.param([0] * 12 + [1] * 38, [1] * 12 + [0] * 2 + [1] * 36, True, id="twelve to two"),
        pytest.param([1] * 50, [0] * 50, False, id="the chosen one leads"),
        pytest.param([1, 0] * 25, [1, 0] * 25, False, id="nothing differs"),
    ],
)
def test_a_difference_is_told_where_the_exact_sign_test_finds_it(
    chosen: list[int], other: list[int], warned: bool
) -> None:
    lm = small_lm(small_tokenizer(BYTES))
    found = style_warning(lm, [score("plain", chosen), score("chat", other)])
    assert (found is not None) == warned


def test_accuracy_comes_with_its_standard_error() -> None:
    one = score("plain", [1] * 40 + [0] * 60)
    assert one.accuracy == pytest.approx(0.4)
    assert one.standard_error == pytest.approx(0.049, abs=1e-3)
    assert str(one) == '"plain" 40.0% (standard error 4.9%)'
