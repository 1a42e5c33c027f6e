"""How a ledger's SQLite file is opened for writing and for reading, and what its errors mean.

Writers take one `BEGIN IMMEDIATE` transaction: read what others have added, decide, add. Two
processes therefore never decide on the same balance. Readers take a plain `BEGIN`, which in WAL
mode sees one consistent state and neither waits for a writer nor keeps one waiting. Writers set
`synchronous=FULL`, so a committed reservation survives a power cut.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from urllib.parse import quote

from lada_secure.errors import DiskError, LadaError, LedgerError

READ = "BEGIN"
WRITE = "BEGIN IMMEDIATE"
BUSY_TIMEOUT_S = 60.0

Connect: TypeAlias = Callable[[], sqlite3.Connection]

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
            return DiskError(f"ledger {path}: {meaning} ({name}). This step wrote nothing")
    return DiskError(f"ledger {path}: the database refused ({name}: {error})")


@contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Turns the errors of SQLite into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, path) from error


def create_private(path: Path) -> None:
    """Make the file for its owner only, if it is not there yet.

    Raises: TransportError: cannot be opened for writing.
    """
    # SQLite would create it readable for the group; a ledger tells who works with whom.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise DiskError(
            f"ledger {path}: cannot be opened or created: {error.strerror}; check that its folder "
            "exists and can be written. Nothing was written, nothing was spent"
        ) from error


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Readers do not block writers in WAL mode; the file remembers it once it is set."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # SQLite's own waiting does not cover this switch while others open the new file.
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that begins transactions only where it is told to."""
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def connect_to_write(path: Path) -> sqlite3.Connection:
    """A connection that may write, in WAL mode."""
    connection = _connect(path, "mode=rw")
    try:
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def readable(path: Path) -> Iterator[Connect]:
    """How to connect without writing; works on a read-only file, folder and disk.

    SQLite reads a file in WAL mode through an index beside it. Where that cannot be made, the
    file is read as it is if no entries wait in its log, and else from a private copy.

    Raises: TransportError: it is missing or cannot be read.
    """
    log = path.with_name(f"{path.name}-wal")
    with own_errors(path):
        try:
            with closing(_connect(path, "mode=ro")) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            copy, mode = False, "mode=ro"
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", "")
            if not path.exists() or not name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise
            copy, mode = log.exists() and log.stat().st_size > 0, "mode=ro&immutable=1"
    if not copy:
        yield partial(_connect, path, mode)
        return
    with TemporaryDirectory(prefix="lada-ledger-") as folder:
        try:
            shutil.copyfile(log, Path(folder, log.name))
            shutil.copyfile(path, Path(folder, path.name))
        except OSError as error:
            raise DiskError(f"ledger {path}: cannot be read: {error.strerror}") from error
        yield partial(_connect, Path(folder, path.name), "mode=ro")
