"""The pool's section of docs/import-data.md prints what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_server.pool.commands import app

PAGE = (Path(__file__).parents[4] / "docs" / "import-data.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"\n## The public pool\n(.*?)\n## ", PAGE, re.DOTALL)
BLOCKS = re.findall(r"```(csv|toml|console)\n(.*?)```", SECTION, re.DOTALL)
FILES = {"csv": "questions.csv", "toml": "pool.toml"}


def test_the_section_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = 0
    for kind, text in BLOCKS:
        if kind in FILES:
            Path(FILES[kind]).write_text(text, encoding="utf-8")
            continue
        command, _, printed = text.removeprefix("$ lada pool ").partition("\n")
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, done.output
        assert done.stdout == printed
        shown += 1
    assert shown == 2
