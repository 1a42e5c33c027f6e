"""`lada data map`: what it guesses is right, what it cannot tell is open, and presets fit."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lada_secure.data.importing import templates
from lada_secure.data.importing.guessing import (
    first_mapping,
    preset_mapping,
    presets,
    write_new,
)
from lada_secure.data.importing.kind_guessing import kind_remarks
from lada_secure.data.importing.mapping import SourceSettings, parse_mapping
from lada_secure.data.importing.rows import Row
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.data.importing.sources import open_source
from lada_secure.data.records import Record, inspect_records
from lada_secure.errors import ParameterError


def imported(tmp_path: Path, source: str, mapping: str) -> tuple[Record, ...]:
    (tmp_path / "mapping.toml").write_text(mapping, encoding="utf-8")
    asked = ImportRequest(source=source, mapping=tmp_path / "mapping.toml", out=tmp_path / "out")
    run_import(asked, progress=lambda *_: None)
    return inspect_records(asked.out / "records.jsonl").records


NUMBER = {"kind": "number", "tolerance": 0.05}


def written(tmp_path: Path, name: str, content: str, encoding: str = "utf-8") -> str:
    (tmp_path / name).write_bytes(content.encode(encoding))
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "stands_as"),
    [
        ("q;opa;opb;answer\nA?;x;y;x\nB?;x;y;y\n", "text"),
        ("q;opa;opb;answer\nA?;x;y;A\nB?;x;y;b\n", "letter"),
        ("q;opa;opb;answer\nA?;x;y;0\nB?;x;y;1\n", "number from 0"),
        ("q;opa;opb;answer\nA?;x;y;1\nB?;x;y;2\n", "number from 1"),
    ],
)
def test_how_an_answer_stands_is_told_where_one_way_fits(
    content: str, stands_as: str, tmp_path: Path
) -> None:
    guess = first_mapping(written(tmp_path, "c.csv", content), query=None)
    assert f"answer is answer, as {stands_as}" in guess.guessed
    assert "delimiter ';'" in guess.guessed


def test_what_cannot_be_told_is_open_and_the_file_is_no_mapping_yet(tmp_path: Path) -> None:
    content = "thing,opa,opb,answer\nA?,x,y,1\nB?,x,y,1\n"
    guess = first_mapping(written(tmp_path, "c.csv", content), query=None)
    assert [one.split(":")[0] for one in guess.open] == ["unit", "question", "answer"]
    with pytest.raises(ParameterError, match=r"record\.unit: Field required"):
        parse_mapping(guess.text.encode(), where="m")


def test_an_encoding_is_guessed_for_the_mapping_and_said(tmp_path: Path) -> None:
    rows = "".join(f"p{one};L\u00e4sst Fieber f\u00fcr {one} Tage nach?;ja\n" for one in range(60))
    source = written(tmp_path, "c.csv", "patient;frage;answer\n" + rows, "cp1252")
    guess = first_mapping(source, query=None)
    assert any("not UTF-8" in one for one in guess.open)
    records = imported(tmp_path, source, guess.text.replace("0.2", "0.0"))
    assert records[0].question == "L\u00e4sst Fieber f\u00fcr 0 Tage nach?"


@pytest.mark.parametrize(
    ("answers", "proposed"),
    [
        (["good", "bad"], {"kind": "classification"}),
        (["yes", "no", "maybe"], {"kind": "yes_no_unknown", "unknown": "maybe"}),
        ([f"{one}.5 mg" for one in range(9)], NUMBER | {"decimal": "."}),
        ([f"{one},5 mg" for one in range(9)], NUMBER | {"decimal": ","}),
        (
            [f"{one}.000,5 mg" for one in range(1, 9)],
            NUMBER | {"decimal": ",", "thousands": "."},
        ),
        ([f"{one} mg" for one in range(9)], NUMBER),
        ([f"text {one}" for one in range(9)], None),
    ],
)
def test_a_kind_is_proposed_as_a_comment_that_works_once_it_is_none(
    answers: list[str], proposed: dict[str, object] | None, tmp_path: Path
) -> None:
    rows = "".join(f"p{at};Q{at}?;{answers[at % len(answers)]}\n" for at in range(18))
    guess = first_mapping(written(tmp_path, "c.csv", "unit;question;answer\n" + rows), query=None)
    assert parse_mapping(guess.text.encode(), where="m").task is None
    lines = [line[4:] for line in guess.text.splitlines() if line.startswith("#   ")]
    choices = [line for line in lines if line.startswith("choices")]
    task = "\n".join(line for line in lines if line not in choices)
    text = guess.text.replace("[split]", "\n".join((*choices, task, "", "[split]")))
    found = parse_mapping(text.encode(), where="m")
    assert (found.task and found.task.model_dump(exclude_unset=True)) == proposed
    if choices:
        assert found.record.choices is not None
        assert found.record.choices.constant == tuple(sorted(answers))


def test_a_comma_in_numbers_is_told_and_asked_about_where_it_may_be_either() -> None:
    mixed = "\n".join(kind_remarks(["1,5 mg", "0,25 mg", "1.000,0 mg"]))
    assert '#   decimal = ","\n#   thousands = "."' in mixed
    assert 'decimal = "."  # OPEN: or decimal = ","?' in "\n".join(kind_remarks(["1.000", "2.500"]))


def test_a_column_name_cannot_leave_its_comment(tmp_path: Path) -> None:
    name = 'dose\nid = "x"\n[record.rationale]'
    content = f'patient,question,answer,"{name.replace(chr(34), chr(34) * 2)}"\np1,Q?,a,"1,5"\n'
    guess = first_mapping(written(tmp_path, "c.csv", content), query=None)
    mapping = parse_mapping(guess.text.encode(), where="m")
    assert mapping.record.id is None
    assert mapping.record.rationale is None
    assert "looks like numbers with a comma" in guess.text


def test_numbers_and_dates_are_remarks_alone(tmp_path: Path) -> None:
    content = "patient,question,answer,day\np1,Q?,a,03/04/2025\np2,R?,b,04/04/2025\n"
    guess = first_mapping(written(tmp_path, "c.csv", content), query=None)
    assert '# "day": looks like dates, day or month first, and stays text.' in guess.text


def test_the_list_of_rows_in_an_object_is_found(tmp_path: Path) -> None:
    rows = [{"patient": f"p{one}", "question": f"Q{one}?", "answer": "a"} for one in range(9)]
    source = written(tmp_path, "c.json", json.dumps({"version": [1], "rows": rows}))
    guess = first_mapping(source, query=None)
    assert "an object whose list of rows is 'rows'" in guess.guessed
    assert len(imported(tmp_path, source, guess.text.replace("0.2", "0.0"))) == 9


def test_a_table_of_one_column_has_no_blank_lines(tmp_path: Path) -> None:
    source = written(tmp_path, "c.csv", "a\nx\n\ny\n")
    opened = open_source(source, SourceSettings())
    rows = [row for row in opened.read(frozenset({"a"})) if isinstance(row, Row)]
    assert [(row.line, row.cells["a"]) for row in rows] == [(2, "x"), (3, None), (4, "y")]


def test_an_existing_mapping_is_not_overwritten(tmp_path: Path) -> None:
    write_new(tmp_path / "m.toml", "a")
    with pytest.raises(ParameterError, match="is there already"):
        write_new(tmp_path / "m.toml", "b")
    assert (tmp_path / "m.toml").read_text() == "a"


MEDMCQA = [
    {"id": f"m{one}", "question": f"Which nerve, case {one}?", "opa": "radial", "opb": "ulnar",
     "opc": "median", "opd": "axillary", "cop": one % 4, "choice_type": "single", "exp": None,
     "subject_name": "Anatomy", "topic_name": None}
    for one in range(20)
]  # fmt: skip
MEDQA = [
    {"question": f"A man of {one} years has pain. Cause?", "answer": "Gout",
     "options": {"A": "Flu", "B": "Gout", "C": "Sprain", "D": "Cyst"},
     "meta_info": "step1", "answer_idx": "B", "metamap_phrases": ["pain"]}
    for one in range(20)
]  # fmt: skip
PUBMEDQA = [
    {"pubid": 1000 + one, "question": f"Does drug {one} help?",
     "context": {"contexts": ["It was tried."], "labels": ["METHODS"]},
     "long_answer": "It did.", "final_decision": "yes"}
    for one in range(20)
]  # fmt: skip
PHRASEBANK = [{"sentence": f"Sales rose {one} percent.", "label": 2} for one in range(20)]
FIQA = [
    {"_id": f"f{one}", "sentence": f"Shares up {one}.", "target": "Firm", "aspect": "['Stock']",
     "score": 0.5, "type": "headline"}
    for one in range(20)
]  # fmt: skip
GSM8K = [
    {
        "question": f"Ann has {one} thousand apples. How many?",
        "answer": f"She has {one}.\n#### {one},000",
    }
    for one in range(1, 21)
]
SHAPES: dict[str, tuple[list[dict[str, Any]], str, int]] = {
    "medmcqa": (MEDMCQA, "radial", 4),
    "medqa": (MEDQA, "Gout", 4),
    "pubmedqa": (PUBMEDQA, "yes", 3),
    "financial-phrasebank": (PHRASEBANK, "positive", 3),
    "fiqa": (FIQA, "0.5", 0),
    "gsm8k": (GSM8K, "1000", 0),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_ready_mapping_reads_the_published_columns(name: str, kind: str, tmp_path: Path) -> None:
    rows, answer, choices = SHAPES[name]
    path = tmp_path / f"set.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    mapping = preset_mapping(name).replace("held_out = 0.2", "held_out = 0.0")
    records = imported(tmp_path, str(path), mapping)
    assert len(records) == 20
    assert records[0].answer == answer
    assert len(records[0].choices) == choices
    assert len({one.unit for one in records}) == 20


def test_a_saved_dataset_gives_class_labels_by_name(tmp_path: Path) -> None:
    import datasets

    names = ["negative", "neutral", "positive"]
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    found = datasets.DatasetDict(train=datasets.Dataset.from_list(PHRASEBANK, features=features))
    found.save_to_disk(str(tmp_path / "set"))
    mapping = preset_mapping("financial-phrasebank").replace("held_out = 0.2", "held_out = 0.0")
    with pytest.raises(ParameterError, match="has the splits train; name one"):
        imported(tmp_path, str(tmp_path / "set"), mapping)
    mapping = mapping.replace("[record]", '[source]\nsplit = "train"\n[record]', 1)
    assert imported(tmp_path, str(tmp_path / "set"), mapping)[0].answer == "positive"


def test_omop_tables_are_joined_by_the_ready_query(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "omop.sqlite")
    base.executescript("""
        CREATE TABLE person (person_id, gender_concept_id, year_of_birth);
        CREATE TABLE concept (concept_id, concept_name);
        CREATE TABLE visit_occurrence (visit_occurrence_id, visit_concept_id);
        CREATE TABLE condition_occurrence (condition_occurrence_id, person_id,
          condition_concept_id, condition_start_date, visit_occurrence_id);
        INSERT INTO concept VALUES (8507, 'MALE'), (8532, 'FEMALE'), (9201, 'Inpatient Visit'),
          (440674, 'Gout'), (4266367, 'Influenza');
        INSERT INTO person VALUES (1, 8507, 1950), (2, 8532, 1980);
        INSERT INTO visit_occurrence VALUES (7, 9201);
        INSERT INTO condition_occurrence VALUES (11, 1, 440674, '2025-03-04', 7),
          (12, 2, 4266367, '2025-03-05', NULL), (13, 2, 0, '2025-03-05', NULL),
          (14, 3, 440674, '2025-03-06', NULL), (15, 2, 999, '2025-03-06', NULL);
    """)
    base.commit()
    base.close()
    mapping = preset_mapping("omop-conditions").replace("held_out = 0.2", "held_out = 0.0")
    records = imported(tmp_path, f"sqlite:///{tmp_path / 'omop.sqlite'}", mapping)
    assert [(one.unit, one.answer) for one in records] == [
        ("person 1", "Gout"),
        ("person 2", "Influenza"),
        ("person 3", "Gout"),
    ]
    told = json.loads((tmp_path / "out" / "import-report.json").read_bytes())
    assert (told["rows"], told["passed_over"], told["rejected"]) == (10, 10, 0)
    assert records[2].question.startswith("person, seen on 2025-03-06. ")
    assert records[0].question == (
        "male, born in 1950, seen on 2025-03-04, inpatient visit. Which condition was recorded?"
    )
    assert records[1].question.startswith("female, born in 1980, seen on 2025-03-05. ")


def fhir(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "id": f"c{number}",
        "subject": {"reference": f"Patient/{number}"},
        "code": {"coding": [{"system": "http://snomed.info/sct", "display": "Gout"}]},
        "note": [{"text": f"The toe hurts for {number} days."}],
    }


@pytest.mark.parametrize("form", ["bundle", "ndjson"])
def test_fhir_comes_as_a_bundle_and_as_ndjson(form: str, tmp_path: Path) -> None:
    resources = [{"resourceType": "Patient", "id": "1"}, *map(fhir, range(5))]
    mapping = preset_mapping("fhir-conditions").replace("held_out = 0.2", "held_out = 0.0")
    if form == "bundle":
        entries = [{"fullUrl": "urn:1", "resource": one} for one in resources]
        links = [{"relation": "self", "url": "http://example.org"}]
        bundle = {"resourceType": "Bundle", "link": links, "entry": entries, "total": 6}
        source = written(tmp_path, "b.json", json.dumps(bundle))
    else:
        source = written(tmp_path, "b.ndjson", "\n".join(map(json.dumps, resources)))
        mapping = mapping.replace('at = "entry"\ninside = "resource"\n', "")
    records = imported(tmp_path, source, mapping)
    assert [one.unit for one in records] == [f"Patient/{one}" for one in range(5)]
    assert records[3].question == "The toe hurts for 3 days.\nWhich condition is it?"
    assert records[3].answer == "Gout"
    assert ('at = "entry"' in first_mapping(source, query=None).text) == (form == "bundle")


def test_templates_are_read_once_and_not_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    of_old = templates.RowTemplate.__init__

    def counted(self: templates.RowTemplate, text: str) -> None:
        read.append(text)
        of_old(self, text)

    monkeypatch.setattr(templates.RowTemplate, "__init__", counted)
    templates.row_template.cache_clear()
    source = written(tmp_path, "b.ndjson", "\n".join(json.dumps(fhir(one)) for one in range(30)))
    mapping = preset_mapping("fhir-conditions").replace("held_out = 0.2", "held_out = 0.0")
    mapping = mapping.replace('at = "entry"\ninside = "resource"\n', "")
    assert len(imported(tmp_path, source, mapping)) == 30
    # Of the unit, the question and the answer.
    assert sorted(read) == sorted(set(read))
    assert len(read) == 3


def test_one_patient_with_and_without_the_server_is_one_unit(tmp_path: Path) -> None:
    resources = [fhir(14), fhir(15)]
    resources[1]["subject"]["reference"] = "http://kis/fhir/Patient/14"
    source = written(tmp_path, "b.ndjson", "\n".join(map(json.dumps, resources)))
    mapping = preset_mapping("fhir-conditions").replace("held_out = 0.2", "held_out = 0.0")
    records = imported(tmp_path, source, mapping.replace('at = "entry"\ninside = "resource"\n', ""))
    assert [one.unit for one in records] == ["Patient/14", "Patient/14"]


def test_a_list_of_objects_is_no_question_and_one_type_of_a_bundle_is_taken(
    tmp_path: Path,
) -> None:
    resources = [{"resourceType": "Patient", "id": str(one)} for one in range(9)]
    resources += [fhir(one) | {"code": {"text": "Gout"}} for one in range(5)]
    resources.append(resources[-1] | {"id": "c5", "note": []})
    entries = [{"resource": one} for one in resources]
    source = written(tmp_path, "b.json", json.dumps({"resourceType": "Bundle", "entry": entries}))
    guess = first_mapping(source, query=None)
    mapping = parse_mapping(guess.text.encode(), where="m")
    assert mapping.source.only == {"resourceType": "Condition"}
    assert any("Patient 9, Condition 6" in one for one in guess.open)
    assert mapping.record.question.column == "note.0.text"


@pytest.mark.parametrize(
    "question",
    ['"note"', """{ template = "{{ note }}" }""", """{ template = "{{ note | trim }}" }"""],
)
def test_objects_and_empty_lists_make_no_question(question: str, tmp_path: Path) -> None:
    notes = [[{"text": "It hurts."}], [], ["It", "hurts."]]
    rows = [{"unit": f"p{at}", "note": note, "answer": "a"} for at, note in enumerate(notes)]
    source = written(tmp_path, "c.jsonl", "\n".join(map(json.dumps, rows)))
    text = f'format = "lada-mapping/1"\n[record]\nunit = "unit"\nquestion = {question}\n'
    (tmp_path / "mapping.toml").write_text(text + 'answer = "answer"\n', encoding="utf-8")
    told = run_import(
        ImportRequest(
            source=source, mapping=tmp_path / "mapping.toml", out=tmp_path / "o", most_rejects=0.9
        ),
        progress=lambda _: None,
    )
    assert told["rejected_by_reason"] == {"cell-empty": 1, "list-of-objects": 1}
    assert inspect_records(tmp_path / "o" / "records.jsonl").records[0].question == (
        '["It", "hurts."]'
    )


def test_a_template_may_ask_whether_there_is_a_list_of_objects(tmp_path: Path) -> None:
    question = "{% if note is defined %}{{ row['note.0.text'] }}{% endif %}"
    source = written(tmp_path, "b.ndjson", json.dumps(fhir(1)))
    text = 'format = "lada-mapping/1"\n[record]\nunit = "id"\nanswer = "id"\n'
    records = imported(tmp_path, source, text + f'question = {{ template = "{question}" }}\n')
    assert records[0].question == "The toe hurts for 1 days."


def test_the_line_that_excel_writes_above_a_header_is_read(tmp_path: Path) -> None:
    source = written(tmp_path, "c.csv", "sep=;\npatient;question;answer\np1;Q?;a\n")
    text = first_mapping(source, query=None).text.replace("0.2", "0.0")
    assert 'delimiter = ";"\nskip_lines = 1' in text
    assert len(imported(tmp_path, source, text)) == 1
    for settings in (SourceSettings(), SourceSettings(delimiter=";")):
        with pytest.raises(ParameterError, match='delimiter = ";" and skip_lines = 1'):
            open_source(source, settings)


def test_columns_without_names_are_told_as_such(tmp_path: Path) -> None:
    source = written(tmp_path, "c.csv", "patient,,,answer\np1,Q?,x,a\n")
    with pytest.raises(
        ParameterError, match="2 columns have no name in the header, first column 2"
    ):
        open_source(source, SourceSettings())


def test_a_sheet_is_named_where_there_are_several(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["remark"])
    for row in (["patient", "question", "answer"], ["p1", "Q?", "a"]):
        (book["Cases"] if "Cases" in book else book.create_sheet("Cases")).append(row)
    book.save(tmp_path / "c.xlsx")
    source = str(tmp_path / "c.xlsx")
    with pytest.raises(ParameterError, match=r"`lada data map`: --sheet\)$"):
        first_mapping(source, query=None)
    text = first_mapping(source, query=None, sheet="Cases").text.replace("0.2", "0.0")
    assert len(imported(tmp_path, source, text)) == 1
    with pytest.raises(ParameterError, match="--sheet: is for a workbook"):
        first_mapping(written(tmp_path, "c.csv", "a,b\n1,2\n"), query=None, sheet="Cases")


def test_a_database_without_a_query_is_told_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--query"):
        first_mapping(f"sqlite:///{tmp_path / 'a.sqlite'}", query=None)


def test_answers_that_differ_from_a_choice_by_case_or_space_are_told(tmp_path: Path) -> None:
    content = "patient,question,opa,opb,answer\np1,Q?,Flu,Gout,gout\np2,R?,Flu,Gout,Flu\n"
    source = written(tmp_path, "c.csv", content)
    guess = first_mapping(source, query=None)
    assert "answer: 1 differ from a choice by case or space alone" in guess.open
    records = imported(tmp_path, source, guess.text.replace("0.2", "0.0"))
    assert [one.answer for one in records] == ["Gout", "Flu"]


def test_every_preset_is_a_mapping() -> None:
    assert len(presets()) == 8
    for name in presets():
        parse_mapping(preset_mapping(name).encode(), where=name)
