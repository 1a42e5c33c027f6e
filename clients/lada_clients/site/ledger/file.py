"""The tables of a ledger's file, and the transactions of whoever has it open."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from lada_clients.site.ledger.database import Connect, own_errors
from lada_secure.errors import LedgerError, LocalProtocolError, ParameterError
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, LedgerIdentity, parse_entry
from lada_secure.privacy.ledger.promises import BudgetPromise, parse_promise
from lada_secure.privacy.ledger.reader import KeptOutput
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.times import parse_time

SCHEMA_VERSION = 3
# "LDlg", what `PRAGMA application_id` shows.
APPLICATION_ID = 0x4C446C67
_LAST_WRITE = "last_write"
# Notes and data notes are the site's own; nothing of them stands in an entry or an export.
_TABLES = {
    "meta": "name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "entries": "number INTEGER PRIMARY KEY, entry_hash TEXT NOT NULL UNIQUE, line BLOB NOT NULL",
    "outputs": "reserve_hash TEXT NOT NULL PRIMARY KEY, salt BLOB NOT NULL, payload BLOB NOT NULL",
    "notes": "name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "data_notes": "number INTEGER PRIMARY KEY, study_id TEXT NOT NULL UNIQUE, "
    "fingerprint TEXT NOT NULL",
}


# The chain would show a change anyway; this stops a careless one before it happens.
def _append_only(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} of a ledger are append-only'); END"
    )


# Made by whoever first promises a study its budget; a file without it is whole. It is no part of
# the schema version: whoever does not know it reads and writes the same ledger.
_PROMISES = "promises"
_PROMISE_COLUMNS = "plan_hash TEXT NOT NULL PRIMARY KEY, line BLOB NOT NULL"
_APPEND_ONLY = tuple(
    _append_only(table, verb)
    for table in ("entries", "outputs", "data_notes", "meta")
    for verb in ("UPDATE", "DELETE")
)


def _stored_bytes(value: object, where: str) -> bytes:
    """A blob column's content. Raises: LedgerError: SQLite keeps whatever type was put there."""
    if not isinstance(value, bytes):
        raise LedgerError(f"{where}: expected stored bytes, got {type(value).__name__}")
    return value


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the file has been set up."""
    return "meta" in _table_names(connection)


def _table_names(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in rows]


def create_tables(connection: sqlite3.Connection, identity: LedgerIdentity, path: Path) -> None:
    """Set up an empty file for one ledger.

    Raises: LedgerError: the file is not empty; it is somebody else's.
    """
    if tables := _table_names(connection):
        raise LedgerError(
            f"ledger {path}: it is not a ledger: it holds the tables {', '.join(tables[:5])}. "
            "Nothing was written; open the right file"
        )
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    for name, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    for statement in _APPEND_ONLY:
        connection.execute(statement)
    rows = {"schema_version": str(SCHEMA_VERSION), **asdict(identity)}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())


def stored_identity(connection: sqlite3.Connection, path: Path) -> LedgerIdentity:
    """Whose ledger the file says it is; its entries are checked against that.

    Raises: LedgerError: not a ledger, another schema version, or names of the wrong form.
    """
    if not has_tables(connection):
        raise LedgerError(f"ledger {path}: it is empty or not a ledger at all")
    stored = dict(connection.execute("SELECT name, value FROM meta"))
    version = stored.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise LedgerError(
            f"ledger {path}: it has schema version {version}, this software reads version "
            f"{SCHEMA_VERSION} only; use the version of lada that wrote it. Nothing was changed"
        )
    try:
        return LedgerIdentity(
            site=stored.get("site", ""),
            population=stored.get("population", ""),
            ledger_id=stored.get("ledger_id", ""),
        )
    except ParameterError as error:
        raise LedgerError(f"ledger {path}: {error}") from error


class DataNote(NamedTuple):
    """The fingerprint of the data set (`units.population_fingerprint`) that a study began with."""

    study_id: str
    fingerprint: str


class SqliteTransaction:
    """One database transaction, as a `LedgerTransaction`."""

    def __init__(self, connection: sqlite3.Connection, replay: LedgerReplay) -> None:
        self._connection = connection
        self._execute = connection.execute
        self.replay = replay

    def output(self, reserve_hash: str) -> KeptOutput | None:
        query = "SELECT payload, salt FROM outputs WHERE reserve_hash = ?"
        row = self._execute(query, (reserve_hash,)).fetchone()
        if row is None:
            return None
        payload, salt = (_stored_bytes(kept, f"output of {reserve_hash[:12]}...") for kept in row)
        return KeptOutput(payload=payload, salt=salt)

    def append(self, entry: LedgerEntry, output: KeptOutput | None, *, written: str) -> None:
        self.replay.append(entry)
        row = (entry.index, entry.entry_hash, entry.line())
        self._execute("INSERT INTO entries VALUES (?, ?, ?)", row)
        if isinstance(entry, CommitEntry) and output is not None:
            kept = (entry.reserve_hash, output.salt, output.payload)
            self._execute("INSERT INTO outputs VALUES (?, ?, ?)", kept)
        self._execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (_LAST_WRITE, written))

    @property
    def last_write(self) -> str | None:
        row = self._execute("SELECT value FROM notes WHERE name = ?", (_LAST_WRITE,)).fetchone()
        if row is None:
            return None
        text = str(row[0])
        try:
            parse_time(text)
        except ParameterError as error:
            raise LedgerError(f"{_LAST_WRITE}: {error}; it was changed on disk") from error
        return text

    def promises(self) -> tuple[BudgetPromise, ...]:
        if _PROMISES not in _table_names(self._connection):
            return ()
        rows = self._execute("SELECT line FROM promises ORDER BY plan_hash")
        return tuple(parse_promise(_stored_bytes(line, "a promise")) for (line,) in rows)

    def put_promise(self, promise: BudgetPromise) -> None:
        self._execute(f"CREATE TABLE IF NOT EXISTS {_PROMISES} ({_PROMISE_COLUMNS})")
        row = (promise.plan_hash, promise.line())
        self._execute("INSERT OR REPLACE INTO promises VALUES (?, ?)", row)

    def end_promise(self, plan_hash: str) -> None:
        if _PROMISES in _table_names(self._connection):
            self._execute("DELETE FROM promises WHERE plan_hash = ?", (plan_hash,))

    def note_data(self, note: DataNote) -> DataNote | None:
        """Keep a study's first note; the newest note that was made before it, if there is one."""
        self._execute(
            "INSERT OR IGNORE INTO data_notes (study_id, fingerprint) VALUES (?, ?)", note
        )
        row = self._execute(
            "SELECT study_id, fingerprint FROM data_notes WHERE number < "
            "(SELECT number FROM data_notes WHERE study_id = ?) ORDER BY number DESC LIMIT 1",
            (note.study_id,),
        ).fetchone()
        return DataNote(*row) if row else None


class LedgerFile:
    """An open file and what is known of its entries; used by one store or reader.

    Not for use across a fork: open it again in the child.
    """

    def __init__(self, path: Path, connect: Connect) -> None:
        self.path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._replay: LedgerReplay | None = None

    def close(self) -> None:
        """Close the connection. Every completed transaction is on disk already."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """One database transaction, begun with this statement; foreign errors become ours."""
        if os.getpid() != self._pid:
            raise LocalProtocolError(
                f"ledger {self.path}: it was opened before a fork; open it in this process"
            )
        with self._lock, own_errors(self.path):
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def opened(self, begin: str, identity: LedgerIdentity) -> Iterator[SqliteTransaction]:
        """The same with the state after every entry that it sees."""
        with self._lock:
            before: int | None = None
            try:
                with self.transaction(begin) as connection:
                    replay = self._caught_up(connection, identity)
                    before = replay.length
                    yield SqliteTransaction(connection, replay)
            except BaseException:
                # What was appended here is not on disk. Whether it counts is read again.
                if before is None or (self._replay and self._replay.length != before):
                    self._replay = None
                raise

    def _caught_up(self, connection: sqlite3.Connection, identity: LedgerIdentity) -> LedgerReplay:
        """The replay of exactly what is stored, continuing from what is known."""
        replay = self._replay
        if replay is None:
            replay = LedgerReplay(identity)
        else:
            newest = replay.length - 1
            query = "SELECT entry_hash FROM entries WHERE number = ?"
            if connection.execute(query, (newest,)).fetchone() != (replay.head_hash,):
                raise LedgerError(
                    f"ledger {self.path}: entry {newest} is gone or was replaced since it "
                    "was last read; was an old copy put back? Nothing was written"
                )
        self._replay = None
        query = "SELECT number, entry_hash, line FROM entries WHERE number >= ? ORDER BY number"
        for number, entry_hash, line in connection.execute(query, (replay.length,)):
            where = f"ledger {self.path}: entry {number}"
            entry = parse_entry(_stored_bytes(line, where), where=where)
            replay.append(entry)
            if (number, entry_hash) != (entry.index, replay.head_hash):
                raise LedgerError(f"{where}: stored as another one")
        if not replay.length:
            raise LedgerError(f"ledger {self.path}: all its entries are gone; restore a backup")
        self._replay = replay
        return replay
