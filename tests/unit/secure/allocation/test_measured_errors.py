"""Errors on records: what the model gives the right option, in every form, whatever a record is."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from form_models import form_model, taught_records, taught_samples

from lada_secure.allocation import measurement
from lada_secure.allocation.measurement import measured_records
from lada_secure.data.forms import FormName
from lada_secure.data.records import Record
from lada_secure.models.confidence import answer_pool
from lada_secure.models.evaluation import option_probabilities, rationale_losses
from lada_secure.models.examples import record_example
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.release.units import Unit

EVERYWHERE = SimpleNamespace(embed=lambda texts: texts, assign=lambda texts: [0] * len(texts))
RECORDS = taught_records(bare=True)
CLOSED = [record for record in RECORDS if record.choices]
OPEN = [record for record in RECORDS if not record.choices]


def errors(lm: LanguageModel, records: list[Record], *, batch_size: int = 4) -> list[float]:
    """Every record as a unit of its own."""
    units = [Unit(unit_id=record.unit, records=(record,)) for record in records]
    found = measured_records(
        lm,
        units,
        clusters=EVERYWHERE,  # type: ignore[arg-type]
        embedder=EVERYWHERE,  # type: ignore[arg-type]
        batch_size=batch_size,
        measure="error",
    )
    return [one.loss for unit in found for one in unit]


@pytest.mark.parametrize("form", ["cloze", "listed"])
def test_what_is_known_by_heart_has_little_error_and_its_opposite_much(form: FormName) -> None:
    lm = form_model(form)
    assert max(errors(lm, CLOSED)) < 0.3
    others = {"lion": "cow", "cow": "pig", "pig": "lion"}
    assert min(errors(lm, [replace(one, answer=others[one.answer]) for one in CLOSED])) > 0.7


@pytest.mark.parametrize("form", ["cloze", "listed"])
def test_it_is_one_less_the_confidence_that_the_pool_is_answered_with(form: FormName) -> None:
    """So the two sides of a sample's value and of a cell's are of one kind."""
    lm = form_model(form)
    closed = [sample for sample in taught_samples() if sample.choices]
    confidence = answer_pool(lm, closed, batch_size=4, max_new_tokens=8).confidence
    np.testing.assert_allclose(errors(lm, CLOSED), 1.0 - confidence, atol=1e-5)


def test_a_form_that_reasons_first_is_asked_for_its_options_behind_no_reasons() -> None:
    lm = form_model("reasoned")
    shares = option_probabilities(lm, CLOSED, batch_size=4, begun=["\nAnswer:"] * len(CLOSED))
    expected = [
        1.0 - share[record.choices.index(record.answer)]
        for record, share in zip(CLOSED, shares, strict=True)
    ]
    np.testing.assert_allclose(errors(lm, CLOSED), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["cloze", "listed", "reasoned"])
def test_an_open_question_s_error_is_one_less_the_answer_s_probability_per_token(
    form: FormName,
) -> None:
    lm = form_model(form)
    stated = [
        record_example(record, lm.form, path=lm.form.target(record.answer, (), None))
        for record in OPEN
    ]
    expected = 1.0 - np.exp(-rationale_losses(lm, stated, batch_size=4))
    # Beside closed ones, whose places it must not take.
    mixed = errors(lm, [*OPEN, *CLOSED])
    np.testing.assert_allclose(mixed[: len(OPEN)], expected, atol=1e-6)
    np.testing.assert_allclose(mixed[len(OPEN) :], errors(lm, CLOSED), atol=1e-5)


def test_an_answer_that_is_no_option_is_wrong_for_sure_and_one_option_never() -> None:
    lm = form_model("cloze")
    odd = [replace(CLOSED[0], answer="elephant"), replace(CLOSED[0], choices=("lion",))]
    assert errors(lm, odd) == [1.0, 0.0]


def test_what_a_model_says_nothing_of_is_no_number_and_counts_as_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: object, **__: object) -> list[np.ndarray]:
        return [np.full(3, math.nan)]

    monkeypatch.setattr(measurement, "option_probabilities", nothing)
    (found,) = errors(form_model("cloze"), CLOSED[:1])
    # `unit_statistics` takes it for the clip, which is 1.
    assert math.isnan(found)
