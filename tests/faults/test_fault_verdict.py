"""What counts as left behind, what is seen of a run, and the clock that can be wrong."""

import json
import os
import socket
import subprocess
import sys

import pytest

from lada_lab.mock.layout import RunLayout

from .__main__ import CLOCK
from .sight import Sight, ledger_lines
from .strikes import fill
from .verdict import left_behind


@pytest.mark.parametrize(
    "name",
    [
        "site-a/state/.site-state.json.4711",
        "coordinator/state/llm/view.part",
        "coordinator/state/board.sqlite-wal",
        "coordinator/state/payloads/incoming/abc",
        "coordinator/state/uploads/site-a/abc",
        "coordinator/state/presence.json",
        "site-a/state/secrets/mask-12-0-statistics-0",
        "tmp/site-a/torch-1234",
    ],
)
def test_a_file_that_nobody_needs_any_more_is_found(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    (found,) = left_behind(tmp_path)
    assert name in found


def test_a_socket_is_found_and_what_belongs_there_is_not(tmp_path):
    for name in (
        "site-a/state/ledger-a.sqlite",
        "coordinator/state/payloads/ab/abc",
        "export/ca.crt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "site-a.clock").write_text("0")
    assert list(left_behind(tmp_path)) == []
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.getcwd()
        os.chdir(tmp_path)
        try:
            one.bind("s")
        finally:
            os.chdir(folder)
        assert [one for one in left_behind(tmp_path) if "socket" in one]


def test_events_are_counted_and_a_torn_line_is_passed_over(tmp_path):
    layout = RunLayout(root=tmp_path, site_ids=("site-a",))
    path = layout.site("site-a").events
    path.parent.mkdir(parents=True)
    event = {
        "event": "step_started",
        "step": "demand",
        "round": 1,
        "time_s": 5.0,
        "party": "site-a",
    }
    whole = json.dumps(event).encode() + b"\n"
    path.write_bytes(whole + b'{"event":"st\n' + whole + whole[:10])
    sight = Sight(layout=layout)
    sight.look()
    assert sight.happened("site-a", "step_started", "demand", 1) == 2
    with path.open("ab") as file:
        file.write(whole[10:])
    sight.look()
    assert sight.happened("site-a", "step_started", "demand", 1) == 3
    assert sight.doing("site-a") == "step_started demand 1"
    assert ledger_lines(path.parent) == []


def test_the_wrong_clock_is_wrong_by_what_the_file_says(tmp_path):
    shift = tmp_path / "clock"
    shift.write_text("-7200")
    code = (
        "import time, datetime, os\n"
        "now = datetime.datetime.now(datetime.UTC)\n"
        "true = time.clock_gettime(time.CLOCK_REALTIME)\n"
        "assert abs(time.time() - true + 7200) < 60, 'time.time'\n"
        "assert abs(now.timestamp() - true + 7200) < 60, 'datetime.now'\n"
        "assert isinstance(now, datetime.datetime)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CLOCK), "LADA_FAULTS_CLOCK": str(shift)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_disk_that_is_not_ours_is_not_filled_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("faults.strikes.LARGEST_FILL", 1 << 16)
    with pytest.raises(RuntimeError, match="takes more than 65536 bytes"):
        fill(tmp_path / "filler")
