"""What docs/dp-sgd.md tells people to run does run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
from trainer_doubles import PLAN_HASH, approved_ledger, example, small_model, units_of_sizes
from typer.testing import CliRunner

from lada_secure.cli import build_app
from lada_secure.distillation.adapters import AdapterSettings, attach_adapters
from lada_secure.distillation.parameters import DpSgdParameters
from lada_secure.distillation.training import training_spec

PAGE = (Path(__file__).parents[3] / "docs" / "dp-sgd.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]
WEIGHTS = Path(os.environ.get("LADA_CACHE_DIR", Path.home() / ".cache" / "lada-secure"))


def build_model(name):
    """The page's name for whatever makes the model of every process."""
    return attach_adapters(small_model(), AdapterSettings(rank=2))


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

    monkeypatch.setattr("lada_secure.bench.dpsgd.run_dpsgd", stands_in)
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


@pytest.mark.slow
def test_the_page_s_way_to_several_processes_trains():
    privacy = DpSgdParameters(
        noise_multiplier=2.0,
        l2_clip_norm=0.5,
        sampling_probability=0.5,
        expected_units=2.0,
        steps=2,
        pool_gradients="public",
    )
    book = approved_ledger()
    names = {
        "build_model": build_model,
        "lm": build_model("slm"),
        "units": units_of_sizes(1, 2, 1),
        "pool": (example(50), example(51)),
        "privacy": privacy,
        "book": book,
        "spec": training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
    }
    exec(SNIPPETS[1], names)  # noqa: S102  the page's own lines are what is tested
    assert len(names["distilled"].log.public_losses) == 2
    assert names["ranks"].size == 2
