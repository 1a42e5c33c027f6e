"""What an operator sees of a coordinator: status from disk, health and metrics over HTTP."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from protocol_world import make_plan
from served_board import chunk, coordinator_identity, raw_stub, refusal, serving
from typer.testing import CliRunner

from lada_protocol.events import EVENTS_FILE, EventLog, Failed, Finished, StepFinished, StepStarted
from lada_protocol.rounds.tasks import Wait
from lada_secure.errors import ParameterError
from lada_server.board.store import BoardStore
from lada_server.commands import app
from lada_server.runner import _Opened, _served
from lada_server.settings import ServerSettings
from lada_server.study.monitor import Monitored, monitoring
from lada_server.study.places import PLAN_FILE, settings_of_study
from lada_server.study.status import STATUS_FILE, Status, keep_status_file, read_status


def settings_of(study, folder):
    return ServerSettings(
        party="coordinator",
        listen="127.0.0.1:0",
        identity=study.identity("coordinator"),
        roster=study.folder / "roster.json",
        state_dir=folder,
        study=folder / "study.toml",
        pool=folder / "pool.jsonl",
        llm="none",
        cache_dir=folder,
    )


def status_of(study, folder):
    return read_status(settings_of(study, folder), study.roster, now_s=time.time())


def events_in(folder, clock=time.time):
    file = (folder / EVENTS_FILE).open("ab", buffering=0)
    return EventLog(party="coordinator", sink=file.write, clock=clock)


def party(status, name):
    return next(one for one in status.parties if one.id == name)


def wait_until(found, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_status_folds_in_the_log_of_a_board_that_its_process_could_not_close(study, tmp_path):
    # As after a kill, or where the disk was full as the coordinator closed it.
    board = tmp_path / "board.sqlite"
    change = "lambda connection: connection.exec_driver_sql('create table t (x integer)')"
    ends_in_the_middle = (
        "import os; from lada_server.board.database import Database; "
        f"Database('sqlite:///{board}').write('test', {change}); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", ends_in_the_middle], check=True)
    log = tmp_path / "board.sqlite-wal"
    assert log.stat().st_size > 0
    status_of(study, tmp_path)
    assert board.exists()
    assert not log.exists()


def test_before_the_first_run_nothing_is_made_and_nothing_is_claimed(study, tmp_path):
    found = status_of(study, tmp_path)
    assert (found.running, found.state, found.round) == (False, "not started", None)
    assert {one.connected for one in found.parties} == {None}
    assert list(tmp_path.iterdir()) == []


def test_status_tells_who_is_there_who_spoke_last_and_who_is_waited_for(study, tmp_path):
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        bank.post(study.envelope("acceptance", "bank"))
        bank.post(study.envelope("trained", "bank", round_id=1))
        with raw_stub(served, study.identity("auditor"), study.identity("auditor")) as stub:
            refusal(lambda: stub.Post(iter([chunk(b"x")]), timeout=10))
        events_in(tmp_path, lambda: 1_700_000_100.0).waiting(
            Wait(round_id=1, step="training", parties=("hospital-a",), awaited="trained"),
            since_s=40.0,
        )
        thread = keep_status_file(tmp_path / STATUS_FILE, served.server)
        wait_until(lambda: status_of(study, tmp_path).running)
        found = status_of(study, tmp_path)
        assert (found.listen, found.state, found.round) == (served.server.address, "waiting", 1)
        assert found.step == "training"
        assert found.waiting.parties == ("hospital-a",)
        assert found.waiting.since == "2023-11-14T22:14:20Z"
        assert found.waiting.because == "trained not here yet"
        assert party(found, "bank").connected
        assert party(found, "bank").messages == 2
        assert party(found, "bank").last_message.kind == "trained"
        assert party(found, "bank").last_message.round == 1
        assert party(found, "auditor").refusals == {"malformed": 1}
        assert not party(found, "hospital-a").connected
        assert party(found, "hospital-a").last_call is None
    thread.join(5)
    after = status_of(study, tmp_path)
    assert not after.running
    assert party(after, "bank").connected is None
    assert party(after, "bank").last_message == party(found, "bank").last_message


def test_a_running_coordinator_is_seen_in_its_second_study_too(study, tmp_path):
    (tmp_path / PLAN_FILE).write_bytes(make_plan().to_bytes())
    settings = settings_of_study(settings_of(study, tmp_path), "study-2")
    settings.state_dir.mkdir(parents=True)
    store = BoardStore(
        settings.database_url, payload_dir=settings.state_dir / "payloads", roster=study.roster
    )
    opened = _Opened(
        settings=settings,
        study_settings=None,
        pool=(),
        store=store,
        identity=coordinator_identity(study),
        events=events_in(settings.state_dir),
    )
    with closing(store), _served(opened):
        wait_until(lambda: read_status(settings, study.roster, now_s=time.time()).running)
    # Nothing of it lies where the first study is.
    assert {path.name for path in tmp_path.iterdir()} == {PLAN_FILE, "studies"}


def test_status_tells_until_when_people_may_decide(study, tmp_path, monkeypatch):
    ends = "2026-05-08T12:00:00Z"
    wait = Wait(round_id=0, step="plan", parties=("bank",), awaited="answers", until=ends)
    events_in(tmp_path).waiting(wait, since_s=0.0)
    assert status_of(study, tmp_path).waiting.until == ends
    settings = tmp_path / "server.toml"
    values = settings_of(study, tmp_path).model_dump(mode="json", exclude_defaults=True)
    settings.write_text("".join(f"{key} = {json.dumps(one)}\n" for key, one in values.items()))
    shown = CliRunner().invoke(app, ["status", "--settings", str(settings)])
    assert f"people there may decide until {ends}" in shown.output


def test_what_a_full_disk_left_half_written_goes_with_the_process(study, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "state").mkdir()
    with serving(study, tmp_path) as served:
        monkeypatch.setattr(Path, "replace", full)
        thread = keep_status_file(tmp_path / "state" / STATUS_FILE, served.server)
        wait_until(lambda: any((tmp_path / "state").iterdir()))
    thread.join(10)
    assert list((tmp_path / "state").iterdir()) == []


def test_a_killed_process_does_not_count_as_running(study, tmp_path):
    old = {"pid": 1, "at_s": time.time() - 60, "listen": "127.0.0.1:1", "parties": {}}
    (tmp_path / STATUS_FILE).write_text(json.dumps(old))
    assert not status_of(study, tmp_path).running


@pytest.mark.parametrize(
    ("event", "state"),
    [(StepStarted, "working"), (Finished, "finished"), (Failed, "failed")],
)
def test_the_newest_whole_event_decides_even_after_a_torn_line(study, tmp_path, event, state):
    log = events_in(tmp_path)
    log.write(StepFinished, round_id=0, step="plan", seconds=1.0, bytes_up=0, bytes_down=0)
    said = {"message": "too few sites"} if event is Failed else {}
    log.write(event, round_id=0, step="opening", **said)
    with (tmp_path / EVENTS_FILE).open("ab") as file:
        file.write(b'{"event": "step_sta')
    found = status_of(study, tmp_path)
    assert (found.state, found.step) == (state, "opening")
    assert found.failure == ("too few sites" if state == "failed" else None)


def test_the_command_prints_a_table_or_json(study, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    settings = tmp_path / "server.toml"
    values = settings_of(study, tmp_path).model_dump(mode="json", exclude_defaults=True)
    settings.write_text("".join(f"{key} = {json.dumps(one)}\n" for key, one in values.items()))
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        bank.post(study.envelope("acceptance", "bank"))
    shown = CliRunner().invoke(app, ["status", "--settings", str(settings)])
    assert shown.exit_code == 0, shown.output
    assert "coordinator not running" in shown.output
    assert "acceptance, round 1" in shown.output
    shown = CliRunner().invoke(app, ["status", "--settings", str(settings), "--json"])
    assert party(Status.model_validate_json(shown.stdout), "bank").messages == 1


def get(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_metrics_are_served_on_an_address_of_their_own(study, tmp_path):
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        monitored = Monitored(server=served.server, events=tmp_path / EVENTS_FILE)
        events_in(tmp_path, lambda: 1000.0).waiting(
            Wait(round_id=2, step="close", parties=("bank",), awaited="close"), since_s=5.0
        )
        bank.post(study.envelope("contribution", "bank", b"12345"), b"12345")
        with raw_stub(served, study.identity("outsider"), study.identity("bank")) as stub:
            refusal(lambda: stub.Post(iter([]), timeout=10))
        with monitoring("127.0.0.1:0", monitored) as address:
            assert get(address, "/healthz") == (200, '{"status": "ok"}')
            status, text = get(address, "/metrics")
            assert status == 200
            lines = text.splitlines()
            for line in (
                'lada_calls_total{party="bank"} 1.0',
                'lada_payload_bytes_total{direction="up",party="bank"} 5.0',
                'lada_open_calls{party="bank"} 0.0',
                'lada_refusals_total{party="",reason="unknown_party"} 1.0',
                'lada_waiting_since_timestamp_seconds{party="bank"} 995.0',
                "lada_round 2.0",
                "lada_revocation_list_number 0.0",
            ):
                assert line in lines, text
            assert get(address, "/anything")[0] == 404
            with (
                pytest.raises(ParameterError, match="cannot listen"),
                monitoring(address, monitored),
            ):
                pass
            served.store._database.close()
            (tmp_path / "board.sqlite").write_bytes(b"not a database" * 1000)
            status, text = get(address, "/healthz")
            assert status == 503
            assert json.loads(text)["status"] == "failing"


def test_a_silent_visitor_of_the_monitor_holds_up_nobody(study, tmp_path):
    import socket

    with serving(study, tmp_path) as served:
        monitored = Monitored(server=served.server, events=tmp_path / EVENTS_FILE)
        with monitoring("127.0.0.1:0", monitored) as address:
            host, port = address.rsplit(":", 1)
            silent = [socket.create_connection((host, int(port))) for _ in range(5)]
            assert get(address, "/healthz")[0] == 200
            for one in silent:
                one.close()
    assert threading.active_count() < 50
