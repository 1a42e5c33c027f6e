"""Figures by kind of task, each against a table that was computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from lada_clients.site.results.answers import Answer
from lada_clients.site.results.comparison import Answered, Drawing, HeldOut, compare, figures_of
from lada_clients.site.results.evaluation import KindFigures
from lada_clients.site.results.macro_f1 import Labelled
from lada_secure.data.records import Record
from lada_secure.data.tasks import Choice, Classification, Number, Task, Text, YesNoUnknown

ALPHA = 1e-6
SEED = 20_262
# With so many studies a coverage of 90.6% or less is told from 95% at ALPHA.
STUDIES = 600
DRAWING = Drawing(seed=0, resamples=400)
LABELS = ("a", "b", "c")
ANSWERS = ("no", "unknown", "yes")
MG = Number(tolerance=0.05, units=(("g", 1000.0), ("mg", 1.0)))

# unit, task, choices, gold, what the model says and, by the study's own rule, whether that is right
CHOICES = (
    ("anna", Choice(), ("x", "y"), "x", "x"),
    ("bert", Choice(), ("u", "v", "w"), "w", "u"),
    ("carl", Choice(), ("x", "y"), "y", None),
    ("carl", Choice(), ("x", "z"), "z", "z"),
)
TEXTS = (
    ("anna", Text(), (), "Gout", "gout."),
    ("bert", Text(), (), "a broken arm", "A  broken arm"),
    ("bert", Text(), (), "gout", "gouty"),
    ("carl", Text(), (), "flu", None),
)
NUMBERS = (
    # Exactly at the tolerance; a gram is 1000 mg; the number without its unit; beyond; no number.
    ("anna", MG, (), "100 mg", "105 mg"),
    ("anna", MG, (), "100 mg", "0.1 g"),
    ("bert", MG, (), "100 mg", "100"),
    ("bert", MG, (), "100 mg", "106 mg"),
    ("carl", MG, (), "100 mg", "a lot"),
)
UNKNOWNS = (
    # Right; wrong; abstains though it could be known; does not where it cannot; abstains rightly.
    ("anna", YesNoUnknown(unknown="unknown"), ANSWERS, "yes", "yes"),
    ("anna", YesNoUnknown(unknown="unknown"), ANSWERS, "no", "yes"),
    ("bert", YesNoUnknown(unknown="unknown"), ANSWERS, "no", "unknown"),
    ("bert", YesNoUnknown(unknown="unknown"), ANSWERS, "unknown", "no"),
    ("carl", YesNoUnknown(unknown="unknown"), ANSWERS, "unknown", "unknown"),
    ("carl", YesNoUnknown(unknown="unknown"), ANSWERS, "unknown", "unknown"),
    ("dora", YesNoUnknown(unknown="unknown"), ANSWERS, "yes", None),
)
CLASSES = (
    ("anna", Classification(), LABELS, "a", "a"),
    ("anna", Classification(), LABELS, "a", "a"),
    ("bert", Classification(), LABELS, "a", "b"),
    ("bert", Classification(), LABELS, "b", "b"),
    ("carl", Classification(), LABELS, "b", None),
    ("carl", Classification(), LABELS, "b", "a"),
)
Row = tuple[str, Task | None, tuple[str, ...], str, str | None]


def figures(rows: Sequence[Row]) -> tuple[KindFigures, ...]:
    return figures_of(answered("after", rows), held_out(rows), DRAWING).kinds


def held_out(rows: Sequence[Row]) -> HeldOut:
    records = [
        Record(
            record_id=f"r{at}",
            unit=unit,
            question="?",
            choices=choices,
            answer=gold,
            rationale=None,
            task=task,
        )
        for at, (unit, task, choices, gold, _) in enumerate(rows)
    ]
    return HeldOut(records=records, units=[one.unit for one in records], topics=())


def answered(name: str, rows: Sequence[Row]) -> Answered:
    # The study's own rule is another one: it calls everything wrong.
    said = [Answer(path="", answer=row[4], right=False, confidence=0.5) for row in rows]
    return Answered(name=name, adapters_sha256=None, held_out=said, general=())


def told(one: KindFigures) -> dict[str, tuple[float, int]]:
    return {
        f"{figure.name} {figure.label or ''}".strip(): (figure.value.value, figure.value.n)
        for figure in one.figures
    }


@pytest.mark.parametrize(
    ("rows", "kind", "expected"),
    [
        pytest.param(CHOICES, "choice", {"accuracy": (2 / 4, 4)}, id="choice"),
        pytest.param(TEXTS, "text", {"exact match": (2 / 4, 4)}, id="text"),
        pytest.param(
            NUMBERS,
            "number",
            {
                "within tolerance": (2 / 5, 5),
                "right number, other unit": (1 / 5, 5),
                "no number": (1 / 5, 5),
            },
            id="number",
        ),
        pytest.param(
            UNKNOWNS,
            "yes_no_unknown",
            {
                "accuracy": (3 / 7, 7),
                "answered yes or no": (3 / 7, 7),
                "right where yes or no was answered": (1 / 3, 3),
                "unknown ones found": (2 / 3, 3),
                "unknown where unknown was answered": (2 / 3, 3),
            },
            id="yes, no, unknown",
        ),
        pytest.param(
            CLASSES,
            "classification",
            {
                # a: 2 of 3 found, 2 of 3 said rightly: 4/6. b: 1 of 3 found, 1 of 2 said: 2/5.
                # No record is of c, which is left out.
                "macro-F1": ((4 / 6 + 2 / 5) / 2, 6),
                "accuracy": (3 / 6, 6),
                "recall a": (2 / 3, 3),
                "recall b": (1 / 3, 3),
            },
            id="classification",
        ),
    ],
)
def test_a_kind_by_hand(
    rows: Sequence[Row], kind: str, expected: dict[str, tuple[float, int]]
) -> None:
    (found,) = figures(rows)
    assert (found.kind, found.records) == (kind, len(rows))
    assert told(found) == {name: pytest.approx(value) for name, value in expected.items()}
    for figure in found.figures:
        assert 0.0 <= figure.value.low <= figure.value.value <= figure.value.high <= 1.0


def test_kinds_of_one_file_are_told_apart_and_the_studys_figure_stays_its_own() -> None:
    plain: Row = ("anna", None, (), "7", "7")
    rows = (*CHOICES, plain, *CLASSES)
    found = figures_of(answered("after", rows), held_out(rows), DRAWING)
    assert [one.kind for one in found.kinds] == ["choice", "classification", "not said"]
    assert [one.records for one in found.kinds] == [4, 6, 1]
    assert found.accuracy.value == 0.0
    assert told(found.kinds[2]) == {"accuracy": (0.0, 1)}


def test_records_that_say_no_kind_have_no_figures_by_kind() -> None:
    assert figures([("anna", None, ("x", "y"), "x", "x")]) == ()


@pytest.mark.parametrize(
    ("rows", "name", "moved"),
    [
        (CHOICES, "accuracy", -2 / 4),
        (NUMBERS, "within tolerance", -2 / 5),
        (CLASSES, "macro-F1", -(4 / 6 + 2 / 5) / 2),
    ],
)
def test_models_are_compared_by_the_first_figure(
    rows: Sequence[Row], name: str, moved: float
) -> None:
    silent = [(*row[:4], None) for row in rows]
    found = compare(answered("x", silent), answered("y", rows), held_out(rows), DRAWING)
    assert [one.name for one in found.kinds] == [name]
    assert found.kinds[0].difference.value == pytest.approx(moved)
    assert found.kinds[0].difference.low <= moved <= found.kinds[0].difference.high


def people(
    generator: np.random.Generator, number: int
) -> tuple[list[str], list[str | None], list[str]]:
    """Gold labels, answers and units of people with 1 to 6 records and an ability of their own."""
    sizes = generator.integers(1, 7, size=number)
    unit = np.repeat(np.arange(number), sizes)
    gold = generator.choice(3, size=len(unit), p=[0.6, 0.3, 0.1])
    right = generator.random(len(unit)) < np.repeat(generator.beta(1.4, 0.6, size=number), sizes)
    said = np.where(right, gold, (gold + generator.integers(1, 3, size=len(unit))) % 3)
    return [LABELS[at] for at in gold], [LABELS[at] for at in said], [str(at) for at in unit]


def test_intervals_of_macro_f1_cover_the_truth_as_often_as_they_say() -> None:
    # Of everybody: 0.7 of each label are found, the others are said to be the two others alike.
    shares = np.array([0.6, 0.3, 0.1])
    said = 0.7 * shares + 0.15 * (1.0 - shares)
    truth = float((2 * 0.7 * shares / (shares + said)).mean())
    generator, found = np.random.default_rng(SEED), 0
    for study in range(STUDIES):
        gold, given, units = people(generator, 40)
        interval = Labelled(gold, units).interval(given, seed=study, resamples=200)
        found += interval.low <= truth <= interval.high
    print(f"seed {SEED}: {found} of {STUDIES}")
    assert stats.binomtest(found, STUDIES, 0.95).pvalue > ALPHA


def test_an_interval_of_macro_f1_by_the_obvious_way_to_compute_it() -> None:
    gold, given, units = people(np.random.default_rng(3), 12)
    names, drawn, step = sorted(set(units)), 60, 1e-5

    def macro(times: Sequence[float]) -> float:
        of = dict(zip(names, times, strict=True))
        scores = []
        for label in LABELS:
            both = shared = wanted = 0.0
            for own, said, unit in zip(gold, given, units, strict=True):
                both += of[unit] * (own == said == label)
                shared += of[unit] * ((own == label) + (said == label))
                wanted += of[unit] * (own == label)
            if wanted > 0.5:
                scores.append(2 * both / shared)
        return sum(scores) / len(scores)

    def error(times: np.ndarray) -> float:
        slopes = [
            (macro(times + step * one) - macro(times - step * one)) / (2 * step)
            for one in np.eye(12)
        ]
        return float(np.sqrt(12 / 11 * (times * np.square(slopes)).sum()))

    ones = np.ones(12)
    value, spread = macro(ones), error(ones)
    times = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=drawn)
    off = [(macro(one) - value) / error(one) for one in times.astype(float)]
    low, high = np.quantile(off, [0.025, 0.975])
    labelled = Labelled(gold, units)
    found = labelled.interval(given, seed=5, resamples=drawn)
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(max(0.0, value - high * spread), abs=1e-6)
    assert found.high == pytest.approx(min(1.0, value - low * spread), abs=1e-6)
    # A model that says nothing has 0 whatever is drawn: the difference is the figure itself.
    moved = labelled.difference(given, [None] * len(given), seed=5, resamples=drawn)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (value, value - high * spread, value - low * spread), abs=1e-6
    )


def test_all_right_is_bounded_by_the_people_of_each_label() -> None:
    gold = ["a"] * 8 + ["b"] * 2
    found = Labelled(gold, [str(at) for at in range(10)]).interval(gold, seed=0, resamples=100)
    unmet = [1 - 0.025 ** (1 / people) for people in (8, 2)]
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - sum(unmet) / 2)
