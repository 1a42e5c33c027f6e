"""Which answer forms a model can do, and which one is recommended."""

from __future__ import annotations

import numpy as np
import pytest
from form_models import form_model, taught_samples

from lada_secure.data.forms import FORMS, FormName
from lada_secure.errors import ParameterError
from lada_secure.models.form_probe import FormResult, measure_forms, recommended_form

SAMPLES = taught_samples()
CLOSED = [sample for sample in SAMPLES if sample.choices]
NEW_TOKENS = 40


def test_the_forms_of_a_model_that_knows_them_all() -> None:
    found = measure_forms(form_model("cloze"), SAMPLES, batch_size=6, max_new_tokens=NEW_TOKENS)
    assert [one.form for one in found.results] == ["cloze", "listed", "reasoned"]
    for one in found.results:
        assert (one.accuracy, one.standard_error, one.readable_share) == (1.0, 0.0, 1.0)
        assert one.chance == pytest.approx((4 / 3 + 0) / 6)
        assert one.above_chance
    assert found.recommended == "cloze"


def test_a_model_without_room_to_reason_is_not_recommended_to_reason() -> None:
    found = measure_forms(form_model("reasoned"), CLOSED, batch_size=4, max_new_tokens=3)
    cloze, _, reasoned = found.results
    assert (cloze.accuracy, reasoned.accuracy, reasoned.readable_share) == (1.0, 0.0, 0.0)
    assert not reasoned.above_chance
    assert found.recommended == "cloze"
    with pytest.raises(ParameterError, match="at least one public question"):
        measure_forms(form_model("cloze"), [], batch_size=1, max_new_tokens=1)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        pytest.param((80, 82, 81), "cloze", id="equal within noise: the cheapest"),
        pytest.param((30, 80, 82), "listed", id="the cheapest of those that are equal"),
        pytest.param(
            (33, 36, 36), "listed", id="equal, and only the cheapest no more than guessed"
        ),
        pytest.param((30, 40, 80), "reasoned", id="the best beyond noise"),
        pytest.param((0, 0, 0), "cloze", id="none at all"),
    ],
)
def test_which_form_is_recommended(right: tuple[int, ...], expected: FormName) -> None:
    results = [
        FormResult(
            form=form,
            right=np.arange(100) < count,
            readable=np.ones(100, dtype=np.bool_),
            chance=0.25,
        )
        for form, count in zip(FORMS, right, strict=True)
    ]
    assert recommended_form(results) == expected


@pytest.mark.parametrize(
    ("right", "above"), [(25, False), (33, False), (36, True), (100, True), (0, False)]
)
def test_guessing_is_no_skill(right: int, above: bool) -> None:
    result = FormResult(
        form="listed",
        right=np.arange(100) < right,
        readable=np.ones(100, dtype=np.bool_),
        chance=0.25,
    )
    assert result.above_chance is above
