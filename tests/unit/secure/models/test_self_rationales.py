"""Records with a bare answer: what the model writes for them, and what is left out."""

from __future__ import annotations

import pytest

from lada_secure.data.forms import CLOZE
from lada_secure.data.records import Record
from lada_secure.models import rationales as own_reasons
from lada_secure.models.evaluation import greedy_rationales
from lada_secure.models.examples import private_unit
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import self_generated_rationales
from lada_secure.privacy.release.units import Unit


def record(number: int, *, answer: str = "7", rationale: str | None = None) -> Record:
    return Record(
        record_id=f"record-{number}",
        unit="unit-1",
        question=f"4f{number}",
        choices=(),
        answer=answer,
        rationale=rationale,
    )


def units_of(records: list[Record]) -> list[Unit]:
    """A unit for every two records."""
    return [
        Unit(unit_id="unit-1", records=tuple(records[at : at + 2]))
        for at in range(0, len(records), 2)
    ]


def written(
    monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, records: list[Record], texts: list[str]
) -> list[tuple[str | None, ...]]:
    monkeypatch.setattr(own_reasons, "greedy_rationales", lambda *_args, **_sizes: texts)
    return self_generated_rationales(lm, units_of(records), batch_size=4, max_new_tokens=8)


def test_only_paths_with_reasons_that_reach_the_answer_are_kept(
    monkeypatch: pytest.MonkeyPatch, tiny_slm: LanguageModel
) -> None:
    records = [record(0), record(9, rationale="told"), *(record(number) for number in (1, 2, 3))]
    texts = ["f9g7\n7", "f9g6\n6", "7", ""]
    assert written(monkeypatch, tiny_slm, records, texts) == [
        ("f9g7\n7", None),
        (None, None),
        (None,),
    ]


def test_a_models_own_text_is_read_for_each_record_alone(tiny_slm: LanguageModel) -> None:
    """Who else is in the data set changes nothing: the bound per unit rests on it."""
    texts = greedy_rationales(
        tiny_slm, [f"4f{number}\n" for number in range(6)], batch_size=6, max_new_tokens=4
    )
    # Answers that the model does reach, so that there is something to compare.
    told = units_of(
        [
            record(number, answer=text.strip().splitlines()[-1] if text.strip() else "7")
            for number, text in enumerate(texts)
        ]
    )
    together = self_generated_rationales(tiny_slm, told, batch_size=6, max_new_tokens=4)
    alone = [
        paths
        for one in told
        for paths in self_generated_rationales(tiny_slm, [one], batch_size=1, max_new_tokens=4)
    ]
    assert together == alone
    assert self_generated_rationales(tiny_slm, [], batch_size=6, max_new_tokens=4) == []


def test_a_unit_that_the_model_cannot_write_for_gets_nothing_and_the_others_what_they_get(
    monkeypatch: pytest.MonkeyPatch, tiny_slm: LanguageModel
) -> None:
    def fails(lm: LanguageModel, prompts: list[str], **_sizes: int) -> list[str]:
        if "4f2\n" in prompts:
            raise RuntimeError("4f2 is in this text")
        return [f"f9{prompt[2]}\n7" for prompt in prompts]

    monkeypatch.setattr(own_reasons, "greedy_rationales", fails)
    found = self_generated_rationales(
        tiny_slm, units_of([record(number) for number in range(6)]), batch_size=4, max_new_tokens=8
    )
    assert found == [("f90\n7", "f91\n7"), (), ("f94\n7", "f95\n7")]


def test_a_unit_learns_its_own_reasons_and_what_was_written_for_the_rest() -> None:
    unit = Unit(
        unit_id="unit-1",
        records=(record(0, rationale="f9g7"), record(1), record(2)),
    )
    own = (None, None, "f1\n7")
    taught = private_unit(unit, CLOZE, with_reasons_only=True, written=own)
    assert [one.path for one in taught.examples] == ["f9g7\n7", "f1\n7"]
    everything = private_unit(unit, CLOZE, written=own)
    assert [one.path for one in everything.examples] == ["f9g7\n7", "7", "f1\n7"]
    without = private_unit(unit, CLOZE, with_reasons_only=True)
    assert [one.example_id for one in without.examples] == ["record-0"]
