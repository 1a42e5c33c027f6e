"""`lada bench allocation`, run for real on models that are in its cache."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_study import CHANGES, SEED
from typer.testing import CliRunner

from lada_lab.arms.arms import ARMS, Arm
from lada_lab.arms.bench_plan import BenchPlan
from lada_lab.arms.run import run_allocation
from lada_lab.arms.run_file import Releases, Runs, read_runs
from lada_lab.arms.runs import Run
from lada_lab.arms.simulation import Laboratory, Outcome
from lada_lab.arms.study import LabSettings
from lada_lab.bench_commands import app
from lada_lab.worlds.bench_models import LLM_PRETRAINING, SLM_PRETRAINING, model_name
from lada_secure.errors import ParameterError, TransportError


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
    words = ["bench", "allocation", "--csv", "/home/ana/a b.csv", "--plot=/home/ana/a.svg"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lada", *words])
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
    assert report["command"] == "lada bench allocation --csv 'a b.csv' --plot=a.svg"
    assert "round 1 done" in done.stderr
    assert (tmp_path / "runs.csv").read_text().startswith("condition,epsilon,seed,draw,site")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_a_run_that_failed_is_gone_on_with_where_it_stopped(
    small_settings: LabSettings,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    csv = tmp_path / "runs.csv"
    wanted = [
        *arguments(small_settings, cache),
        *("--seeds", "1", "--conditions", "random,topic-quotas", "--csv", str(csv)),
        *("--factor", "world.marked=0,0.5", "--draws", "2", "--json"),
    ]
    real = Laboratory.simulate
    left = 5

    def fails_later(self: Laboratory, arm: Arm, **others: Any) -> Outcome:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("the power went")
        return real(self, arm, **others)

    with monkeypatch.context() as patched:
        patched.setattr(Laboratory, "simulate", fails_later)
        done = CliRunner().invoke(app, wanted)
    assert "the power went" in str(done.exception)
    before = read_runs([csv])
    assert len(before) == 5
    # The third draw has one arm of two: what it shares waits for the other one.
    assert len(list((tmp_path / "runs.csv.releases").iterdir())) == 1

    done = CliRunner().invoke(app, wanted)
    assert done.exit_code == 0, done.output
    assert "5 runs are there already, 3 are left" in done.stderr
    after = {run.key: run for run in read_runs([csv])}
    assert len(after) == 8
    assert {(key.point[0][1], key.draw, key.condition) for key in after} == {
        (marked, draw, name)
        for marked in ("0", "0.5")
        for draw in (1, 2)
        for name in ("random", "topic-quotas")
    }
    assert all(after[run.key] == run for run in before)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.csv", "runs.csv.json"]
    grid = json.loads(done.stdout)["grid"]
    assert [one["factors"] for one in grid] == [{"world.marked": "0"}, {"world.marked": "0.5"}]
    assert grid[0]["by_seed"]["random"].keys() == {str(SEED)}


def test_another_run_does_not_overwrite_a_file(
    small_settings: LabSettings, cache: Path, tmp_path: Path
) -> None:
    csv = tmp_path / "runs.csv"
    wanted = [*arguments(small_settings, cache), "--seeds", "1", "--csv", str(csv), "--json"]
    assert CliRunner().invoke(app, [*wanted, "--conditions", "no-pool"]).exit_code == 0
    before = csv.read_bytes()
    again = CliRunner().invoke(app, [*wanted, "--conditions", "no-pool"])
    assert "1 runs are there already, 0 are left" in again.stderr
    for other in (["--conditions", "random"], ["--conditions", "no-pool", "--set", "rounds=3"]):
        done = CliRunner().invoke(app, [*wanted, *other])
        assert isinstance(done.exception, ParameterError)
        assert "holds runs of something else" in str(done.exception)
    assert csv.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_is_killed_loses_at_most_the_arm_it_was_at(
    jobs: str, small_settings: LabSettings, cache: Path, tmp_path: Path
) -> None:
    csv = tmp_path / "runs.csv"
    wanted = [
        *arguments(small_settings, cache),
        *("--seeds", "1", "--conditions", "random,topic-quotas,no-pool", "--draws", "3"),
        *("--csv", str(csv), "--jobs", jobs),
    ]
    command = [sys.executable, "-c", "from lada_lab.bench_commands import app; app()", *wanted]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        # Starting takes most of it.
        for _ in range(12_000):
            if csv.exists() and len(read_runs([csv])) >= 2:
                break
            time.sleep(0.05)
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
    before = read_runs([csv])
    assert 2 <= len(before) < 9
    # Nobody is left who could write beside the run that goes on.
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    done = CliRunner().invoke(app, wanted)
    assert done.exit_code == 0, done.output
    after = {run.key: run for run in read_runs([csv])}
    assert len(after) == 9
    assert all(after[run.key] == run for run in before)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--conditions", "random,best"], "best"),
        (["--epsilon", "eight"], "expected numbers"),
        (["--epsilon", "-1"], "epsilon"),
        (["--preset", "huge"], "--preset"),
        (["--set", "allocation.quota=0"], "quota"),
        (["--csv", "/nonexistent/folder/runs.csv"], "cannot write"),
        (["--factor", "allocation.quota=1"], "at least two"),
        (["--factor", "allocation.quota=0,1"], "quota"),
        (["--factor", "rounds=2,3", "--plot", "plot.svg"], "--plot"),
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


@pytest.mark.slow
def test_what_other_processes_had_under_way_is_kept_when_one_fails(
    small_settings: LabSettings, cache: Path
) -> None:
    bad = Arm(name="bad", summary="no plan", changes={"allocation.nothing": 1})
    plan = BenchPlan(
        arms=(ARMS["no-pool"], bad),
        seeds=(SEED,),
        epsilons=(8.0, 4.0),
        draws=1,
        points={(): small_settings},
    )
    runs = Runs()
    with pytest.raises(ParameterError, match=r"allocation\.nothing"):
        run_allocation(plan, runs=runs, cache_dir=cache, jobs=2, progress=lambda _text: None)
    assert {(key.condition, key.epsilon) for key in runs.known} == {
        ("no-pool", 8.0), ("no-pool", 4.0),
    }  # fmt: skip


class FullDisk(Runs):
    """Refuses what it is given."""

    def keep(self, run: Run, releases: Releases | None) -> None:
        raise TransportError("the disk is full")


@pytest.mark.slow
def test_no_process_is_left_when_runs_cannot_be_kept(
    small_settings: LabSettings, cache: Path
) -> None:
    plan = BenchPlan(
        arms=(ARMS["no-pool"], ARMS["random"]),
        seeds=(SEED,),
        epsilons=(8.0, 4.0),
        draws=2,
        points={(): small_settings},
    )
    with pytest.raises(TransportError, match="full"):
        run_allocation(plan, runs=FullDisk(), cache_dir=cache, jobs=2, progress=lambda _text: None)
    assert multiprocessing.active_children() == []
