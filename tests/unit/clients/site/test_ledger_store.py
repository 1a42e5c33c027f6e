"""The ledger in SQLite: it survives, it is shared, and it refuses what is not its own."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ledger_store_world import CAPS, PLAN, PUBLIC, approve, now, open_ledger, spec

from lada_clients.site.ledger.file import APPLICATION_ID
from lada_clients.site.ledger.store import SqliteLedger, open_ledger_reader
from lada_secure.errors import (
    LadaError,
    LedgerError,
    LocalProtocolError,
    PrivacyBudgetExceeded,
    TransportError,
)
from lada_secure.privacy.ledger.entries import StudyEntry, parse_ledger_lines
from lada_secure.privacy.ledger.terms import BudgetCaps, Reservation
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def verify(ledger: SqliteLedger) -> LedgerSummary:
    return verify_ledger(
        parse_ledger_lines(ledger.export_lines()),
        public_key=PUBLIC,
        caps=CAPS,
        site="hospital-a",
        population="patients",
    )


def test_everything_survives_a_restart(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.commit(ledger.reserve(spec(0)), b"noised")
        ledger.reserve(spec(1))
        before = (ledger.entries(), ledger.epsilon_spent(1e-6))
    with open_ledger(path) as ledger:
        assert (ledger.entries(), ledger.epsilon_spent(1e-6)) == before
        assert ledger.stored_output(spec(0).key) == b"noised"
        assert ledger.stored_output(spec(1).key) is None
        assert ledger.reserve(spec(0)).stored_output == b"noised"
        assert ledger.reserve(spec(1)).entry == before[0][-1]
        assert (verify(ledger).uncommitted, verify(ledger).resumes) == (1, 1)
        assert ledger.epsilon_spent(1e-6) == before[1]
        assert not ledger.started_now


def test_a_release_computes_once_even_across_restarts(path: Path) -> None:
    calls: list[int] = []

    def compute(_paid: Reservation) -> bytes:
        calls.append(1)
        return os.urandom(16)

    values = []
    for _ in range(3):
        with open_ledger(path) as ledger:
            if ledger.entries()[-1].index == 0:
                approve(ledger)
            values.append(ledger.release(spec(), compute=compute, encode=bytes, decode=bytes))
    assert len({one.value for one in values}) == len({one.paid_by for one in values}) == 1
    assert calls == [1]


def test_two_open_ledgers_see_each_others_spending(path: Path) -> None:
    with open_ledger(path) as first, open_ledger(path) as second:
        approve(first)
        for round_id in range(0, 6, 2):
            first.reserve(spec(round_id))
            second.commit(second.reserve(spec(round_id + 1)), b"noised")
        assert first.epsilon_spent(1e-6) == pytest.approx(second.epsilon_spent(1e-6), rel=1e-9)
        assert first.entries()[-1] == second.entries()[-1]
        assert verify(first).reservations == 6


def test_a_refused_reservation_leaves_the_file_as_it_was(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.reserve(spec())
        before = ledger.export_lines()
        with pytest.raises(PrivacyBudgetExceeded):
            ledger.reserve(spec(1, noise=0.5))
        with pytest.raises(LedgerError, match="has not approved"):
            ledger.reserve(spec(1, study_id="other"))
        assert ledger.export_lines() == before
    with open_ledger(path) as ledger:
        assert ledger.export_lines() == before


def test_a_lower_cap_in_the_policy_holds_at_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        spent = ledger.reserve(spec()).entry.epsilon_after
    tight = BudgetCaps(target_delta=1e-6, total_epsilon=1.01 * spent, study_epsilon=3.0)
    with open_ledger(path, caps=tight) as ledger, pytest.raises(PrivacyBudgetExceeded):
        ledger.reserve(spec(1))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        pytest.param({"site": "hospital-b"}, "another site", id="another site"),
        pytest.param({"population": "staff"}, "another population", id="another population"),
    ],
)
def test_a_ledger_of_somebody_else_is_refused(
    path: Path, other: dict[str, Any], named: str
) -> None:
    open_ledger(path).close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=f"it is of {named}"):
        open_ledger(path, **other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("said", ["2", "4", "-1", "", "three"])
def test_a_ledger_of_another_version_is_refused_and_left_alone(path: Path, said: str) -> None:
    open_ledger(path).close()
    change(path, f"UPDATE meta SET value = '{said}' WHERE name = 'schema_version'")  # noqa: S608
    before = path.read_bytes()
    words = f"it has schema version {said}, this software reads version 3 only; use the version"
    for opening in (open_ledger, open_ledger_reader):
        with pytest.raises(LedgerError, match=words), opening(path):
            pass
    assert path.read_bytes() == before


def test_the_file_says_what_it_is(path: Path) -> None:
    open_ledger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA application_id").fetchone()
    assert found == APPLICATION_ID


def test_a_database_of_something_else_is_not_made_into_a_ledger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE board_messages (sequence INTEGER)")
    with pytest.raises(LedgerError, match="it holds the tables board_messages"):
        open_ledger(path)
    with closing(sqlite3.connect(path)) as connection:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    assert tables == 1


@pytest.mark.parametrize(
    "content", [b"this is not a database" * 100, os.urandom(8192)], ids=["text", "chance"]
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="damaged or not a ledger"):
        open_ledger(path)
    assert path.read_bytes() == content


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        for one in path.parent.iterdir():
            assert stat.S_IMODE(one.stat().st_mode) == 0o600, one


def test_the_file_is_in_wal_mode_and_synchronous(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert pragma(ledger, "journal_mode") == "wal"
        assert pragma(ledger, "synchronous") == 2


def pragma(ledger: SqliteLedger, words: str) -> object:
    """Ask or tell the ledger's own connection."""
    with ledger._file.transaction("BEGIN") as connection:
        found = connection.execute(f"PRAGMA {words}").fetchone()
    return None if found is None else found[0]


def change(path: Path, *statements: str) -> None:
    """What somebody with the file and an editor can do: triggers do not stop them."""
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in names.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def filled(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        for round_id in range(3):
            ledger.commit(ledger.reserve(spec(round_id)), b"noised %d" % round_id)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        pytest.param(
            "DELETE FROM entries WHERE number = 4", "entry 4: its index says 5", id="one deleted"
        ),
        pytest.param(
            "UPDATE entries SET line = replace(CAST(line AS TEXT), '2000.0', '9000.0') "
            "WHERE number = 2",
            "entry 2",
            id="one changed",
        ),
        pytest.param(
            "UPDATE entries SET entry_hash = 'x' WHERE number = 2",
            "entry 2: stored as another",
            id="a hash changed",
        ),
        pytest.param("DELETE FROM entries WHERE number < 2", "entry 0", id="the start deleted"),
        pytest.param("DELETE FROM entries", "all its entries are gone", id="all deleted"),
        pytest.param(
            "UPDATE meta SET value = replace(value, substr(value, 1, 1), 'x') "
            "WHERE name = 'ledger_id'",
            "ledger_id: expected 64",
            id="its id changed",
        ),
        pytest.param(
            "UPDATE meta SET value = substr(value, 2) || '0' WHERE name = 'ledger_id'",
            "entry 0: previous_hash",
            id="another ledger's id",
        ),
    ],
)
def test_a_file_that_was_edited_does_not_open(path: Path, statement: str, message: str) -> None:
    filled(path)
    change(path, statement)
    with pytest.raises(LedgerError, match=message):
        open_ledger(path)


def test_an_output_that_was_edited_or_lost_is_not_sent(path: Path) -> None:
    filled(path)
    change(path, "UPDATE outputs SET payload = CAST('raw data' AS BLOB)")
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="entry 3: the stored output is not the one"):
            ledger.stored_output(spec(0).key)
        with pytest.raises(LedgerError, match="it is not sent"):
            ledger.reserve(spec(0))
    for damage in ("salt = zeroblob(32)", "salt = zeroblob(31)", "salt = CAST('' AS BLOB)"):
        change(path, f"UPDATE outputs SET {damage}")  # noqa: S608 - constants of this test
        with (
            open_ledger(path) as ledger,
            pytest.raises(LedgerError, match="the stored output is not the one"),
        ):
            ledger.stored_output(spec(0).key)
    change(path, "DELETE FROM outputs")
    with (
        open_ledger(path) as ledger,
        pytest.raises(LedgerError, match="its stored output is missing"),
    ):
        ledger.stored_output(spec(1).key)


@pytest.mark.parametrize("table", ["entries", "outputs", "data_notes", "meta"])
def test_a_careless_edit_is_stopped_by_the_file_itself(path: Path, table: str) -> None:
    filled(path)
    with open_ledger(path) as ledger:
        ledger.note_data("study", "d" * 64)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this test
    connection.close()


def test_an_old_copy_put_back_under_an_open_ledger_is_noticed(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.reserve(spec())
        change(path, "DELETE FROM entries WHERE number = 2")
        with pytest.raises(LedgerError, match="entry 2 is gone or was replaced"):
            ledger.reserve(spec(1))


def test_a_clock_set_back_between_runs_is_refused(path: Path) -> None:
    filled(path)
    with open_ledger(path, clock=lambda: now() - timedelta(hours=1)) as ledger:
        before = ledger.entries()[-1]
        with pytest.raises(LedgerError, match=r"clock was set back by (3599|3600) s"):
            ledger.reserve(spec(7))
        assert ledger.entries()[-1] == before


def test_a_ledger_is_not_carried_over_a_fork(path: Path) -> None:
    ledger = open_ledger(path)
    child = os.fork()
    if child == 0:
        try:
            ledger.entries()
        except LocalProtocolError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ledger.close()


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="No such file or directory; check that its folder"):
        open_ledger(tmp_path / "missing" / "ledger.db")


def test_a_full_disk_is_a_clear_error_and_spends_nothing(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        paid = ledger.reserve(spec())
        before, spent = ledger.export_lines(), ledger.epsilon_spent(1e-6)
        # SQLite's own limit gives the same error as a full disk, at the same places.
        pragma(ledger, f"max_page_count = {pragma(ledger, 'page_count')}")
        reservations = []

        def reserve_on() -> None:
            for round_id in range(1, 50):
                reservations.append(ledger.reserve(spec(round_id)))

        with pytest.raises(TransportError, match=r"the disk is full.*\(SQLITE_FULL\)"):
            reserve_on()
        with pytest.raises(TransportError, match="the disk is full"):
            ledger.commit(paid, bytes(9999))
        entries = ledger.entries()
        assert len(entries) == 3 + len(reservations)
        assert ledger.export_lines().startswith(before)
        assert (ledger.epsilon_spent(1e-6) > spent) == bool(reservations)
        pragma(ledger, "max_page_count = 100000")
        ledger.reserve(spec(60))
        verify(ledger)
    with open_ledger(path) as ledger:
        assert len(ledger.entries()) == len(entries) + 1


def test_a_resume_on_a_full_disk_writes_nothing_and_loses_nothing(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        paid = ledger.reserve(spec())
        spent = ledger.epsilon_spent(1e-6)
        pragma(ledger, f"max_page_count = {pragma(ledger, 'page_count')}")
        resumed = 0

        def resume_on() -> None:
            nonlocal resumed
            for _ in range(50):
                assert ledger.reserve(spec()) == paid
                resumed += 1

        with pytest.raises(TransportError, match=r"the disk is full.*\(SQLITE_FULL\)"):
            resume_on()
        assert verify(ledger).resumes == resumed
        assert ledger.epsilon_spent(1e-6) == spent
        pragma(ledger, "max_page_count = 100000")
        assert ledger.reserve(spec()) == paid
        ledger.commit(paid, b"noised")
    with open_ledger(path) as ledger:
        assert (verify(ledger).reservations, verify(ledger).resumes) == (1, resumed + 1)
        assert ledger.epsilon_spent(1e-6) == spent


def message_as_nobody(path: Path) -> str:
    """The store's error in a process for which file modes count: root's pass everything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            open_ledger(path).reserve(spec())
        except TransportError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    os.waitpid(child, 0)
    return message


@pytest.mark.parametrize("mode", [0o444, 0o000], ids=["read-only", "unreadable"])
def test_a_ledger_that_cannot_be_opened_for_writing_is_a_clear_error(mode: int) -> None:
    # Not pytest's folder: another user may not even look into that one.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "ledger.db"
        filled(path)
        before = path.read_bytes()
        Path(folder).chmod(stat.S_IRWXU | stat.S_IXOTH)
        path.chmod(mode)
        message = message_as_nobody(path)
        assert message.startswith(f"ledger {path}: cannot be opened or created: Permission denied")
        assert path.read_bytes() == before


def test_a_disk_that_turns_read_only_is_a_clear_error_and_spends_nothing(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        before = ledger.export_lines()
        pragma(ledger, "query_only = ON")
        with pytest.raises(TransportError, match=r"cannot be written.*\(SQLITE_READONLY\)"):
            ledger.reserve(spec())
        ledger.close()
        assert ledger.export_lines() == before
        assert ledger.epsilon_spent(1e-6) == 0.0


def test_every_error_of_the_store_is_one_of_ours(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.close()
        path.unlink()
        for extra in path.parent.glob("ledger.db-*"):
            extra.unlink()
        path.write_bytes(b"garbage" * 1000)
        with pytest.raises(LadaError):
            ledger.reserve(spec())


def test_the_plan_hash_of_the_entries_is_the_approved_one(path: Path) -> None:
    filled(path)
    with open_ledger(path) as ledger:
        about = [entry for entry in ledger.entries() if isinstance(entry, StudyEntry)]
        assert {entry.plan_hash for entry in about} == {PLAN}
