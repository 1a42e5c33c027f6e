"""The SQLite file of a ledger: its tables, how it is opened, and what its errors mean.

Writers take one `BEGIN IMMEDIATE` transaction: read what others have added, decide, add. Two
processes therefore never decide on the same balance. Readers take a plain `BEGIN`, which in WAL
mode sees one consistent state and neither waits for a writer nor keeps one waiting. Writers set
`synchronous=FULL`, so a committed reservation survives a power cut.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    QueuePool,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from lada_secure.errors import (
    LadaError,
    LedgerError,
    LocalProtocolError,
    ParameterError,
    TransportError,
)
from lada_secure.privacy.ledger.entries import LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger.lines import parse_entry
from lada_secure.privacy.ledger.replay import LedgerReplay

SCHEMA_VERSION = 3
# "LDlg", what `PRAGMA application_id` shows.
APPLICATION_ID = 0x4C446C67
BUSY_TIMEOUT_S = 60.0

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

_EXPLANATIONS = {
    "SQLITE_FULL": "the disk is full; free some space and try again",
    "SQLITE_READONLY": "the file or its folder cannot be written; check its owner and mode",
    "SQLITE_CANTOPEN": "the file cannot be opened or created; check the folder and its mode",
    "SQLITE_PERM": "the file cannot be opened; check its owner and mode",
    "SQLITE_BUSY": "another process has held the ledger for a minute; see what it is doing",
    "SQLITE_LOCKED": "another connection has locked the ledger; see what it is doing",
    "SQLITE_IOERR": "the disk failed or is full; check the disk",
}


def _explain(error: sqlite3.Error, path: Path) -> LadaError:
    name = str(getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return LedgerError(
            f"ledger {path}: it is damaged or not a ledger at all ({name}); restore it from a "
            "backup that is not older than the auditor's copy"
        )
    for prefix, meaning in _EXPLANATIONS.items():
        if name.startswith(prefix):
            return TransportError(f"ledger {path}: {meaning} ({name}). This step wrote nothing")
    return TransportError(f"ledger {path}: the database refused ({name}: {error})")


@contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Turns the errors of SQLite and SQLAlchemy into ours."""
    try:
        yield
    except sqlite3.Error as error:
        # While a connection is prepared, SQLAlchemy passes the driver's errors on as they are.
        raise _explain(error, path) from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise _explain(error.orig, path) from error
        raise TransportError(f"ledger {path}: {error}") from error


def stored_bytes(value: object, where: str) -> bytes:
    """A blob column's content. Raises: LedgerError: SQLite keeps whatever type was put there."""
    if not isinstance(value, bytes):
        raise LedgerError(f"{where}: expected stored bytes, got {type(value).__name__}")
    return value


def stored_entry(value: object, where: str) -> LedgerEntry:
    """An entry's line, parsed. Raises: LedgerError: names the entry."""
    return parse_entry(stored_bytes(value, where), where=where)


def create_private(path: Path) -> None:
    """Make the file for its owner only, if it is not there yet.

    Raises: TransportError: cannot be opened for writing.
    """
    # SQLite would create it readable for the group; a ledger tells who works with whom.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise TransportError(
            f"ledger {path}: cannot be opened or created: {error.strerror}; check that its folder "
            "exists and can be written. Nothing was written, nothing was spent"
        ) from error


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Readers do not block writers in WAL mode; the file remembers it once it is set."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # SQLite's own waiting does not cover this switch while others open the new file.
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    # The driver must not begin transactions by itself: it would choose deferred ones.
    statement = connection.get_execution_options().get("begin", "BEGIN IMMEDIATE")
    connection.exec_driver_sql(str(statement))


def writing_engine(path: Path) -> Engine:
    """One connection that may write, in WAL mode."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        pool_size=1,
        max_overflow=0,
    )

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        try:
            _switch_to_wal(cursor)
            cursor.execute("PRAGMA synchronous=FULL")
        finally:
            cursor.close()

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def reading_engine(path: Path) -> Iterator[Engine]:
    """One connection that cannot write; works on a read-only file, folder and disk.

    SQLite reads a file in WAL mode through an index beside it. Where that cannot be made, the
    file is read as it is if no entries wait in its log, and else from a private copy.

    Raises: TransportError: it is missing or cannot be read.
    """
    log = path.with_name(f"{path.name}-wal")
    with ExitStack() as stack:
        with own_errors(path):
            try:
                _probe(path, "mode=ro")
                source, mode = path, "mode=ro"
            except sqlite3.OperationalError as error:
                name = getattr(error, "sqlite_errorname", "")
                if not path.exists() or not name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                    raise
                source, mode = path, "mode=ro&immutable=1"
                if log.exists() and log.stat().st_size:
                    source, mode = _private_copy(path, log, stack), "mode=ro"
        engine = create_engine(
            "sqlite://",
            creator=lambda: _connect(source, mode),
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
        )
        event.listen(engine, "begin", _begin)
        stack.callback(engine.dispose)
        yield engine


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _probe(path: Path, mode: str) -> None:
    connection = _connect(path, mode)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        connection.close()


def _private_copy(path: Path, log: Path, stack: ExitStack) -> Path:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="lada-ledger-")))
    try:
        shutil.copyfile(log, folder / log.name)
        shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise TransportError(f"ledger {path}: cannot be read: {error.strerror}") from error
    return folder / path.name


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
    rows = {"schema_version": str(SCHEMA_VERSION), **_names(identity)}
    connection.execute(
        insert(_META), [{"name": name, "value": value} for name, value in rows.items()]
    )


def _names(identity: LedgerIdentity) -> dict[str, str]:
    return {
        "site": identity.site,
        "population": identity.population,
        "ledger_id": identity.ledger_id,
    }


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


@contextmanager
def connected(engine: Engine, path: Path, begin: str) -> Iterator[Connection]:
    """One database transaction, begun with this statement; foreign errors become ours."""
    with own_errors(path), engine.execution_options(begin=begin).begin() as connection:
        yield connection


class LedgerFile:
    """An open file and what is known of its entries; used by one store or reader.

    Not for use across a fork: open it again in the child.
    """

    def __init__(self, path: Path, engine: Engine, identity: LedgerIdentity) -> None:
        self.path = path
        self.engine = engine
        self._identity = identity
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._replay: LedgerReplay | None = None

    @contextmanager
    def connected(self, begin: str) -> Iterator[Connection]:
        """One database transaction, begun with this statement; foreign errors become ours."""
        if os.getpid() != self._pid:
            raise LocalProtocolError(
                f"ledger {self.path}: it was opened before a fork; open it in this process"
            )
        with connected(self.engine, self.path, begin) as connection:
            yield connection

    @contextmanager
    def synchronised(self, begin: str) -> Iterator[tuple[Connection, LedgerReplay]]:
        """One transaction with the state after every entry that it sees."""
        with self._lock:
            before: int | None = None
            try:
                with self.connected(begin) as connection:
                    replay = self._caught_up(connection)
                    before = replay.length
                    yield connection, replay
            except BaseException:
                # What was appended here is not on disk. Whether it counts is read again.
                if before is None or (self._replay and self._replay.length != before):
                    self._replay = None
                raise

    def _caught_up(self, connection: Connection) -> LedgerReplay:
        """The replay of exactly what is stored, continuing from what is known."""
        replay = self._replay
        if replay is None:
            replay = LedgerReplay(self._identity)
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
            entry = stored_entry(row.line, f"ledger {self.path}: entry {row.number}")
            replay.append(entry)
            if (row.number, row.entry_hash) != (entry.index, replay.head().entry_hash):
                raise LedgerError(f"ledger {self.path}: entry {row.number}: stored as another one")
        if not replay.length:
            raise LedgerError(f"ledger {self.path}: all its entries are gone; restore a backup")
        self._replay = replay
        return replay
