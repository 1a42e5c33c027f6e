"""docs/import-data.md: its commands print what it says, and it names every key and reason."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from lada_secure.data.commands import app
from lada_secure.data.importing.guessing import presets
from lada_secure.data.importing.mapping import (
    AnswerField,
    ChoicesField,
    PoolSettings,
    RecordFields,
    SourceSettings,
    SplitSettings,
    TaskSettings,
    UnitField,
)
from lada_secure.data.importing.rows import REASONS
from lada_secure.errors import LadaError

PAGE = (Path(__file__).parents[5] / "docs" / "import-data.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
# The pool's section has a test beside its commands.
OF_RECORDS = re.sub(r"\n## The public pool\n.*?(?=\n## )", "", PAGE, flags=re.DOTALL)
BLOCKS = re.findall(r"```(csv|toml|console|text)\n(.*?)```", OF_RECORDS, re.DOTALL)
SALT = "05"


def run(command: str) -> str:
    """What a command prints, with its error, as `lada` shows it."""
    lada = typer.Typer()
    lada.add_typer(app, name="data")
    done = CliRunner().invoke(lada, shlex.split(command)[1:])
    if isinstance(done.exception, LadaError):
        return f"{done.output}error ({done.exception.code}): {done.exception}\n"
    assert done.exit_code == 0, done.output
    return done.output


def test_the_page_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # People fall on the same sides as on the page.
    monkeypatch.setattr("secrets.token_hex", lambda size: SALT * size)
    first_mapping = True
    for kind, text in BLOCKS:
        if kind == "csv":
            Path("cases.csv").write_text(text, encoding="utf-8")
        elif kind == "toml" and first_mapping:
            assert Path("mapping.toml").read_text(encoding="utf-8") == text
            first_mapping = False
        elif kind == "toml":
            Path("mapping.toml").write_text(text, encoding="utf-8")
        elif kind == "text":
            assert Path("hospital-a/rejects.csv").read_text(encoding="utf-8") == text
        else:
            command, _, printed = text.removeprefix("$ ").partition("\n")
            assert run(command) == printed
    assert {path.name for path in Path("hospital-a").iterdir()} == {
        "records.jsonl",
        "held-out.jsonl",
        "rejects.csv",
        "near-duplicates.csv",
        "import-report.json",
    }


@pytest.mark.parametrize(
    "model",
    [
        *(SourceSettings, RecordFields, UnitField, AnswerField, ChoicesField, SplitSettings),
        *(TaskSettings, PoolSettings),
    ],
)
def test_the_page_names_every_key_of_a_mapping(model: type[BaseModel]) -> None:
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", PROSE))))
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys - named == set()


def test_the_page_names_every_reason_and_every_preset() -> None:
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in PAGE
    for name in presets():
        assert f"`{name}`" in PAGE
