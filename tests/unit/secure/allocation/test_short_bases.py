"""With a base shorter than float32 company shows; no unit may move what another adds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from trainer_doubles import small_model, stir_adapters, text

from lada_secure.allocation.measurement import measured_gains, measured_records
from lada_secure.data.records import Record
from lada_secure.models import company
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import self_generated_rationales
from lada_secure.privacy.release.units import Unit

UNITS = tuple(
    Unit(
        unit_id=f"u{number}",
        records=tuple(
            Record(
                record_id=f"r{number}.{at}",
                unit=f"u{number}",
                question=text(number + at, 6 + 3 * number + at),
                choices=(),
                answer=str(number),
                rationale=text(number, 5 + number),
            )
            for at in range(1 + number % 2)
        ),
    )
    for number in range(6)
)
EVERYWHERE = SimpleNamespace(embed=lambda texts: texts, assign=lambda texts: [0] * len(texts))


@pytest.fixture
def lm() -> LanguageModel:
    found = attach_adapters(small_model(dtype="bfloat16"), AdapterSettings(rank=2))
    stir_adapters(found)
    return found


def losses(lm: LanguageModel, units: tuple[Unit, ...]) -> list[list[float]]:
    found = measured_records(lm, units, clusters=EVERYWHERE, embedder=EVERYWHERE, batch_size=8)
    return [[one.loss for one in unit] for unit in found]


def gains(lm: LanguageModel, units: tuple[Unit, ...]) -> list[list[float]]:
    reference = adapter_weights(lm)
    stir_adapters(lm, seed=11)
    student = adapter_weights(lm)
    found = measured_gains(lm, units, {0: student}, reference=reference, clusters=1, batch_size=8)
    stir_adapters(lm)
    return [one.tolist() for one in found]


@pytest.mark.parametrize("measure", [losses, gains])
def test_what_is_measured_of_a_unit_is_the_same_whoever_else_is_there(
    lm: LanguageModel, measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [measure(lm, (unit,))[0] for unit in UNITS]
    assert measure(lm, UNITS) == alone
    assert all(np.abs(one).max() > 0.0 for one in alone)
    # What is measured here would be seen: in one batch the numbers are others.
    monkeypatch.setattr(company, "runs_in_float32", lambda _: True)
    assert measure(lm, UNITS) != alone


def test_own_reasons_are_written_for_each_unit_by_itself(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(_, prompts, **__):
        asked.append(len(prompts))
        return [""] * len(prompts)

    monkeypatch.setattr("lada_secure.models.rationales.greedy_rationales", noted)
    bare = [
        Unit(
            unit_id=unit.unit_id,
            records=tuple(
                Record(
                    record_id=one.record_id,
                    unit=one.unit,
                    question=one.question,
                    choices=(),
                    answer=one.answer,
                    rationale=None,
                )
                for one in unit.records
            ),
        )
        for unit in UNITS
    ]
    self_generated_rationales(lm, bare, batch_size=8, max_new_tokens=2)
    assert asked == [1, 2, 1, 2, 1, 2]
