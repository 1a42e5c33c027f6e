"""`lada bench allocation`, run for real on models that are in its cache."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from small_study import CHANGES, SEED
from typer.testing import CliRunner

from lada_lab.arms import run
from lada_lab.arms.simulation import Outcome
from lada_lab.arms.study import LabSettings
from lada_lab.bench_commands import app
from lada_lab.worlds.bench_models import LLM_PRETRAINING, SLM_PRETRAINING, model_name
from lada_secure.errors import ParameterError


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory,
    small_models: tuple[Path, Path],
    small_settings: LabSettings,
) -> Path:
    """The small models under the names of the usual ones."""
    folder = tmp_path_factory.mktemp("cache")
    for source, one in zip(small_models, (SLM_PRETRAINING, LLM_PRETRAINING), strict=True):
        shutil.copytree(source, folder / model_name(small_settings.world, one, seed=SEED))
    return folder


def arguments(settings: LabSettings, cache: Path) -> list[str]:
    """The small study's settings on the command line."""
    found = ["allocation", "--first-seed", str(SEED), "--cache-dir", str(cache)]
    for change in CHANGES:
        found += ["--set", change]
    return [*found, "--held-out", str(settings.world.held_out)]


def test_the_json_answers_with_means_per_condition_and_the_files_are_written(
    small_settings: LabSettings, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the shell would have handed over; the runner below does not set it.
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lada", "bench", "allocation", "--csv", "a b.csv"])
    done = CliRunner().invoke(
        app,
        [
            *arguments(small_settings, cache),
            *("--seeds", "1", "--conditions", "random,lada-secure", "--json"),
            *("--csv", str(tmp_path / "runs.csv"), "--plot", str(tmp_path / "plot.svg")),
        ],
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["preset"], report["seeds"], report["validation"]) == ("tiny", [SEED], False)
    for name in ("random", "lada-secure"):
        assert 0.0 <= report["accuracy"][name]["mean"] <= 1.0
        assert report["samples"][name]["asked"] <= 6.0
    assert report["settings"]["world"]["pool"] == small_settings.world.pool
    assert report["settings"]["plan"]["allocation"]["quota"] == 3
    assert report["machine"]["cores"] >= 1
    assert report["command"] == "lada bench allocation --csv 'a b.csv'"
    assert "round 1 done" in done.stderr
    assert (tmp_path / "runs.csv").read_text().startswith("condition,epsilon,seed,site")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_worlds_that_ended_are_in_the_csv_when_a_later_one_fails(
    small_settings: LabSettings,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = run.run_task

    def fails_later(task: run.BenchTask) -> list[Outcome]:
        if task.epsilon == 1.0:
            raise OSError("the power went")
        return real(task)

    monkeypatch.setattr(run, "run_task", fails_later)
    csv = tmp_path / "runs.csv"
    done = CliRunner().invoke(
        app,
        [
            *arguments(small_settings, cache),
            *("--seeds", "1", "--conditions", "random", "--epsilon", "8,1", "--csv", str(csv)),
        ],
    )
    assert "the power went" in str(done.exception)
    rows = csv.read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["random"] * small_settings.world.sites


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--conditions", "random,best"], "best"),
        (["--epsilon", "eight"], "expected numbers"),
        (["--epsilon", "-1"], "epsilon"),
        (["--preset", "huge"], "--preset"),
        (["--set", "allocation.quota=0"], "quota"),
        (["--csv", "/nonexistent/folder/runs.csv"], "cannot write"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    extra: list[str], message: str, cache: Path
) -> None:
    before = sorted(cache.iterdir())
    done = CliRunner().invoke(
        app, ["allocation", "--first-seed", "11", "--cache-dir", str(cache), *extra]
    )
    assert isinstance(done.exception, ParameterError)
    assert message in str(done.exception)
    assert sorted(cache.iterdir()) == before
