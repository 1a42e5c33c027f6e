"""Children are real processes here; none may be left, whatever ends their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lada_lab.machine import group_memory_bytes
from lada_lab.mock.supervisor import Child, Ended, Supervisor, failure_text, last_message
from lada_secure.errors import TransportError

DEADLINE_S = 20.0

# A party that ignores polite requests and has a worker of its own in its group.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import signal, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {worker.pid}")
time.sleep(600)
"""

# A whole mock run in miniature: supervises one stubborn party until it is stopped itself.
PARENT = """
import sys, time
from pathlib import Path
from lada_lab.mock.supervisor import Child, Supervisor, signals_as_exceptions
code, ids, log = sys.argv[1:]
with signals_as_exceptions(), Supervisor(grace_s=0.3) as supervisor:
    supervisor.start(Child(name="party", arguments=(sys.executable, "-c", code, ids),
        log=Path(log), environment={}))
    time.sleep(600)
"""


def child(tmp_path: Path, code: str, *arguments: str, name: str = "site-a") -> Child:
    return Child(
        name=name,
        arguments=(sys.executable, "-c", code, *arguments),
        log=tmp_path / f"{name}.txt",
        environment={**os.environ},
    )


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {DEADLINE_S} s"
        time.sleep(0.02)


def is_alive(process_id: int) -> bool:
    try:
        # An orphan's zombie waits for init; it runs no code any more.
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends_of(supervisor: Supervisor) -> list[Ended]:
    ended: list[Ended] = []
    wait_for(lambda: ended.extend(supervisor.poll()) or not supervisor.running, "end of all")
    return ended


def process_ids(path: Path) -> list[int]:
    wait_for(lambda: path.is_file() and len(path.read_text().split()) == 2, "start of a child")
    return [int(word) for word in path.read_text().split()]


def test_leaving_the_block_ends_a_party_that_ignores_sigterm_and_its_worker(
    tmp_path: Path,
) -> None:
    ids = tmp_path / "ids"
    with Supervisor(grace_s=0.3) as supervisor:
        supervisor.start(child(tmp_path, STUBBORN, str(ids)))
        processes = process_ids(ids)
        assert all(is_alive(one) for one in processes)
    wait_for(lambda: not any(is_alive(one) for one in processes), "end of all processes")


def test_an_exception_in_the_block_ends_all_children(tmp_path: Path) -> None:
    ids = tmp_path / "ids"

    def start_and_be_interrupted() -> None:
        with Supervisor(grace_s=0.3) as supervisor:
            supervisor.start(child(tmp_path, STUBBORN, str(ids)))
            process_ids(ids)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_and_be_interrupted()
    wait_for(lambda: not any(map(is_alive, process_ids(ids))), "end of all processes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_outlives_a_parent_that_is_ended_by(
    tmp_path: Path, number: signal.Signals
) -> None:
    ids = tmp_path / "ids"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, STUBBORN, str(ids), str(tmp_path / "log.txt")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    processes = process_ids(ids)
    parent.send_signal(number)
    assert parent.wait(DEADLINE_S) != 0
    wait_for(lambda: not any(is_alive(one) for one in processes), "end of all processes")


def test_a_party_that_ends_takes_what_it_started_with_it(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    leaving = STUBBORN.rsplit("time.sleep(600)", 1)[0]
    with Supervisor(grace_s=0.3) as supervisor:
        supervisor.start(child(tmp_path, leaving, str(ids)))
        _, worker = process_ids(ids)
        ended = ends_of(supervisor)
        assert [(one.name, one.status) for one in ended] == [("site-a", 0)]
        wait_for(lambda: not is_alive(worker), "end of the worker")


def test_a_failure_is_told_with_the_childs_own_last_error(tmp_path: Path) -> None:
    code = (
        "import sys; print('error (privacy_budget_exceeded): 8.3 of 8');"
        "print('goodbye'); sys.exit(1)"
    )
    with Supervisor() as supervisor:
        supervisor.start(child(tmp_path, code))
        (ended,) = ends_of(supervisor)
    text = failure_text(ended)
    assert text.startswith("site-a ended with status 1: error (privacy_budget_exceeded): 8.3 of 8")
    assert str(tmp_path / "site-a.txt") in text


def test_a_killed_child_is_told_with_its_signal(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with Supervisor() as supervisor:
        supervisor.start(child(tmp_path, code))
        (ended,) = ends_of(supervisor)
    assert failure_text(ended).startswith("site-a was killed by SIGKILL: it said nothing")


def test_run_all_stops_the_others_when_one_fails(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    failing = (
        "import sys, time, pathlib\n"
        "while not pathlib.Path(sys.argv[1]).is_file(): time.sleep(0.01)\n"
        "sys.exit('error (parameter): no')"
    )
    with Supervisor(grace_s=0.3) as supervisor:
        with pytest.raises(TransportError, match=r"bad ended with status 1: error \(parameter\)"):
            supervisor.run_all(
                [
                    child(tmp_path, STUBBORN, str(ids), name="good"),
                    child(tmp_path, failing, str(ids), name="bad"),
                ]
            )
        assert supervisor.running == ()
    # A killed grandchild takes its moment on a busy machine.
    wait_for(lambda: not any(map(is_alive, process_ids(ids))), "end of all processes")


def test_a_program_that_does_not_exist_is_a_transport_error(tmp_path: Path) -> None:
    missing = Child(
        name="site-a",
        arguments=(str(tmp_path / "nothing"),),
        log=tmp_path / "log.txt",
        environment={},
    )
    with Supervisor() as supervisor, pytest.raises(TransportError, match="cannot start site-a"):
        supervisor.start(missing)


def test_the_last_message_of_a_log_without_errors_is_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_message(log) == ""
    log.write_text("one\ntwo\n\n", encoding="utf-8")
    assert last_message(log) == "two"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_of_a_group_counts_what_its_processes_hold(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = "import sys, time; x = bytearray(80_000_000); open(sys.argv[1], 'w'); time.sleep(600)"
    with Supervisor(grace_s=0.3) as supervisor:
        supervisor.start(child(tmp_path, code, str(ready)))
        wait_for(ready.is_file, "start of the child")
        used = group_memory_bytes(supervisor.groups.values())
    assert used is not None
    assert 80_000_000 < used < 140_000_000
    assert group_memory_bytes([]) == 0
