"""The kind of a task, from a mapping into records: written where it is said, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada_secure.data.importing.guessing import preset_mapping, presets
from lada_secure.data.importing.mapping import parse_mapping
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.data.records import inspect_records
from lada_secure.data.tasks import Classification, Number, YesNoUnknown
from lada_secure.errors import ParameterError

TABLE = """\
unit,question,answer,dose
p1,Q1?,yes,5 mg
p2,Q2?,no,0.1 g
p3,Q3?,unclear,7 ml
p4,Q4?,yes,much
"""
CHOICES = 'choices = { constant = ["yes", "no", "unclear"] }\nanswer = "answer"\n'
OPEN = 'answer = "dose"\n'


def mapped(of: str, task: str = "") -> str:
    return f'format = "lada-mapping/1"\n[record]\nunit = "unit"\nquestion = "question"\n{of}' + (
        f"[task]\n{task}" if task else ""
    )


def imported(tmp_path: Path, mapping: str, table: str = TABLE) -> tuple[dict[str, Any], Path]:
    (tmp_path / "cases.csv").write_text(table, encoding="utf-8")
    (tmp_path / "mapping.toml").write_text(mapping, encoding="utf-8")
    (tmp_path / "mapping.salt").write_text("05" * 32 + "\n", encoding="utf-8")
    (tmp_path / "mapping.salt").chmod(0o600)
    told = run_import(
        ImportRequest(
            source=str(tmp_path / "cases.csv"),
            mapping=tmp_path / "mapping.toml",
            out=tmp_path / "out",
            most_rejects=0.9,
        ),
        progress=lambda *_: None,
    )
    return told, tmp_path / "out" / "records.jsonl"


def test_a_kind_changes_nothing_of_a_record_but_that_it_says_so(tmp_path: Path) -> None:
    _, path = imported(tmp_path, mapped(CHOICES))
    before = path.read_bytes()
    assert b"task" not in before
    _, path = imported(tmp_path, mapped(CHOICES, 'kind = "yes_no_unknown"\nunknown = "unclear"'))
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row.pop("task") for row in rows] == 4 * [
        {"kind": "yes_no_unknown", "unknown": "unclear"}
    ]
    assert rows == [json.loads(line) for line in before.splitlines()]
    assert {one.task for one in inspect_records(path).records} == {YesNoUnknown(unknown="unclear")}


def test_a_label_set_is_a_classification(tmp_path: Path) -> None:
    _, path = imported(tmp_path, mapped(CHOICES, 'kind = "classification"'))
    assert {one.task for one in inspect_records(path).records} == {Classification()}


def test_a_number_needs_one_and_a_unit_that_can_be_compared(tmp_path: Path) -> None:
    task = 'kind = "number"\ntolerance = 0.05\nabsolute = 1\nunits = { mg = 1, g = 1000 }'
    told, path = imported(tmp_path, mapped(OPEN, task))
    assert told["rejected_by_reason"] == {"answer-no-number": 1, "answer-other-unit": 1}
    expected = Number(tolerance=0.05, absolute=1.0, units=(("g", 1000.0), ("mg", 1.0)))
    assert [one.task for one in inspect_records(path).records] == [expected] * 2
    told, _ = imported(tmp_path, mapped(OPEN, 'kind = "number"\nunit = "mg"'))
    assert told["rejected_by_reason"] == {"answer-no-number": 1, "answer-other-unit": 2}


COMMA = 'decimal = ","\nthousands = "."\n'


@pytest.mark.parametrize(
    ("answer", "task", "becomes"),
    [
        ("7,5", "", "answer-number-unclear"),
        ("0,5 mg", "", "answer-number-unclear"),
        ("1,5 mg", 'unit = "mg"', "answer-number-unclear"),
        ("1.000 mg", "", "answer-number-unclear"),
        ("1,000 mg", "", "answer-number-unclear"),
        ("12 000", "", "answer-number-unclear"),
        ("1.000,5", "", "answer-number-unclear"),
        ("5-6", "", "answer-no-number"),
        ("5 to 6 mg", "", "answer-no-number"),
        ("0.125 mg", "", "0.125 mg"),
        ("1,234.0 mg", "", "1,234.0 mg"),
        ("80/min", "", "80/min"),
        ("4.2 x 10^9/l", 'unit = "x 10^9/l"', "4.2 x 10^9/l"),
        ("1.000 mg", 'decimal = "."\n', "1.000 mg"),
        ("1,5 mg", COMMA, "1.5 mg"),
        ("-,5 mg", COMMA, "-0.5 mg"),
        ("1.000,5 mg", COMMA, "1000.5 mg"),
        ("1.000 mg", COMMA, "1000 mg"),
        ("1.000 mg", 'decimal = ","\n', "answer-number-unclear"),
        ("1\u202f000,5 mg", 'decimal = ","\nthousands = " "', "1000.5 mg"),
        ("1.5 mg", COMMA, "answer-number-unclear"),
        ("5,5-6 mg", COMMA, "answer-no-number"),
    ],
)
def test_a_number_is_one_of_the_form_that_is_said_or_no_answer(
    answer: str, task: str, becomes: str, tmp_path: Path
) -> None:
    table = f'unit,question,dose\np1,Q1?,"{answer}"\np2,Q2?,5 mg\n'
    # The second row may have another unit than is asked for.
    told, path = imported(tmp_path, mapped(OPEN, f'kind = "number"\n{task}'), table)
    first = inspect_records(path).records[0]
    reason = next(iter(told["rejected_by_reason"]), None)
    assert becomes == (first.answer if first.unit == "p1" else reason)


def test_a_number_that_a_template_has_read_is_not_doubted(tmp_path: Path) -> None:
    table = 'unit,question,dose\np1,Q1?,"1,025"\n'
    dose = """answer = { template = "{{ dose | number(',') }} mg" }\n"""
    _, path = imported(tmp_path, mapped(dose, 'kind = "number"'), table)
    assert inspect_records(path).records[0].answer == "1.025 mg"


@pytest.mark.parametrize(
    ("of", "task", "told"),
    [
        (OPEN, 'kind = "choice"', "needs record.choices"),
        (CHOICES, 'kind = "text"', "is of open questions"),
        (CHOICES, 'kind = "yes_no_unknown"', "task.*expected one of the kinds"),
        (CHOICES, 'kind = "yes_no_unknown"\nunknown = "?"', "of which task.unknown is one"),
        (
            'choices = ["dose", "answer"]\nanswer = "answer"\n',
            'kind = "classification"',
            "the same labels in every row",
        ),
        (OPEN, 'kind = "text"\nunit = "mg"', "unit is of kind number alone"),
        (OPEN, 'kind = "number"\ntolerance = -1', "finite number of 0 or more"),
        (OPEN, 'kind = "text"\ndecimal = ","', "decimal is of kind number alone"),
        (OPEN, 'kind = "number"\nthousands = "."', "thousands needs decimal"),
        (OPEN, 'kind = "number"\ndecimal = "."\nthousands = "."', "which is another sign"),
        (OPEN, 'kind = "essay"', "task.kind"),
    ],
)
def test_a_mapping_whose_kind_does_not_fit_is_refused(of: str, task: str, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        parse_mapping(mapped(of, task).encode(), where="m")


def test_presets_say_their_kind_where_it_has_an_evaluation_of_its_own() -> None:
    kinds = {name: parse_mapping(preset_mapping(name).encode(), where=name) for name in presets()}
    assert {name: one.task.kind for name, one in kinds.items() if one.task is not None} == {
        "financial-phrasebank": "classification",
        "fiqa": "number",
        "gsm8k": "number",
        "pubmedqa": "yes_no_unknown",
    }
