"""The tables of a ledger's file, and the transactions of whoever has it open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects.sqlite import insert as upsert

from lada_clients.site.ledger.database import connected
from lada_secure.errors import LedgerError, LocalProtocolError, ParameterError
from lada_secure.privacy.ledger.book import DataNote, KeptOutput
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger.lines import parse_entry
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.times import parse_time

SCHEMA_VERSION = 3
# "LDlg", what `PRAGMA application_id` shows.
APPLICATION_ID = 0x4C446C67
_LAST_WRITE = "last_write"

_METADATA = MetaData()
_META = Table(
    "meta",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
ENTRIES = Table(
    "entries",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("entry_hash", Text, nullable=False, unique=True),
    Column("line", LargeBinary, nullable=False),
)
OUTPUTS = Table(
    "outputs",
    _METADATA,
    Column("reserve_hash", Text, primary_key=True),
    Column("salt", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
# The site's own notes; nothing of them stands in an entry or an export.
NOTES = Table(
    "notes",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
DATA_NOTES = Table(
    "data_notes",
    _METADATA,
    Column("number", Integer, primary_key=True),
    Column("study_id", Text, nullable=False, unique=True),
    Column("fingerprint", Text, nullable=False),
)


# The chain would show a change anyway; this stops a careless one before it happens.
def _append_only(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} of a ledger are append-only'); END"
    )


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


def _stored_entry(value: object, where: str) -> LedgerEntry:
    return parse_entry(_stored_bytes(value, where), where=where)


def has_tables(connection: Connection) -> bool:
    """Whether the file has been set up."""
    return inspect(connection).has_table(_META.name)


def create_tables(connection: Connection, identity: LedgerIdentity, path: Path) -> None:
    """Set up an empty file for one ledger.

    Raises: LedgerError: the file is not empty; it is somebody else's.
    """
    tables = inspect(connection).get_table_names()
    if tables:
        raise LedgerError(
            f"ledger {path}: it is not a ledger: it holds the tables {', '.join(tables[:5])}. "
            "Nothing was written; open the right file"
        )
    connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
    _METADATA.create_all(connection, checkfirst=False)
    for statement in _APPEND_ONLY:
        connection.exec_driver_sql(statement)
    rows = {"schema_version": str(SCHEMA_VERSION), **asdict(identity)}
    connection.execute(
        insert(_META), [{"name": name, "value": value} for name, value in rows.items()]
    )


def stored_identity(connection: Connection, path: Path) -> LedgerIdentity:
    """Whose ledger the file says it is; its entries are checked against that.

    Raises: LedgerError: not a ledger, another schema version, or names of the wrong form.
    """
    if not has_tables(connection):
        raise LedgerError(f"ledger {path}: it is empty or not a ledger at all")
    stored = {row.name: row.value for row in connection.execute(select(_META))}
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


class SqliteTransaction:
    """One database transaction, as a `LedgerTransaction`."""

    def __init__(self, connection: Connection, replay: LedgerReplay) -> None:
        self._connection = connection
        self.replay = replay

    def output(self, reserve_hash: str) -> KeptOutput | None:
        row = self._connection.execute(
            select(OUTPUTS.c.payload, OUTPUTS.c.salt).where(OUTPUTS.c.reserve_hash == reserve_hash)
        ).first()
        if row is None:
            return None
        where = f"output of {reserve_hash[:12]}..."
        return KeptOutput(
            payload=_stored_bytes(row.payload, where), salt=_stored_bytes(row.salt, where)
        )

    def entries(self) -> tuple[LedgerEntry, ...]:
        rows = self._connection.execute(
            select(ENTRIES.c.number, ENTRIES.c.line).order_by(ENTRIES.c.number)
        )
        return tuple(_stored_entry(row.line, f"entry {row.number}") for row in rows)

    def append(self, entry: LedgerEntry, output: KeptOutput | None, *, written: str) -> None:
        self.replay.append(entry)
        self._connection.execute(
            insert(ENTRIES).values(
                number=entry.index, entry_hash=entry.entry_hash, line=entry.line()
            )
        )
        if isinstance(entry, CommitEntry) and output is not None:
            self._connection.execute(
                insert(OUTPUTS).values(
                    reserve_hash=entry.reserve_hash, payload=output.payload, salt=output.salt
                )
            )
        note = upsert(NOTES).values(name=_LAST_WRITE, value=written)
        self._connection.execute(
            note.on_conflict_do_update(index_elements=["name"], set_={"value": written})
        )

    @property
    def last_write(self) -> str | None:
        text = self._connection.scalar(select(NOTES.c.value).where(NOTES.c.name == _LAST_WRITE))
        if text is None:
            return None
        try:
            parse_time(str(text))
        except ParameterError as error:
            raise LedgerError(f"{_LAST_WRITE}: {error}; it was changed on disk") from error
        return str(text)

    @property
    def data_notes(self) -> tuple[DataNote, ...]:
        rows = self._connection.execute(
            select(DATA_NOTES.c.study_id, DATA_NOTES.c.fingerprint).order_by(DATA_NOTES.c.number)
        )
        return tuple(DataNote(study_id=row.study_id, fingerprint=row.fingerprint) for row in rows)

    def add_data_note(self, note: DataNote) -> None:
        self._connection.execute(insert(DATA_NOTES).values(asdict(note)))


class LedgerFile:
    """An open file and what is known of its entries; used by one store or reader.

    Not for use across a fork: open it again in the child.
    """

    def __init__(self, path: Path, engine: Engine, identity: LedgerIdentity) -> None:
        self.path = path
        self.engine = engine
        self.identity = identity
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._replay: LedgerReplay | None = None

    @contextmanager
    def opened(self, begin: str) -> Iterator[SqliteTransaction]:
        """One transaction, begun with this statement; foreign errors become ours."""
        if os.getpid() != self._pid:
            raise LocalProtocolError(
                f"ledger {self.path}: it was opened before a fork; open it in this process"
            )
        with self._lock:
            before: int | None = None
            try:
                with connected(self.engine, self.path, begin) as connection:
                    replay = self._caught_up(connection)
                    before = replay.length
                    yield SqliteTransaction(connection, replay)
            except BaseException:
                # What was appended here is not on disk. Whether it counts is read again.
                if before is None or (self._replay and self._replay.length != before):
                    self._replay = None
                raise

    def _caught_up(self, connection: Connection) -> LedgerReplay:
        """The replay of exactly what is stored, continuing from what is known."""
        replay = self._replay
        if replay is None:
            replay = LedgerReplay(self.identity)
        else:
            known = replay.head()
            stored = connection.scalar(
                select(ENTRIES.c.entry_hash).where(ENTRIES.c.number == known.index)
            )
            if stored != known.entry_hash:
                raise LedgerError(
                    f"ledger {self.path}: entry {known.index} is gone or was replaced since it "
                    "was last read; was an old copy put back? Nothing was written"
                )
        self._replay = None
        rows = connection.execute(
            select(ENTRIES.c.number, ENTRIES.c.entry_hash, ENTRIES.c.line)
            .where(ENTRIES.c.number >= replay.length)
            .order_by(ENTRIES.c.number)
        )
        for row in rows:
            entry = _stored_entry(row.line, f"ledger {self.path}: entry {row.number}")
            replay.append(entry)
            if (row.number, row.entry_hash) != (entry.index, replay.head().entry_hash):
                raise LedgerError(f"ledger {self.path}: entry {row.number}: stored as another one")
        if not replay.length:
            raise LedgerError(f"ledger {self.path}: all its entries are gone; restore a backup")
        self._replay = replay
        return replay
