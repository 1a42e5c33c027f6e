"""What docs/dp-sgd.md tells people to run does run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_secure.cli import build_app

PAGE = (Path(__file__).parents[4] / "docs" / "dp-sgd.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]
WEIGHTS = Path(os.environ.get("LADA_CACHE_DIR", Path.home() / ".cache" / "lada-secure"))


def invoke(command):
    program, *words = shlex.split(command)
    assert program == "lada"
    return CliRunner().invoke(build_app(), words)


@pytest.mark.parametrize("command", [one for one in COMMANDS if " bench " not in one])
def test_quick_commands_run(command):
    result = invoke(command)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [one for one in COMMANDS if " bench " in one])
def test_measuring_commands_name_options_that_there_are(command, monkeypatch):
    asked = {}

    def stands_in(**values):
        asked.update(values)
        return {"ratio": {"fused": 1.0}}

    monkeypatch.setattr("lada_lab.micro.dpsgd.run_dpsgd", stands_in)
    result = invoke(command)
    assert result.exit_code == 0, result.output
    assert asked["sequence_lengths"] == (128,)
    assert asked["model"].reference == ("smollm2-135m" if "--model" in command else None)


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in COMMANDS if " bench " in one])
def test_measuring_commands_run(command):
    if "smollm2" in command and not (WEIGHTS / "smollm2-135m").is_dir():
        pytest.skip("the weights of SmolLM2 are not in the cache; `make setup` puts them there")
    result = invoke(command)
    assert result.exit_code == 0, result.output
    assert "memory_ratio.fused" in result.output


def test_the_ratios_on_the_page_are_right():
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(SNIPPETS[0], {})  # noqa: S102  the page's own lines are what is tested
    assert said.getvalue().split() == re.findall(r"# ([0-9.]+)$", SNIPPETS[0], re.MULTILINE)
