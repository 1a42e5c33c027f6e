"""Valuation students, and what they make of private records, against the slow way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trainer_doubles import example, small_model

from lada_secure.allocation.measurement import measured_gains, valuation_student
from lada_secure.allocation.valuation_gains import ValuationParameters, unit_gains
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.records import Record
from lada_secure.models.adapters import (
    AdapterSettings,
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.evaluation import rationale_log_probabilities
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.units import Unit

PUBLIC = ValuationParameters(clusters=3, gain_clip=2.0, noise_multiplier=1.0)
TUNING = TuningSettings(
    steps=20,
    batch_size=3,
    replay_batch_size=0,
    learning_rate=1e-2,
    max_epochs=100,
    loss=LossSettings(contrastive_weight=0.0),
)


@pytest.fixture(scope="module", params=[None, 1], ids=["all layers", "the last layer"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """Below the last layer, what a record becomes is the same for all students and kept."""
    model = small_model()
    attach_adapters(model, AdapterSettings(rank=4, last_layers=request.param))
    return model


def record(number: int, rationale: str | None, *, unit: str) -> Record:
    return Record(
        record_id=f"r{number}",
        unit=unit,
        question=f"question {number}",
        choices=(),
        answer=str(number),
        rationale=rationale,
    )


UNITS = (
    Unit(unit_id="u0", records=(record(0, "good", unit="u0"), record(1, None, unit="u0"))),
    Unit(unit_id="u1", records=(record(2, "good", unit="u1"), record(3, "evil", unit="u1"))),
    Unit(unit_id="u2", records=(record(4, None, unit="u2"),)),
)


def student(lm: LanguageModel, word: str, reference: AdapterWeights) -> AdapterWeights:
    paths = [
        replace(example(at), prompt=f"question {at}\n", path=f"{word}\n{at}", rejected=None)
        for at in (5, 6, 7)
    ]
    return valuation_student(lm, paths, (), reference=reference, tuning=TUNING)


def test_each_unit_says_how_much_likelier_its_records_became(lm: LanguageModel) -> None:
    reference = adapter_weights(lm)
    students = {0: student(lm, "good", reference), 2: student(lm, "evil", reference)}
    gains = measured_gains(
        lm, UNITS, students, reference=reference, clusters=PUBLIC.clusters, batch_size=2
    )
    found = unit_gains(gains, PUBLIC)

    def loss(one: Record, weights: AdapterWeights) -> float:
        load_adapters(lm, weights)
        scored = rationale_log_probabilities(
            lm,
            [prompt_of(one.question, one.choices)],
            [rationale_of(one.answer, one.choices, one.rationale)],
            batch_size=1,
        )
        load_adapters(lm, reference)
        return float(scored.losses[0])

    expected = np.zeros(4)
    for unit in UNITS:
        told = [one for one in unit.records if one.rationale is not None]
        if not told:
            continue
        says = np.zeros(4)
        says[3] = 1.0
        for cluster, weights in students.items():
            gains = [loss(one, reference) - loss(one, weights) for one in told]
            says[cluster] = np.mean(np.clip(gains, -2.0, 2.0) / 2.0)
        assert np.linalg.norm(says) <= 2.0
        expected += says
    # Rounded towards zero per unit, so up to one step less for each of the two with reasons.
    assert np.abs(found - expected * PUBLIC.scale).max() <= 2.0
    assert found[1] == 0
    assert found[3] == 2 * PUBLIC.scale
    # Of three records two say "good", and one of them is alone in its unit.
    assert found[0] > found[2]


def test_the_model_is_left_as_it_was(lm: LanguageModel) -> None:
    reference = adapter_weights(lm)
    one = student(lm, "good", reference)
    assert one != reference
    assert adapter_weights(lm) == reference
    load_adapters(lm, one)
    measured_gains(lm, UNITS, {0: reference}, reference=reference, clusters=3, batch_size=4)
    assert adapter_weights(lm) == one
    load_adapters(lm, reference)


def test_a_site_without_reasons_says_nothing(lm: LanguageModel) -> None:
    reference = adapter_weights(lm)
    found = measured_gains(
        lm, UNITS[2:], {0: reference}, reference=reference, clusters=PUBLIC.clusters, batch_size=4
    )
    assert unit_gains(found, PUBLIC).tolist() == [0, 0, 0, 0]
