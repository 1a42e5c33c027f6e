"""Ledger files of an older version are migrated without a change to what they say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ledger_store_world import open_ledger, spec
from sqlalchemy import event as sqlalchemy_event

from lada_clients.site import ledger_store
from lada_clients.site.ledger_file import APPLICATION_ID, SCHEMA_VERSION
from lada_clients.site.ledger_store import open_ledger_reader
from lada_secure.errors import LedgerError

# A ledger as version 1 wrote it: an approval, a release that was committed, and a reservation.
VERSION_1 = Path(__file__).with_name("ledger-schema-1.sql")
AT_THAT_TIME = datetime(2026, 11, 1, 13, tzinfo=UTC)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.read_text())
        connection.execute("PRAGMA journal_mode=WAL")
    return path


def ask(path: Path, question: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchone()[0]


def version_of(path: Path) -> object:
    return ask(path, "SELECT value FROM meta WHERE name = 'schema_version'")


def test_an_older_ledger_is_migrated_and_says_what_it_said(old: Path) -> None:
    with open_ledger_reader(old) as reader:
        before = reader.export_lines()
    assert version_of(old) == "1"
    with open_ledger(old, clock=lambda: AT_THAT_TIME) as ledger:
        assert ledger.export_lines() == before
        again = ledger.release(
            spec(), compute=lambda _paid: b"", encode=lambda one: one, decode=lambda one: one
        )
        assert again.value == b"released once"
    assert version_of(old) == str(SCHEMA_VERSION)
    assert ask(old, "PRAGMA application_id") == APPLICATION_ID


def test_a_reader_leaves_an_older_ledger_as_it_is(old: Path) -> None:
    with open_ledger_reader(old) as reader:
        assert len(reader.entries()) == 4
    assert version_of(old) == "1"


def test_a_migrated_ledger_still_refuses_changes(old: Path) -> None:
    open_ledger(old).close()
    for change in ("UPDATE meta SET value = '1'", "DELETE FROM meta", "DELETE FROM entries"):
        with closing(sqlite3.connect(old)) as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute(change)


def test_a_ledger_of_somebody_else_is_not_migrated(old: Path) -> None:
    with pytest.raises(LedgerError, match="another site"):
        open_ledger(old, site="hospital-b")
    assert version_of(old) == "1"


def test_a_migration_that_breaks_off_leaves_the_old_version(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    plain: Callable[..., object] = ledger_store.writing_engine

    def breaking(path: Path) -> object:
        engine = plain(path)
        made.append(engine)

        def fail(*told: object) -> None:
            if "UPDATE" in str(told[2]):
                raise KeyboardInterrupt

        sqlalchemy_event.listen(engine, "after_cursor_execute", fail)
        return engine

    monkeypatch.setattr(ledger_store, "writing_engine", breaking)
    with pytest.raises(KeyboardInterrupt):
        open_ledger(old)
    monkeypatch.undo()
    assert made
    assert version_of(old) == "1"
    assert ask(old, "PRAGMA application_id") == 0
    with open_ledger(old) as ledger:
        assert len(ledger.entries()) == 4


@pytest.mark.parametrize("said", ["0", "-1", "", "2.0", "two"])
def test_a_version_that_is_none_is_refused(old: Path, said: str) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("DROP TRIGGER meta_no_update")
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (said,))
    with pytest.raises(LedgerError, match="expected a schema version"):
        open_ledger(old)


def test_a_database_of_something_else_is_not_made_into_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "board.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE board_messages (sequence INTEGER)")
    with pytest.raises(LedgerError, match="it holds the tables board_messages"):
        open_ledger(path)
    assert ask(path, "SELECT count(*) FROM sqlite_master WHERE type = 'table'") == 1
