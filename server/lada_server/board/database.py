"""The board's database, SQLite or PostgreSQL: reads from any thread, one write at a time.

One process at a time may hold it for writing. The lock dies with the process: for a file it is a
lock on a file beside it, for PostgreSQL an advisory lock of the very session that writes, so
that a write can never follow the loss of the lock.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from lada_secure.errors import ParameterError
from lada_server.board.storage_errors import StorageUnavailable, database_errors, disk_errors

T = TypeVar("T")

BUSY_TIMEOUT_MS: Final = 15_000
# A transaction to be repeated, a connection that was cut: the second try mostly succeeds.
RETRY_PAUSES_S: Final = (0.05, 0.2, 0.5)
# The server notices within milliseconds that a killed coordinator's connection is gone.
LOCK_WAIT_S: Final = 5.0
# First half of the advisory lock's key ("LADA"); the second is the schema's name.
LOCK_CLASS: Final = 0x4C414441
# Seconds and milliseconds; a server that vanished from the network is noticed within a minute.
_POSTGRESQL_OPTIONS: Final = {
    "application_name": "lada-coordinator",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The server's own look at whether we are still there.
_SESSION: Final = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
)


class _LockTaken(Exception):
    """Another session holds the advisory lock."""


class Database:
    """Connections to one database. Thread-safe.

    Args: url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
    Attributes: file: of SQLite, None with PostgreSQL.
    Raises: ParameterError: the URL cannot be used, or the driver is missing.
    """

    def __init__(self, url: str) -> None:
        checked = _checked(url)
        self._write_lock = threading.Lock()
        self.file = None if checked.drivername.startswith("postgresql") else checked.database
        # What holds the lock: an open file, or the driver's connection to PostgreSQL.
        self._lock_file: BinaryIO | None = None
        self._holder: object = None
        try:
            self.reader = _engine(checked, "BEGIN")
            # One connection: on PostgreSQL it is the one that holds the lock.
            self.writer = _engine(checked, "BEGIN IMMEDIATE", pool_size=1, max_overflow=0)
        except ImportError as error:
            raise ParameterError(
                f"database: the driver of PostgreSQL is not installed ({error}); run "
                "pip install 'lada-secure[postgres]'"
            ) from error

    def hold(self) -> None:
        """Become the one process that may write, until `close` or the end of the process.

        Raises: ParameterError: another process has it. TransportError: it cannot be reached.
        """
        if self.file is not None:
            self._lock_file = _locked(Path(f"{self.file}.lock"))
            return
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                with database_errors("open the board"), self._writing():
                    return
            except _LockTaken:
                if time.monotonic() > deadline:
                    raise ParameterError(
                        "the board's database is in use by another coordinator process; stop it "
                        "first, or give this one a database of its own"
                    ) from None
                time.sleep(0.1)

    def read(self, what: str, query: Callable[[Connection], T]) -> T:
        """Run a query that may be run again; `what` says in messages what it is for.

        Raises: StorageUnavailable, TransportError: see `database_errors`.
        """
        return self._retried(what, self.reader.begin, query)

    def write(self, what: str, change: Callable[[Connection], T]) -> T:
        """Run a change in one transaction, on disk when this returns.

        After a lost connection nobody knows whether the change was committed, and it is run
        again: it must look first whether it is there already.

        Raises: StorageUnavailable, TransportError: see `database_errors`.
        """
        with self._write_lock:
            return self._retried(what, self._writing, change)

    def close(self) -> None:
        """Close all connections and let another process have it."""
        self.reader.dispose()
        self.writer.dispose()
        if self._lock_file is not None:
            self._lock_file.close()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction; on PostgreSQL of a session that has the lock, for without it none writes.

        Raises: _LockTaken: another session has it. ParameterError: there is no such schema.
        """
        with self.writer.connect() as connection:
            session = connection.connection.dbapi_connection
            if self.file is None and session is not self._holder:
                _take_lock(connection)
                self._holder = session
            with connection.begin():
                yield connection

    def _retried(
        self,
        what: str,
        begin: Callable[[], AbstractContextManager[Connection]],
        work: Callable[[Connection], T],
    ) -> T:
        pauses_s = iter(RETRY_PAUSES_S)
        while True:
            try:
                with database_errors(what), begin() as connection:
                    return work(connection)
            except _LockTaken as error:
                raise StorageUnavailable(
                    f"cannot {what}: another session holds the board's database; a second "
                    "coordinator runs, or the server has not noticed yet that our last connection "
                    "broke"
                ) from error
            except StorageUnavailable as error:
                pause_s = next(pauses_s, None)
                if pause_s is None or not error.brief:
                    raise
                time.sleep(pause_s)


def _checked(url: str) -> URL:
    """A URL that names a SQLite file or a PostgreSQL database, with our driver."""
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        # The URL may hold a password, so it is not quoted.
        raise ParameterError(
            "database: expected an SQLAlchemy URL such as sqlite:////var/lib/lada/board.sqlite "
            "or postgresql://lada@db.example/lada"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ParameterError("database: a board in memory would not survive; name a file")
        return parsed
    if backend != "postgresql":
        raise ParameterError(f"database: expected sqlite or postgresql, got {backend!r}")
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ParameterError(
            f"database: expected a URL that begins with postgresql://, got {parsed.drivername}://"
        )
    return parsed.set(drivername="postgresql+psycopg")


def _engine(url: URL, begin: str, **pool: int) -> Engine:
    """Args: begin: how a transaction of SQLite starts."""
    if url.get_backend_name() == "postgresql":
        options = {key: value for key, value in _POSTGRESQL_OPTIONS.items() if key not in url.query}
        # pre_ping: a database that was restarted between two calls is reconnected, not reported.
        return sa.create_engine(url, pool_pre_ping=True, connect_args=options, **pool)
    # Transactions begin where we say, not where the driver thinks.
    engine = sa.create_engine(url, connect_args={"isolation_level": None}, **pool)
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    """WAL lets readers go on while one writes; FULL makes a receipt survive a power cut."""
    connection.executescript(
        f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}; PRAGMA journal_mode=WAL; "
        "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
    )


def _take_lock(connection: Connection) -> None:
    """Set up a session of PostgreSQL that is to write, and take the lock for it."""
    connection.exec_driver_sql(_SESSION)
    # A receipt means "on disk".
    if connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "off":
        connection.exec_driver_sql("SET synchronous_commit = on")
    schema = sa.func.current_schema()
    lock = sa.func.pg_try_advisory_lock(LOCK_CLASS, sa.func.hashtext(schema))
    name, held = connection.execute(sa.select(schema, lock)).one()
    connection.commit()
    if name is None:
        raise ParameterError(
            "database: the schema that the URL's search_path names does not exist; make it "
            "with CREATE SCHEMA, or leave the option out"
        )
    if not held:
        raise _LockTaken


def _locked(path: Path) -> BinaryIO:
    with disk_errors(f"{path}: cannot be used"):
        file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ParameterError(
            f"{path} says that the database is in use by another coordinator process; stop it "
            "first, or give this one a database of its own"
        ) from error
    return file
