"""`tests/gpu/run.sh`: it runs, and one row that fails, hangs or dies loses no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

import measure  # noqa: E402


@pytest.mark.slow
def test_dry_it_runs_every_row_on_the_cpu_and_writes_a_report_and_a_table(tmp_path):
    done = subprocess.run(
        ["bash", "tests/gpu/run.sh", "--dry", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    states = {one["row"]: one["state"] for one in report["rows"]}
    assert {one.split()[0] for one in states} == {"135m", "1b", "8b"}
    assert {one.split()[1] for one in states} == {"float32", "bfloat16", "4bit"}
    for row in report["rows"]:
        if row["base"] == "4bit" and row["state"] == "skipped":
            assert row["error"] == "bitsandbytes is not installed"
            continue
        assert row["state"] == "measured", row
        assert row["moved"] == {"fused": "4 of 4", "opacus": "4 of 4"}
        assert row["ratio"] > 0.0
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert table.startswith("cpu, nothing is measured")
    assert all(f"| {name} |" in table for name in states)


def row(**changes):
    values = {
        "shape": "135m",
        "base": "float32",
        "batch": 2,
        "length": 4,
        "records": 1,
        "checkpointing": False,
        "dry": True,
    }
    return measure.Row(**{**values, **changes})


def test_a_row_that_fails_is_told_and_the_process_goes_on():
    found = measure.in_its_own_process(row(records=0), 60.0)
    assert found["state"] == "failed"
    assert "range()" in found["error"]


def test_a_row_that_hangs_or_dies_is_ended(monkeypatch):
    monkeypatch.setattr(measure, "measured", lambda _: time.sleep(60.0))
    started = time.monotonic()
    assert measure.in_its_own_process(row(), 0.5)["state"] == "out of time"
    monkeypatch.setattr(measure, "measured", lambda _: os._exit(3))
    assert measure.in_its_own_process(row(), 30.0)["state"] == "died"
    assert time.monotonic() - started < 30.0


def test_rows_that_no_time_is_left_for_stand_in_the_report(tmp_path, monkeypatch):
    asked = Namespace(dry=True, only="1b float32", deadline_s=0.0, out=tmp_path)
    (found,) = measure.measure_all(asked)
    assert (found["state"], found["error"]) == ("skipped", "no time was left")
    assert "no time was left" in (tmp_path / "gpu.md").read_text(encoding="utf-8")


def test_all_limits_together_keep_within_the_deadline():
    wanted = measure.rows(dry=False)
    assert measure.DEADLINE_S < 8 * 60
    assert max(measure.LIMITS_S.values()) < measure.DEADLINE_S
    assert {one.shape for one in wanted} == set(measure.SHAPES)
