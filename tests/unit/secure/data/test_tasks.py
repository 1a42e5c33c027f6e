"""Kinds of tasks: how numbers are judged, and what a record may say of its kind."""

from __future__ import annotations

import json

import pytest

from lada_secure.data.records import PoolSample, Record, parse_pool, parse_records, pool_bytes
from lada_secure.data.records import record_line as line_of
from lada_secure.data.tasks import (
    Choice,
    Classification,
    Number,
    Task,
    Text,
    YesNoUnknown,
    parse_task,
    task_json,
)
from lada_secure.errors import ParameterError

MG = (("g", 1000.0), ("mg", 1.0))


def record(task: Task | None, choices: tuple[str, ...] = (), answer: str = "5 mg") -> Record:
    return Record(
        record_id="r",
        unit="u",
        question="q",
        choices=choices,
        answer=answer,
        rationale=None,
        task=task,
    )


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ("5 mg", "right"),
        ("5.25 MG.", "right"),
        ("5.26 mg", "off"),
        ("0.00525 g", "right"),
        ("0.0053 g", "off"),
        ("5", "other unit"),
        ("5 ml", "other unit"),
        ("9 ml", "off"),
        ("five", "no number"),
        ("5,25 mg", "no number"),
        ("5-6 mg", "no number"),
        ("1e9999 g", "off"),
        (f"{'9' * 5000} mg", "off"),
    ],
)
def test_a_number_is_judged_with_its_unit(given: str, verdict: str) -> None:
    assert Number(tolerance=0.05, units=MG).judge(given, "5 mg") == verdict


def test_the_larger_of_both_tolerances_counts_and_decimals_are_exact() -> None:
    assert Number(tolerance=0.1).judge("0.33", "0.3") == "right"
    assert Number(absolute=0.03).judge("0.33", "0.3") == "right"
    assert Number(absolute=0.03, tolerance=0.2).judge("0.36", "0.3") == "right"
    assert Number(absolute=0.03).judge("0.331", "0.3") == "off"
    assert Number().judge("0.1000000000000000055511151231257827", "0.1") == "off"
    assert Number(absolute=1.0).judge("0", "-1") == "right"


@pytest.mark.parametrize(
    "task",
    [
        Choice(),
        Text(),
        Classification(),
        YesNoUnknown(unknown="maybe"),
        Number(),
        Number(tolerance=0.05, absolute=1.0, units=MG),
    ],
)
def test_a_kind_is_read_as_it_was_written(task: Task) -> None:
    assert parse_task(json.loads(json.dumps(task_json(task)))) == task


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "essay"},
        {"kind": []},
        {"kind": "choice", "tolerance": 0.1},
        {"kind": "yes_no_unknown"},
        {"kind": "yes_no_unknown", "unknown": " "},
        {"kind": "yes_no_unknown", "unknown": "\ud800"},
        {"kind": "number", "tolerance": -1},
        {"kind": "number", "tolerance": True},
        {"kind": "number", "absolute": float("nan")},
        {"kind": "number", "absolute": 10**400},
        {"kind": "number", "units": ["mg"]},
        {"kind": "number", "units": {"mg": 0}},
        {"kind": "number", "units": {"mg": 1, "MG ": 1}},
    ],
)
def test_what_makes_no_kind_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        parse_task(fields)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (record(Number(), ("a", "b"), "a"), "a task of kind number has no choices"),
        (record(Number(), answer="five"), "is no number with a decimal point"),
        (record(Number(), answer="7,5"), "is no number with a decimal point"),
        (record(Classification()), "a task of kind classification needs choices"),
        (record(YesNoUnknown(unknown="?"), ("a", "b"), "a"), "has 3 choices, got 2"),
        (record(YesNoUnknown(unknown="?"), ("a", "b", "c"), "a"), "is none of the choices"),
    ],
)
def test_a_record_that_does_not_fit_its_kind_is_a_fault_of_its_line(bad: Record, told: str) -> None:
    (fault,) = parse_records(line_of(bad), where="r").faults
    assert fault.line == 1
    assert told in fault.what


def test_a_record_without_a_kind_has_the_line_that_it_always_had() -> None:
    assert line_of(record(None)) == (
        b'{"answer":"5 mg","choices":[],"question":"q","rationale":null,'
        b'"record_id":"r","unit":"u"}\n'
    )
    own = record(Number(tolerance=0.5))
    assert parse_records(line_of(own), where="r").records == (own,)


def test_a_sample_has_licence_and_source_only_where_somebody_said_them() -> None:
    plain = PoolSample(sample_id="s", question="q", choices=(), answer="a")
    assert pool_bytes([plain]) == b'{"answer":"a","choices":[],"question":"q","sample_id":"s"}\n'
    told = PoolSample(
        sample_id="s", question="q", choices=(), answer="a", licence="MIT", source="a book"
    )
    raw = pool_bytes([told])
    assert raw == (
        b'{"answer":"a","choices":[],"licence":"MIT","question":"q","sample_id":"s",'
        b'"source":"a book"}\n'
    )
    assert parse_pool(raw, where="p") == (told,)
    for bad in (b'"licence":null', b'"licence":" "', b'"licence":1'):
        with pytest.raises(ParameterError, match=r"p:1: licence is"):
            parse_pool(raw.replace(b'"licence":"MIT"', bad), where="p")
