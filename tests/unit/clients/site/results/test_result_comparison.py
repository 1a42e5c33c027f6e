"""Figures of models against a table that was computed by hand."""

from __future__ import annotations

import pytest

from lada_clients.site.results.answers import Answer
from lada_clients.site.results.comparison import Answered, Drawing, HeldOut, compare, figures_of
from lada_secure.data.records import Record

# record, unit, topic, before: right and confidence, after: right and confidence
TABLE = (
    ("r0", "anna", 0, True, 0.95, True, 0.95),
    ("r1", "anna", 0, False, 0.55, True, 0.75),
    ("r2", "bert", 1, True, 0.55, False, 0.75),
    ("r3", "bert", 0, False, 0.55, True, 0.95),
    ("r4", "carl", 1, False, 0.05, True, 1.0),
)
HELD_OUT = HeldOut(
    records=[
        Record(record_id=row[0], unit=row[1], question="", choices=(), answer="", rationale=None)
        for row in TABLE
    ],
    units=[row[1] for row in TABLE],
    topics=[row[2] for row in TABLE],
)
DRAWING = Drawing(seed=0, resamples=400)


def answered(name: str, first: int, general: tuple[bool, ...] = ()) -> Answered:
    return Answered(
        name=name,
        adapters_sha256=None,
        held_out=[_answer(row[first], row[first + 1]) for row in TABLE],
        general=[_answer(right, 0.5) for right in general],
    )


def _answer(right: bool, confidence: float) -> Answer:
    return Answer(path="", answer=None, right=right, confidence=confidence)


BEFORE = answered("before", 3, (True, True, False, False))
AFTER = answered("after", 5, (True, False, False, False))


def test_accuracy_topics_and_general_ability() -> None:
    before, after = (figures_of(one, HELD_OUT, DRAWING) for one in (BEFORE, AFTER))
    assert (before.accuracy.value, after.accuracy.value) == pytest.approx((0.4, 0.8))
    assert (before.accuracy.n, before.accuracy.units) == (5, 3)
    assert [(one.topic, one.accuracy.value, one.accuracy.n) for one in after.topics] == [
        (0, 1.0, 3),
        (1, 0.5, 2),
    ]
    assert before.general is not None
    assert (before.general.value, before.general.units) == (0.5, 4)


def test_calibration() -> None:
    before = figures_of(BEFORE, HELD_OUT, DRAWING)
    told = [(one.low, one.n, one.confidence, one.accuracy) for one in before.calibration]
    assert told == [
        pytest.approx((0.0, 1, 0.05, 0.0)),
        pytest.approx((0.5, 3, 0.55, 1 / 3)),
        pytest.approx((0.9, 1, 0.95, 1.0)),
    ]
    # (1 x 0.05 + 3 x (0.55 - 1/3) + 1 x 0.05) / 5
    assert before.calibration_error == pytest.approx(0.15)
    # A confidence of 1 belongs to the last tenth.
    assert figures_of(AFTER, HELD_OUT, DRAWING).calibration[-1].n == 3


def test_the_paired_difference_names_what_was_lost_and_won() -> None:
    found = compare(AFTER, BEFORE, HELD_OUT, DRAWING)
    assert found.regressions == ("r2",)
    assert found.gains == ("r1", "r3", "r4")
    # By unit anna +1 of 2, bert 0 of 2, carl +1 of 1. One draw in 27 is bert alone, two are anna or
    # carl alone: more than 2.5% on either side without a spread, so three people tell nothing.
    assert found.difference.value == pytest.approx(0.4)
    assert (found.difference.low, found.difference.high) == (-1.0, 1.0)
    assert found.general_difference is not None
    assert found.general_difference.value == -0.25


def test_a_model_against_itself_is_no_difference() -> None:
    found = compare(AFTER, AFTER, HELD_OUT, DRAWING)
    assert (found.difference.value, found.regressions, found.gains) == (0.0, (), ())


def test_without_topics_and_general_questions_there_are_none() -> None:
    bare = HeldOut(records=HELD_OUT.records, units=HELD_OUT.units, topics=())
    one = answered("before", 3)
    assert figures_of(one, bare, DRAWING).topics == ()
    assert figures_of(one, bare, DRAWING).general is None
    assert compare(one, one, bare, DRAWING).general_difference is None
