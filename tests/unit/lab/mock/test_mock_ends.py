"""How a real run ends when somebody stops it, or when a party dies: at once, told, and clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psutil import process_iter

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.presets import preset_for
from lada_lab.mock.weights import missing_models
from lada_lab.worlds.named_models import make_model

LADA = Path(sys.executable).with_name("lada")
START_S = 120.0
STOP_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def weights() -> None:
    """The tiny models, so that a run gets to its parties in seconds."""
    cache = default_cache_dir(os.environ)
    preset = preset_for("tiny", sites=3, rounds=None, seed=0)
    for reference in missing_models(preset, cache):
        make_model(reference, cache_dir=cache)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run whose five parties have all been started."""
    process = subprocess.Popen(
        [LADA, "mock", "run", "--preset", "tiny", "--out", tmp_path / "run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_S
    while sum("run --settings" in line for line in processes_of(tmp_path).values()) < 5:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the parties have not started"
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that name a folder on their command line."""
    lines = {one.pid: " ".join(one.info["cmdline"] or ()) for one in process_iter(["cmdline"])}
    return {pid: line for pid, line in lines.items() if str(folder) in line}


def test_ctrl_c_leaves_no_process_and_no_report(run: subprocess.Popen[str], tmp_path: Path) -> None:
    assert len(processes_of(tmp_path)) >= 5
    run.send_signal(signal.SIGINT)
    output = run.communicate(timeout=STOP_S)[0]
    assert run.returncode == 130
    assert "no process is left" in output
    assert "Traceback" not in output
    assert processes_of(tmp_path) == {}
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_party_that_dies_ends_the_run_with_its_name(
    run: subprocess.Popen[str], tmp_path: Path
) -> None:
    victim = next(
        process
        for process, line in processes_of(tmp_path).items()
        if "site run" in line and "site-b" in line
    )
    os.kill(victim, signal.SIGKILL)
    output = run.communicate(timeout=STOP_S)[0]
    assert run.returncode == 1
    assert "error (run_failed): site-b was killed by SIGKILL" in output
    assert "Traceback" not in output
    assert processes_of(tmp_path) == {}
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["run"]["outcome"] == "failed"
    assert report["run"]["failure"].startswith("site-b was killed by SIGKILL")
