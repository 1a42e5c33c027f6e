"""Plans of a whole study and the `lada privacy` commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.accounting.planning import cost_plan, read_plan
from lada_secure.privacy.commands import app

PLAN = """
target_epsilon = 8.0
target_delta = 1e-6
units = 1000

[[release]]
purpose = "statistics"
mechanism = "gaussian"
times = 4
noise_multiplier = 10.0

[[release]]
purpose = "training"
mechanism = "dpsgd"
times = 4
steps = 30
sampling_probability = 0.05
"""


def plan_file(folder: Path, text: str = PLAN) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_plan_is_calibrated_to_just_keep_its_target(tmp_path: Path) -> None:
    cost = cost_plan(read_plan(plan_file(tmp_path)))
    assert cost.holds
    assert 7.9 < cost.epsilon <= 8.0
    fixed, calibrated = cost.releases
    assert (fixed.noise_multiplier, fixed.calibrated, calibrated.calibrated) == (10.0, False, True)
    events = [
        GaussianEvent(10.0, count=4),
        DpSgdEvent(
            noise_multiplier=calibrated.noise_multiplier, sampling_probability=0.05, steps=120
        ),
    ]
    assert cost.epsilon == epsilon(events, target_delta=1e-6)
    assert fixed.epsilon_alone == fixed.epsilon_so_far
    assert calibrated.epsilon_so_far == cost.epsilon < cost.epsilon_rdp
    assert cost.warnings == ()


def test_calibrated_releases_share_one_factor(tmp_path: Path) -> None:
    text = PLAN.replace("noise_multiplier = 10.0", "relative_noise = 12.0")
    cost = cost_plan(read_plan(plan_file(tmp_path, text)))
    statistics, training = cost.releases
    assert statistics.noise_multiplier == pytest.approx(12 * training.noise_multiplier)
    assert 7.9 < cost.epsilon <= 8.0


def test_a_plan_of_fixed_noise_that_costs_too_much_does_not_hold(tmp_path: Path) -> None:
    text = PLAN + "noise_multiplier = 0.5\n"
    assert not cost_plan(read_plan(plan_file(tmp_path, text))).holds
    result = run("plan", str(plan_file(tmp_path, text)))
    assert result.exit_code == 1
    assert "does NOT keep" in result.output


@pytest.mark.parametrize(("units", "warned"), [(1000, False), (100_000, False), (100_001, True)])
def test_a_delta_not_far_below_one_over_units_is_warned_about(
    tmp_path: Path, units: int, warned: bool
) -> None:
    text = PLAN.replace("units = 1000", f"units = {units}")
    cost = cost_plan(read_plan(plan_file(tmp_path, text)))
    assert bool(cost.warnings) == warned
    if warned:
        assert "not far below 1/units" in cost.warnings[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_epsilon = 8.0", "", "target_epsilon"),
        ("target_epsilon = 8.0", "target_epsilon = 0.0", "target_epsilon"),
        ("target_epsilon = 8.0", "target_epsilon = nan", "target_epsilon"),
        ("target_epsilon = 8.0", "target_epsilon = 0.5", "cannot be reached with any noise"),
        ("target_delta = 1e-6", "target_delta = 1.0", "target_delta"),
        ("units = 1000", "units = 0", "units"),
        ("units = 1000", "unit = 1000", "unit"),
        ('"gaussian"', '"laplace"', "mechanism"),
        ("noise_multiplier = 10.0", "noise_multiplier = 0.0", "noise_multiplier"),
        ("noise_multiplier = 10.0", "noise_multiplier = inf", "noise_multiplier"),
        ("sampling_probability = 0.05", "sampling_probability = 1.5", "sampling_probability"),
        ("steps = 30", "steps = 0", "steps"),
        ("steps = 30", "steps = 3.5", "steps"),
        ("times = 4", "times = -1", "times"),
        ("[[release]]", "[[releases]]", "release"),
        ("units = 1000", "units = ", "not TOML"),
    ],
)
def test_a_plan_with_a_mistake_names_the_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        cost_plan(read_plan(plan_file(tmp_path, PLAN.replace(old, new))))


def test_a_missing_plan_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"missing\.toml: No such file"):
        read_plan(tmp_path / "missing.toml")


def test_the_epsilon_command_prints_the_reference_value() -> None:
    result = run(
        *("epsilon", "--noise-multiplier", "1", "--sampling-probability", "0.02"),
        *("--steps", "500", "--delta", "1e-5", "--json"),
    )
    assert result.exit_code == 0
    printed = json.loads(result.output)
    assert set(printed) == {"epsilon"}
    assert 2.7735 <= printed["epsilon"] <= 1.015 * 2.7735


def test_the_calibrate_command_keeps_the_target() -> None:
    result = run("calibrate", "--epsilon", "1", "--delta", "1e-6", "--json")
    printed = json.loads(result.output)
    again = run(
        *("epsilon", "--noise-multiplier", str(printed["noise_multiplier"])),
        *("--delta", "1e-6", "--json"),
    )
    assert json.loads(again.output)["epsilon"] == printed["epsilon"] <= 1.0
    text = run("calibrate", "--epsilon", "1", "--delta", "1e-6").output
    assert f"{printed['noise_multiplier']:.4f}" in text


def test_the_plan_command_prints_the_same_as_table_and_json(tmp_path: Path) -> None:
    path = str(plan_file(tmp_path))
    printed = json.loads(run("plan", path, "--json").output)
    table = run("plan", path).output
    assert printed["holds"] is True
    assert f"epsilon {printed['epsilon']:.4f}" in table
    for row in printed["releases"]:
        assert row["purpose"] in table
        assert f"{row['epsilon_so_far']:.4f}" in table


@pytest.mark.parametrize(
    "arguments",
    [
        ("epsilon", "--noise-multiplier", "nan", "--delta", "1e-5"),
        ("epsilon", "--noise-multiplier", "-1", "--delta", "1e-5"),
        ("epsilon", "--noise-multiplier", "1", "--delta", "0"),
        ("epsilon", "--noise-multiplier", "1", "--delta", "1e-5", "--sampling-probability", "0"),
        ("epsilon", "--noise-multiplier", "0.01", "--delta", "1e-5"),
        ("calibrate", "--epsilon", "inf", "--delta", "1e-5"),
    ],
    ids=["NaN noise", "negative noise", "delta 0", "q 0", "no guarantee at all", "epsilon inf"],
)
def test_a_bad_option_raises_the_callers_error(arguments: tuple[str, ...]) -> None:
    assert isinstance(run(*arguments).exception, ParameterError)


def test_the_help_shows_an_example_of_each_command() -> None:
    for command in ("epsilon", "calibrate"):
        assert f"lada privacy {command} --" in " ".join(run(command, "--help").output.split())
    assert "[[release]]" in run("plan", "--help").output


def test_the_commands_module_does_not_import_the_accountant() -> None:
    program = (
        "import sys, lada_secure.privacy.commands; "
        "sys.exit(any(name.split('.')[0] in ('dp_accounting', 'scipy', 'opendp', 'torch') "
        "for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
