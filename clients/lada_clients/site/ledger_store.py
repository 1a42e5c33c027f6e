"""A site's ledger in one SQLite file, shared by all its processes and surviving all of them.

Every write is one `BEGIN IMMEDIATE` transaction: read what others have added, decide, add. Two
processes therefore never decide on the same balance. The file is in WAL mode with
`synchronous=FULL`, so a committed reservation survives a power cut.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
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

from lada_secure.errors import LadaError, LedgerError, LocalProtocolError, TransportError
from lada_secure.privacy.countersignature import (
    Countersignature,
    check_against_ledger,
    check_countersignature,
    parse_countersignature,
)
from lada_secure.privacy.entries import CommitEntry, LedgerEntry, LedgerIdentity, parse_entry
from lada_secure.privacy.ledger import BudgetCaps
from lada_secure.privacy.ledger_keeper import KeptLedger, LedgerTransaction
from lada_secure.privacy.replay import LedgerReplay

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0

_METADATA = MetaData()
_META = Table(
    "meta",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
_ENTRIES = Table(
    "entries",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("entry_hash", Text, nullable=False, unique=True),
    Column("line", LargeBinary, nullable=False),
)
_OUTPUTS = Table(
    "outputs",
    _METADATA,
    Column("reserve_hash", Text, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)
_COUNTERSIGNATURES = Table(
    "countersignatures",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("raw", LargeBinary, nullable=False, unique=True),
)
# The chain would show a change anyway; this stops a careless one before it happens.
_APPEND_ONLY = tuple(
    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} of a ledger are append-only'); END"
    for table in ("entries", "outputs", "countersignatures", "meta")
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
            "backup that is not older than the auditor's last countersignature"
        )
    for prefix, meaning in _EXPLANATIONS.items():
        if name.startswith(prefix):
            return TransportError(f"ledger {path}: {meaning} ({name}). This step wrote nothing")
    return TransportError(f"ledger {path}: the database refused ({name}: {error})")


def _blob(value: object, where: str) -> bytes:
    # SQLite keeps whatever type somebody put into a column.
    if not isinstance(value, bytes):
        raise LedgerError(f"{where}: expected stored bytes, got {type(value).__name__}")
    return value


def _entry(value: object, where: str) -> LedgerEntry:
    return parse_entry(_blob(value, where), where=where)


class _SqliteTransaction(LedgerTransaction):
    def __init__(self, connection: Connection, replay: LedgerReplay) -> None:
        self._connection = connection
        self._replay = replay

    @property
    def replay(self) -> LedgerReplay:
        return self._replay

    def append(self, entry: LedgerEntry, output: bytes | None) -> None:
        self._replay.append(entry)
        self._connection.execute(
            insert(_ENTRIES).values(
                number=entry.index, entry_hash=entry.entry_hash, line=entry.line()
            )
        )
        if isinstance(entry, CommitEntry) and output is not None:
            self._connection.execute(
                insert(_OUTPUTS).values(reserve_hash=entry.reserve_hash, payload=output)
            )

    def output(self, reserve_hash: str) -> bytes | None:
        payload = self._connection.scalar(
            select(_OUTPUTS.c.payload).where(_OUTPUTS.c.reserve_hash == reserve_hash)
        )
        return None if payload is None else _blob(payload, f"output of {reserve_hash[:12]}...")

    def entries(self) -> tuple[LedgerEntry, ...]:
        rows = self._connection.execute(
            select(_ENTRIES.c.number, _ENTRIES.c.line).order_by(_ENTRIES.c.number)
        )
        return tuple(_entry(row.line, f"entry {row.number}") for row in rows)

    def countersignatures(self) -> tuple[bytes, ...]:
        """The kept countersignatures, oldest first."""
        rows = self._connection.scalars(
            select(_COUNTERSIGNATURES.c.raw).order_by(_COUNTERSIGNATURES.c.id)
        )
        return tuple(_blob(raw, "countersignature") for raw in rows)

    def keep_countersignature(self, raw: bytes) -> None:
        """Add one, unless it is kept already."""
        if raw not in self.countersignatures():
            self._connection.execute(insert(_COUNTERSIGNATURES).values(raw=raw))


class SqliteLedger(KeptLedger):
    """A site's ledger in one SQLite file; several processes may have it open.

    Opening it checks every entry's place in the chain, signature and rules, and that the last
    recorded epsilon is what the releases cost. Use it as a context manager or call `close`.
    Not for use across a fork: open it again in the child.

    Args:
        path: the file; created with mode 0600 if missing, its folder must exist.
        site, population: whose ledger it is. `population` names the people who are protected;
            all studies over them share the file and the budget.
        signing_key: the site's Ed25519 key.
        caps: the site's own policy.
        data_fingerprint: of the data set in use (`units.population_fingerprint`).
        clock: the current time with a zone.
    Raises: LedgerError: of another site, population or key, damaged, or of a newer version.
        TransportError: cannot be opened, read-only, disk full.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        population: str,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        data_fingerprint: str,
        clock: Callable[[], datetime],
    ) -> None:
        public_key = signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        identity = LedgerIdentity(site=site, population=population, public_key=public_key)
        super().__init__(
            identity=identity,
            signing_key=signing_key,
            caps=caps,
            data_fingerprint=data_fingerprint,
            clock=clock,
        )
        self._path = path
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._replay: LedgerReplay | None = None
        _create_private(path)
        self._engine = _engine(path)
        try:
            self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Every completed call is on disk already."""
        self._engine.dispose()

    def _open(self) -> None:
        with self._connected() as connection:
            if inspect(connection).has_table(_META.name):
                self._check_meta(connection)
            else:
                self._create(connection)
        with self._transaction() as transaction:
            last = self._last_reserve_epsilon(transaction)
        if last is not None:
            recorded, recomputed = last
            if recorded < recomputed * (1 - 1e-3) - 1e-6:
                raise LedgerError(
                    f"ledger {self._path}: the last reservation says epsilon {recorded:.6g}, its "
                    f"releases cost {recomputed:.6g}; it was written by other software or "
                    "tampered with"
                )

    def _last_reserve_epsilon(self, transaction: LedgerTransaction) -> tuple[float, float] | None:
        last = transaction.replay.last_reserve()
        if last is None:
            return None
        return last.epsilon_after, transaction.replay.accountant().epsilon(last.target_delta)

    def _create(self, connection: Connection) -> None:
        _METADATA.create_all(connection, checkfirst=False)
        for statement in _APPEND_ONLY:
            connection.exec_driver_sql(statement)
        rows = {
            "schema_version": str(SCHEMA_VERSION),
            "site": self._identity.site,
            "population": self._identity.population,
            "public_key": self._identity.public_key.hex(),
        }
        connection.execute(
            insert(_META), [{"name": name, "value": value} for name, value in rows.items()]
        )

    def _check_meta(self, connection: Connection) -> None:
        stored = {row.name: row.value for row in connection.execute(select(_META))}
        version = stored.get("schema_version")
        if version != str(SCHEMA_VERSION):
            raise LedgerError(
                f"ledger {self._path}: schema version {version}, this software reads "
                f"{SCHEMA_VERSION}; use the version of lada that wrote it"
            )
        expected = {
            "site": self._identity.site,
            "population": self._identity.population,
            "public_key": self._identity.public_key.hex(),
        }
        for name, value in expected.items():
            if stored.get(name) != value:
                raise LedgerError(
                    f"ledger {self._path}: it is of another {name}: expected {value!r}, it says "
                    f"{stored.get(name)!r}. Nothing was written; open the right file"
                )

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """One exclusive database transaction; foreign errors become ours."""
        if os.getpid() != self._pid:
            raise LocalProtocolError(
                f"ledger {self._path}: it was opened before a fork; open it in this process"
            )
        try:
            with self._engine.begin() as connection:
                yield connection
        except sqlite3.Error as error:
            # While a connection is prepared, SQLAlchemy passes the driver's errors on as they are.
            raise _explain(error, self._path) from error
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise _explain(error.orig, self._path) from error
            raise TransportError(f"ledger {self._path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[_SqliteTransaction]:
        with self._lock:
            before: int | None = None
            try:
                with self._connected() as connection:
                    replay = self._synchronised(connection)
                    before = replay.length
                    yield _SqliteTransaction(connection, replay)
            except BaseException:
                # What was appended here is not on disk. Whether it counts is read again.
                if before is None or (self._replay and self._replay.length != before):
                    self._replay = None
                raise

    def _synchronised(self, connection: Connection) -> LedgerReplay:
        """The replay of exactly what is stored, continuing from what is known."""
        replay = self._replay
        if replay is None:
            replay = LedgerReplay(self._identity)
        elif replay.length:
            known = replay.head()
            stored = connection.scalar(
                select(_ENTRIES.c.entry_hash).where(_ENTRIES.c.number == known.index)
            )
            if stored != known.entry_hash:
                raise LedgerError(
                    f"ledger {self._path}: entry {known.index} is gone or was replaced since it "
                    "was last read; was an old copy put back? Nothing was written"
                )
        self._replay = None
        rows = connection.execute(
            select(_ENTRIES.c.number, _ENTRIES.c.entry_hash, _ENTRIES.c.line)
            .where(_ENTRIES.c.number >= replay.length)
            .order_by(_ENTRIES.c.number)
        )
        for row in rows:
            entry = _entry(row.line, f"ledger {self._path}: entry {row.number}")
            replay.append(entry)
            if (row.number, row.entry_hash) != (entry.index, replay.head().entry_hash):
                raise LedgerError(f"ledger {self._path}: entry {row.number}: stored as another one")
        self._replay = replay
        return replay

    def add_countersignature(
        self, countersignature: Countersignature, *, auditor_key: bytes
    ) -> None:
        """Keep the auditor's countersignature, after checking that it is about this ledger.

        Args: auditor_key: the auditor's Ed25519 key, 32 raw bytes.
        Raises: LedgerError: wrong signature, another ledger, or entries that are not here.
        """
        check_countersignature(countersignature, auditor_key=auditor_key)
        raw = countersignature.to_bytes()
        with self._transaction() as transaction:
            check_against_ledger(
                countersignature, identity=self._identity, entries=transaction.entries()
            )
            transaction.keep_countersignature(raw)

    def countersignatures(self) -> tuple[Countersignature, ...]:
        """All countersignatures that were kept, oldest first."""
        with self._transaction() as transaction:
            return tuple(parse_countersignature(raw) for raw in transaction.countersignatures())


def _create_private(path: Path) -> None:
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


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        # The driver must not begin transactions by itself: it would choose deferred ones.
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

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine
