"""The board on PostgreSQL when the server restarts, connections break and coordinators meet."""

import multiprocessing
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from postgresql_server import name_of

from lada_protocol.events import EventLog
from lada_secure.errors import ParameterError, TransportError
from lada_server.board import database as database_module
from lada_server.board.client import StorageStallTimer
from lada_server.board.storage_errors import StorageUnavailable
from lada_server.board.store import BoardStore
from lada_server.settings import ServerSettings
from lada_server.study.status import read_status

COUNTED = "CREATE SEQUENCE tries"
ON_INSERT = (
    "CREATE TRIGGER disturbed BEFORE INSERT ON board_messages FOR EACH ROW EXECUTE FUNCTION f()"
)


def function(body):
    """A trigger's function; `tries` counts also where the transaction is rolled back."""
    return (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('tries') < 3 THEN {body} END IF; RETURN NEW; END $$"
    )


@pytest.fixture
def url(postgres):
    return postgres.new_database()


@contextmanager
def board(url, folder, study):
    store = BoardStore(url, payload_dir=folder / "payloads", roster=study.roster)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(url, tmp_path, study):
    with board(url, tmp_path, study) as one:
        yield one


def stall_timer(events=None, limit_s=30.0):
    lines = [] if events is None else events
    log = EventLog(party="coordinator", sink=lines.append, clock=time.time)
    return StorageStallTimer(events=log, limit_s=limit_s)


def hashes(store, reader="auditor"):
    found, after = [], 0
    while more := store.visible(reader, after):
        found += [one.message_hash for _, one in more]
        after = more[-1][0]
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["orderly", "crash"])
def test_messages_posted_while_the_server_restarts_arrive_once_and_in_order(
    store, study, postgres, how
):
    envelopes = [study.envelope("mask_key", "bank", attempt=number) for number in range(60)]
    failures = []

    def post():
        try:
            for one in envelopes:
                stall_timer().retry(lambda one=one: store.post(one))
        except BaseException as error:
            failures.append(error)

    poster = threading.Thread(target=post)
    poster.start()
    for _ in range(3):
        time.sleep(0.1)
        postgres.restart(how)
    poster.join(60)
    assert not poster.is_alive()
    assert failures == []
    assert hashes(store) == [one.message_hash for one in envelopes]


def test_what_was_acknowledged_survives_a_crash_of_the_server(store, study, postgres):
    envelope = study.envelope("contribution", "bank", b"kept")
    sequence = store.post(envelope, b"kept")
    postgres.restart(signal.SIGQUIT)
    assert store.post(envelope, b"kept") == sequence
    assert store.payload(envelope.message_hash) == b"kept"
    assert hashes(store) == [envelope.message_hash]


@pytest.mark.parametrize(
    "body",
    [
        "PERFORM pg_terminate_backend(pg_backend_pid());",
        "RAISE EXCEPTION 'repeat' USING ERRCODE = '40001';",
        "RAISE EXCEPTION 'repeat' USING ERRCODE = '40P01';",
    ],
    ids=["connection lost", "serialization failure", "deadlock"],
)
def test_a_transaction_that_breaks_off_is_repeated_and_nothing_is_there_twice(
    store, study, postgres, url, body
):
    postgres.execute(name_of(url), COUNTED, function(body), ON_INSERT)
    envelope = study.envelope("contribution", "bank", b"once")
    sequence = store.post(envelope, b"once")
    assert store.post(envelope, b"once") == sequence
    assert postgres.execute(name_of(url), "SELECT last_value FROM tries") == [(3,)]
    assert hashes(store) == [envelope.message_hash]


def test_a_commit_whose_answer_was_lost_is_not_made_twice_and_still_wakes_readers(
    store, study, monkeypatch
):
    dialect = store._database.writer.dialect
    commit, lost = dialect.do_commit, []

    def commits_and_breaks(connection):
        commit(connection)
        if not lost:
            lost.append(True)
            connection.dbapi_connection.close()
            raise dialect.dbapi.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", commits_and_breaks)
    woken = []
    waiter = threading.Thread(target=lambda: woken.extend(store.entries("bank", 0, wait_s=20)))
    waiter.start()
    time.sleep(0.2)
    envelope = study.envelope("abort", "coordinator")
    sequence = store.post(envelope)
    waiter.join(5)
    assert lost
    assert [one.sequence for one in woken] == [sequence]
    assert hashes(store) == [envelope.message_hash]


def test_a_full_disk_of_the_server_is_said_clearly_and_the_retry_is_stored_once(
    store, study, postgres, url
):
    full = "RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';"
    postgres.execute(name_of(url), COUNTED, function(full), ON_INSERT)
    envelope = study.envelope("contribution", "bank", b"once")
    with pytest.raises(StorageUnavailable, match="free some space; nothing is lost"):
        store.post(envelope, b"once")
    assert hashes(store) == []
    stall_timer().retry(lambda: store.post(envelope, b"once"))
    assert hashes(store) == [envelope.message_hash]


def test_the_coordinator_waits_for_its_database_visibly_and_goes_on(store, study, postgres):
    envelope, events = study.envelope("abort", "coordinator"), []
    waiting = stall_timer(events)
    waiting.enter(4, "opening")
    postgres.stop()
    try:
        poster = threading.Thread(target=lambda: waiting.retry(lambda: store.post(envelope)))
        poster.start()
        time.sleep(1.0)
        assert poster.is_alive()
    finally:
        postgres.start()
    poster.join(30)
    assert hashes(store) == [envelope.message_hash]
    assert b'"event":"waiting","for":["storage"]' in events[0]
    assert b'"round":4' in events[0]
    assert [waiting.was_interrupted(), waiting.was_interrupted()] == [True, False]


def test_the_coordinator_does_not_wait_for_ever(store, study, postgres):
    postgres.stop()
    try:
        with pytest.raises(StorageUnavailable, match="check that it runs"):
            stall_timer(limit_s=0.5).retry(store.check)
    finally:
        postgres.start()


def test_two_coordinators_cannot_hold_one_database(url, tmp_path, study, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_WAIT_S", 0.3)
    first, second = tmp_path / "first", tmp_path / "second"
    with board(url, first, study) as store:
        with pytest.raises(ParameterError, match="in use by another coordinator process"):
            board(url, second, study).__enter__()
        assert store.post(study.envelope("abort", "coordinator")) == 1


def test_two_schemas_of_one_database_are_two_boards(url, postgres, tmp_path, study):
    postgres.execute(name_of(url), "CREATE SCHEMA other")
    other = f"{url}&options=-csearch_path%3Dother"
    with board(url, tmp_path / "one", study) as one, board(other, tmp_path / "two", study) as two:
        one.post(study.envelope("abort", "coordinator"))
        assert [len(hashes(one)), len(hashes(two))] == [1, 0]


def test_a_schema_that_is_not_there_is_named(url, tmp_path, study):
    with (
        pytest.raises(ParameterError, match="search_path names does not exist"),
        board(f"{url}&options=-csearch_path%3Dmissing", tmp_path, study),
    ):
        pass


def test_a_user_without_rights_is_told_so(url, postgres, tmp_path, study):
    postgres.execute(name_of(url), "CREATE ROLE guest LOGIN")
    with (
        pytest.raises(TransportError, match="its user lacks the right"),
        board(url.replace("lada@", "guest@"), tmp_path, study),
    ):
        pass


def test_the_status_says_what_it_knows_while_the_database_is_away(url, postgres, tmp_path, study):
    with board(url, tmp_path, study) as store:
        store.post(study.envelope("mask_key", "bank"))
    folders = dict.fromkeys(("roster", "study", "pool", "cache_dir"), tmp_path)
    settings = ServerSettings(
        party="coordinator",
        listen="localhost:1",
        identity=tmp_path / "identity",
        state_dir=tmp_path,
        llm="none",
        database=url,
        **folders,
    )

    def status():
        found = read_status(settings, study.roster, now_s=0.0)
        return found.storage_failure, {one.id: one.messages for one in found.parties}["bank"]

    assert status() == (None, 1)
    postgres.stop()
    try:
        said, messages = status()
    finally:
        postgres.start()
    assert "check that it runs" in said
    assert messages is None


def hold(url, folder, roster_file, ready):
    """Body of a process that has the board until it is killed."""
    from lada_protocol.identity.roster import parse_roster

    store = BoardStore(url, payload_dir=folder, roster=parse_roster(roster_file.read_bytes()))
    ready.put(True)
    threading.Event().wait()
    store.close()


def test_the_lock_dies_with_the_process(url, tmp_path, study):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(
        target=hold, args=(url, tmp_path / "payloads", study.folder / "roster.json", ready)
    )
    process.start()
    try:
        assert ready.get(timeout=60)
    finally:
        process.kill()
        process.join()
    with board(url, tmp_path, study) as store:
        assert store.post(study.envelope("abort", "coordinator"))


def test_a_coordinator_that_lost_the_lock_does_not_write_before_it_has_it_again(
    store, study, postgres, url
):
    psycopg = pytest.importorskip("psycopg")
    envelope = study.envelope("abort", "coordinator")
    with psycopg.connect(
        f"host={postgres.folder} user=lada dbname={name_of(url)}", autocommit=True
    ) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        key = f"{database_module.LOCK_CLASS}, hashtext('public')"
        deadline = time.monotonic() + 5
        while not other.execute(f"SELECT pg_try_advisory_lock({key})").fetchone()[0]:
            assert time.monotonic() < deadline
        with pytest.raises(StorageUnavailable, match="another session holds"):
            store.post(envelope)
        assert other.execute("SELECT count(*) FROM board_messages").fetchone() == (0,)
    assert stall_timer().retry(lambda: store.post(envelope))
    assert hashes(store) == [envelope.message_hash]


def version(postgres, url):
    query = "SELECT value FROM board_metadata WHERE name = 'schema_version'"
    return postgres.execute(name_of(url), query)[0][0]


def test_a_newer_version_is_refused_and_left_alone(postgres, url, tmp_path, study):
    with board(url, tmp_path, study):
        pass
    change = "UPDATE board_metadata SET value = '3' WHERE name = 'schema_version'"
    postgres.execute(name_of(url), change)
    with (
        pytest.raises(ParameterError, match="schema version 3, this software reads up to 2"),
        board(url, tmp_path, study),
    ):
        pass
    assert version(postgres, url) == "3"


def test_payloads_of_another_board_are_refused(postgres, url, tmp_path, study):
    with board(url, tmp_path, study):
        pass
    with (
        pytest.raises(ParameterError, match="is it the right database"),
        board(postgres.new_database(), tmp_path, study),
    ):
        pass
    with board(url, tmp_path, study):
        pass


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path, study):
    url = f"postgresql://lada:hunter2@/board?host={tmp_path}"
    with pytest.raises(TransportError, match="check that it runs") as refused:
        BoardStore(url, payload_dir=tmp_path / "payloads", roster=study.roster)
    assert "hunter2" not in str(refused.value)


def test_a_missing_driver_is_named_with_what_to_install(tmp_path, study, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ParameterError, match=r"pip install 'lada-secure\[postgres\]'"):
        BoardStore("postgresql:///x", payload_dir=tmp_path / "payloads", roster=study.roster)


def test_a_backup_of_database_and_folder_comes_back_as_it_was(postgres, url, tmp_path, study):
    kept, later = (study.envelope("contribution", "bank", b"x", attempt=n) for n in (0, 1))
    with board(url, tmp_path / "state", study) as store:
        store.post(kept, b"x")
    dump = tmp_path / "board.dump"
    postgres.run("pg_dump", "--format=custom", "--file", dump, url)
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    with board(url, tmp_path / "state", study) as store:
        store.post(later, b"x")
    shutil.move(tmp_path / "state", tmp_path / "lost")
    shutil.copytree(tmp_path / "backup", tmp_path / "state")
    with pytest.raises(TransportError, match="the payloads of 1 messages are missing"):
        board(url, tmp_path / "state", study).__enter__()
    postgres.run("pg_restore", "--clean", "--if-exists", "--no-owner", "--dbname", url, dump)
    with board(url, tmp_path / "state", study) as store:
        assert hashes(store) == [kept.message_hash]
        assert store.post(kept, b"x") == 1
        assert store.post(later, b"x") == 2
