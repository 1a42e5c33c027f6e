"""`lada data` as a user meets it: help, JSON, exit statuses, and errors without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lada_secure.data.commands import app
from lada_secure.errors import LadaError

MAPPING = """\
format = "lada-mapping/1"
[record]
unit = "unit"
question = "question"
answer = "answer"
"""


def lada(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def status(done: Result) -> int:
    error = done.exception
    return error.exit_status if isinstance(error, LadaError) else done.exit_code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.toml").write_text(MAPPING, encoding="utf-8")
    (tmp_path / "c.csv").write_text("unit,question,answer\np1,Q?,a\np2,R?,\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", ["import", "map"])
def test_help_has_an_example(command: str) -> None:
    done = lada(command, "--help")
    assert done.exit_code == 0
    assert f"lada data {command} cases.csv" in done.output


@pytest.mark.usefixtures("folder")
def test_json_is_one_object_and_statuses_tell_what_happened() -> None:
    words = ("import", "c.csv", "--mapping", "m.toml", "--out", "o", "--json")
    done = lada(*words, "--most-rejects", "0.5")
    assert status(done) == 0
    assert json.loads(done.stdout)["records"] == 1
    refused = lada(*words)
    assert status(refused) == 1
    assert json.loads(refused.stdout)["rejected_by_reason"] == {"cell-empty": 1}
    Path("m.toml").write_text(MAPPING.replace('"question"', '"qestion"'), encoding="utf-8")
    wrong = lada(*words)
    assert status(wrong) == 2
    assert "has no column 'qestion', which the mapping names; near it are 'question'" in str(
        wrong.exception
    )
    assert wrong.stdout == ""
    assert status(lada("import", "c.csv", "--mapping", "no.toml", "--out", "o")) == 2


@pytest.mark.usefixtures("folder")
def test_map_shows_a_mapping_or_writes_it_and_wants_one_thing_to_look_at() -> None:
    assert lada("map", "c.csv").stdout.startswith('format = "lada-mapping/1"')
    told = json.loads(lada("map", "c.csv", "--json").stdout)
    assert told["open"] == []
    assert told["mapping"] == lada("map", "c.csv").stdout
    assert status(lada("map")) == 2
    assert status(lada("map", "c.csv", "--preset", "medqa")) == 2
    assert status(lada("map", "--preset", "nosuch")) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('unit = "unit"', 'unit = { column = "unit", colour = "red" }'),
        ('answer = "answer"', 'answer = { column = "answer", template = "{{ answer }}" }'),
        ('answer = "answer"', 'answer = { template = "{{ answer.upper() }}" }'),
        ("lada-mapping/1", "lada-mapping/2"),
        ('answer = "answer"', 'answer = "answer"\nchoices = { constant = ["a"] }'),
        ('answer = "answer"', 'answer = "answer"\nchoices = { column = "a" }'),
        ("[record]", '[source]\nencoding = "klingon"\n[record]'),
        ("[record]", "[split]\nheld_out = 1.0\n[record]"),
        ("format", "form at"),
    ],
)
def test_a_mapping_that_is_wrong_is_refused_before_a_file_is_written(
    change: str, told: str, folder: Path
) -> None:
    Path("m.toml").write_text(MAPPING.replace(change, told, 1), encoding="utf-8")
    done = lada("import", "c.csv", "--mapping", "m.toml", "--out", "o")
    assert status(done) == 2
    assert isinstance(done.exception, LadaError)
    assert "m.toml" in str(done.exception) or "record.choices" in str(done.exception)
    assert {path.name for path in folder.iterdir()} == {"m.toml", "c.csv"}


@pytest.mark.usefixtures("folder")
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    Path("c.xlsx").write_bytes(b"x")
    done = lada("import", "c.xlsx", "--mapping", "m.toml", "--out", "o")
    assert "pip install 'lada-secure[import]'" in str(done.exception)
    assert status(done) == 2


@pytest.mark.usefixtures("folder")
def test_a_key_that_nobody_knows_is_told_with_the_nearest_one() -> None:
    text = MAPPING.replace("question =", "qestion =") + "[task]\nkind = 'number'\ntolerence = 1\n"
    Path("m.toml").write_text(text, encoding="utf-8")
    told = str(lada("import", "c.csv", "--mapping", "m.toml", "--out", "o").exception)
    assert "m.toml: unknown key 'record.qestion'; known keys are answer, choices, " in told
    assert "did you mean record.question?" in told
    assert "did you mean task.tolerance?" in told


@pytest.mark.usefixtures("folder")
def test_a_file_in_place_of_the_folder_is_a_mistake() -> None:
    for out in ("c.csv", "c.csv/o"):
        done = lada("import", "c.csv", "--mapping", "m.toml", "--out", out)
        assert status(done) == 2
        assert f"--out {out}: expected a folder, got a file" in str(done.exception)


@pytest.mark.usefixtures("folder")
def test_warnings_are_on_the_screen() -> None:
    Path("c.csv").write_text("unit,question,answer\n7,Q?,a\n007,R?,b\n", encoding="utf-8")
    done = lada("import", "c.csv", "--mapping", "m.toml", "--out", "o")
    assert "warning: 2 units may be one person with another one" in done.stderr


@pytest.mark.parametrize("name", ["records.jsonl", "held-out.jsonl", "rejects.csv"])
def test_a_folder_in_a_files_place_is_found_before_anything_is_written(
    name: str, folder: Path
) -> None:
    (folder / "o" / name).mkdir(parents=True)
    done = lada("import", "c.csv", "--mapping", "m.toml", "--out", "o", "--most-rejects", "0.5")
    assert status(done) == 2
    assert f"{name}: expected a file" in str(done.exception)
    assert [one.name for one in (folder / "o").iterdir()] == [name]


def test_an_earlier_held_out_file_may_hold_anything(folder: Path) -> None:
    (folder / "o").mkdir()
    (folder / "o" / "held-out.jsonl").write_text("[" * 100_000 + '\n{"unit": 5}\n[1]\n', "utf-8")
    done = lada("import", "c.csv", "--mapping", "m.toml", "--out", "o", "--most-rejects", "0.5")
    assert status(done) == 0
    assert (folder / "o" / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('quote = ","', "another sign than the delimiter"),
        ('delimiter = "|"\nquote = "|"', "another sign than the delimiter"),
        ('delimiter = "\\n"', "a sign within a line"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_signs_that_cannot_be_told_apart_are_refused(source: str, told: str) -> None:
    Path("m.toml").write_text(f"{MAPPING}[source]\n{source}\n", encoding="utf-8")
    done = lada("import", "c.csv", "--mapping", "m.toml", "--out", "o")
    assert status(done) == 2
    assert told in str(done.exception)


@pytest.mark.usefixtures("folder")
def test_a_mapping_that_is_called_like_a_salt_is_refused() -> None:
    Path("m.toml").rename("m.salt")
    done = lada("import", "c.csv", "--mapping", "m.salt", "--out", "o")
    assert status(done) == 2
    assert "is called like a salt" in str(done.exception)


@pytest.mark.usefixtures("folder")
def test_a_source_that_cannot_be_looked_at_is_the_callers_mistake() -> None:
    for command in (("import", "--mapping", "m.toml", "--out", "o"), ("map",)):
        done = lada(command[0], "x" * 300 + ".csv", *command[1:])
        assert status(done) == 2
        assert "File name too long" in str(done.exception)


def test_a_mapping_that_is_proposed_for_choices_in_lines_imports_them(folder: Path) -> None:
    rows = "".join(f'{n},p{n},Is it {n}?,"yes\nno\nnever",no\n' for n in range(4))
    (folder / "lines.csv").write_text(f"case,patient,question,options,answer\n{rows}", "utf-8")
    assert status(lada("map", "lines.csv", "--out", "lines.toml")) == 0
    assert 'separator = "\\n"' in (folder / "lines.toml").read_text("utf-8")
    done = lada("import", "lines.csv", "--mapping", "lines.toml", "--out", "o", "--json")
    assert status(done) == 0
    assert json.loads(done.stdout)["rejected"] == 0
