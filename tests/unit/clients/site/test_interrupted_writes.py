"""What a killed process or a full disk leaves in a party's state folder, and who cleans it up."""

import errno
import json
import os
import subprocess
import sys

import pytest

from lada_protocol.events import StepStarted
from lada_protocol.party_files import open_event_log
from lada_secure.storage.whole_files import sweep_parts, write_atomically


@pytest.fixture
def dead():
    """The number of a process that is gone."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as one:
        one.wait()
        return one.pid


def test_parts_of_processes_that_are_gone_are_swept_and_others_stay(tmp_path, dead):
    inner = tmp_path / "outbox"
    inner.mkdir()
    gone = [tmp_path / f".picks-round-0.json.{dead}", inner / f".query-0-ab.payload.{dead}"]
    own = tmp_path / f".known-paths.json.{os.getpid()}"
    alive = tmp_path / f".fingerprint.key.{os.getppid()}"
    others = [alive, tmp_path / ".hidden", tmp_path / "picks-round-0.json", tmp_path / ".a.0"]
    for path in (*gone, own, *others):
        path.write_bytes(b"x")
    assert sweep_parts(tmp_path) == 3
    assert sorted(tmp_path.rglob("*")) == sorted([inner, *others])
    assert sweep_parts(tmp_path / "not-there") == 0


def test_a_part_that_a_killed_writer_leaves_is_one_that_is_swept(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from lada_secure.storage import whole_files\n"
        "whole_files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "whole_files.write_atomically(Path(sys.argv[1]), b'half')\n"
    )
    path = tmp_path / "picks-round-0.json"
    write_atomically(path, b"old")
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep_parts(tmp_path) == 1
    assert path.read_bytes() == b"old"


class FullDisk:
    """A file on a disk with room for so many bytes."""

    def __init__(self, room):
        self.room, self.content = room, b""

    def write(self, line):
        fitting = line[: self.room]
        if not fitting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(fitting)
        self.content += fitting
        return len(fitting)


def test_events_on_a_full_disk_are_left_out_and_do_not_spoil_the_next_one(tmp_path, monkeypatch):
    disk = FullDisk(room=1000)
    monkeypatch.setattr(type(tmp_path), "open", lambda *_, **__: disk)
    log = open_event_log("site-a", tmp_path)
    log.write(StepStarted, round_id=0, step="plan")
    disk.room = 10
    for _ in range(3):
        log.write(StepStarted, round_id=1, step="demand")
    disk.room = 1000
    log.write(StepStarted, round_id=2, step="close")
    told = []
    for line in disk.content.splitlines():
        try:
            told.append(json.loads(line)["round"])
        except ValueError:
            told.append("torn")
    assert told == [0, "torn", 2]
