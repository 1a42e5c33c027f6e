"""What the board's database and disk say when they refuse, and whether waiting may help."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

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


_DAMAGED: Final = (
    "it is damaged or not a board at all; restore the database and the state folder from the "
    "same backup"
)
_FULL: Final = "free some space; nothing is lost, the same step is tried again"
_RUNNING: Final = "check that it runs and can be reached"

# SQLite's own error names by their beginning.
_SQLITE: Final = {
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR": "the disk failed or is full; check the disk",
    "SQLITE_BUSY": "another process holds it; see what it is doing",
    "SQLITE_LOCKED": "another connection holds it; see what it is doing",
    "SQLITE_READONLY": "it cannot be written; check owner and mode of the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened; check the folder, its owner and its mode",
}
# SQLSTATE of PostgreSQL by its beginning: what an operator can end without us.
_POSTGRESQL: Final = {
    "53100": _FULL,
    "53": "the server is short of memory or connections",
    "08": _RUNNING,
    "57P": _RUNNING,
    "55P03": "another session holds it; see what it is doing",
    "25006": "this server takes no writes; name the primary, not a standby",
    "40": "it asked for the transaction to be repeated",
}
# What stays until somebody changes the database or the settings.
_REFUSED: Final = {
    "42501": "its user lacks the right; let the user own the database or the schema",
    "XX": _DAMAGED,
}
# Gone at once, so that a caller need not hear of it: a repeated transaction, a lost connection.
_BRIEF: Final = ("40", "57P", "08")


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
    cause = getattr(error, "orig", None)
    if cause is None and isinstance(error, sqlite3.Error):
        cause = error
    if cause is None:
        # SQLAlchemy's own: every connection of the pool is in use, or a fault of ours.
        return StorageUnavailable(f"cannot {what}: {type(error).__name__}; {_RUNNING}")
    begun = f"cannot {what}: the database says {' '.join(str(cause).split())}"
    if isinstance(cause, sqlite3.Error):
        name = str(getattr(cause, "sqlite_errorname", None) or "SQLITE_ERROR")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return TransportError(f"{begun} ({name}); {_DAMAGED}")
        advice = _advice(_SQLITE, name)
        if advice is None:
            return TransportError(f"{begun} ({name})")
        return StorageUnavailable(f"{begun} ({name}); {advice}")
    state = str(getattr(cause, "sqlstate", None) or "")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or not state:
        return StorageUnavailable(f"{begun}; {_RUNNING}", brief=lost)
    begun = f"{begun} (SQLSTATE {state})"
    advice = _advice(_POSTGRESQL, state)
    if advice is not None:
        return StorageUnavailable(f"{begun}; {advice}", brief=state.startswith(_BRIEF))
    refused = _advice(_REFUSED, state)
    return TransportError(begun if refused is None else f"{begun}; {refused}")


def _advice(table: Mapping[str, str], name: str) -> str | None:
    return next((text for start, text in table.items() if name.startswith(start)), None)
