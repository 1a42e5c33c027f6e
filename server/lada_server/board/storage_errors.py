"""What the board's database and disk say when they refuse, and whether waiting may help."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lada_secure.errors import TransportError


class StorageUnavailable(TransportError):
    """Database or disk refuses for now: stopped, full, busy. Nothing was written by this call.

    Whoever asked may ask again with the same bytes, and clients do: they know it by the code of
    its parent. `brief`: likely gone within a second.
    """

    def __init__(self, message: str, *, brief: bool = False) -> None:
        super().__init__(message)
        self.brief = brief


class _Fault(NamedTuple):
    """brief: gone at once. lasting: stays until somebody changes the database or the settings."""

    advice: str
    brief: bool = False
    lasting: bool = False


_FULL: Final = _Fault("free some space; nothing is lost, the same step is tried again")
_DAMAGED: Final = _Fault(
    "it is damaged or not a board at all; restore the database and the state folder from the "
    "same backup",
    lasting=True,
)
_RUNNING: Final = "check that it runs and can be reached"

# SQLite's error names and PostgreSQL's SQLSTATEs by their beginning; the first that fits counts.
_FAULTS: Final = {
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR": _Fault("the disk failed or is full; check the disk"),
    "SQLITE_BUSY": _Fault("another process holds it; see what it is doing"),
    "SQLITE_LOCKED": _Fault("another connection holds it; see what it is doing"),
    "SQLITE_READONLY": _Fault(
        "it cannot be written; check owner and mode of the file and its folder"
    ),
    "SQLITE_CANTOPEN": _Fault("it cannot be opened; check the folder, its owner and its mode"),
    "SQLITE_NOTADB": _DAMAGED,
    "SQLITE_CORRUPT": _DAMAGED,
    "53100": _FULL,
    "53": _Fault("the server is short of memory or connections"),
    "08": _Fault(_RUNNING, brief=True),
    "57P": _Fault(_RUNNING, brief=True),
    "55P03": _Fault("another session holds it; see what it is doing"),
    "25006": _Fault("this server takes no writes; name the primary, not a standby"),
    "40": _Fault("it asked for the transaction to be repeated", brief=True),
    "42501": _Fault(
        "its user lacks the right; let the user own the database or the schema", lasting=True
    ),
    "XX": _DAMAGED,
}


@contextmanager
def disk_errors(
    said: str, *, advice: str = "", refusal: type[TransportError] = TransportError
) -> Iterator[None]:
    """Turn what the disk raises into `refusal`: what was tried, the system's reason, what to do."""
    try:
        yield
    except OSError as error:
        raise refusal("; ".join(filter(None, (f"{said}: {error.strerror}", advice)))) from error


@contextmanager
def database_errors(what: str) -> Iterator[None]:
    """Turn what the database raises while doing `what` into errors of ours.

    Raises: StorageUnavailable: waiting or an operator may help. TransportError: neither does.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _explained(what, error) from error


def _explained(what: str, error: Exception) -> TransportError:
    cause = error if isinstance(error, sqlite3.Error) else getattr(error, "orig", None)
    if cause is None:
        # SQLAlchemy's own: every connection of the pool is in use, or a fault of ours.
        return StorageUnavailable(f"cannot {what}: {type(error).__name__}; {_RUNNING}")
    said = f"cannot {what}: the database says {' '.join(str(cause).split())}"
    if isinstance(cause, sqlite3.Error):
        code = str(getattr(cause, "sqlite_errorname", None) or "SQLITE_ERROR")
        said += f" ({code})"
    else:
        code = str(getattr(cause, "sqlstate", None) or "")
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if lost or not code:
            return StorageUnavailable(f"{said}; {_RUNNING}", brief=lost)
        said += f" (SQLSTATE {code})"
    fault = next((fault for start, fault in _FAULTS.items() if code.startswith(start)), None)
    if fault is None:
        return TransportError(said)
    if fault.lasting:
        return TransportError(f"{said}; {fault.advice}")
    return StorageUnavailable(f"{said}; {fault.advice}", brief=fault.brief)
