"""Rows of a SQL query, by SQLAlchemy, streamed: the database sends as many as are asked for.

The address may hold a password: it is never shown, and `env:NAME` has it read from the environment
instead of the command line, which everybody on the machine can see. Adversary: the author of a
mapping. A query can only read a SQLite file; elsewhere it has the rights of its connection, which
only PostgreSQL is asked to narrow.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source, checked_row, text_of
from lada_secure.errors import ParameterError, TransportError

_FETCHED_ROWS: Final = 1000
_FROM_ENVIRONMENT: Final = "env:"
# Also where a slash was forgotten: the whole may hold a password, and is never shown as a path.
_ADDRESS: Final = re.compile(r"(?:postgres|mysql|mariadb|oracle|mssql|sqlite)[\w+]*:|.*://", re.I)
# Behind comments, which may stand in front; none is looked at twice, however many there are.
_READS: Final = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*+(?:select|with)\b", re.I | re.S)
_SQLITE_MOST_BYTES: Final = 16 * 2**20
# Their messages are of the query, the schema or the connection; others quote cells.
_TOLD: Final = ("ProgrammingError", "OperationalError")
_OF_THE_QUERY: Final = re.compile(
    r"^(?:no such |You can only execute one |ambiguous column|incomplete input|unrecognized token|"
    r"wrong number of arg|unable to open|attempt to write|too many attached|database is )|"
    r": syntax error$"
)


def is_database(source: str) -> bool:
    """Whether a source is a database's address and no file."""
    return source.startswith(_FROM_ENVIRONMENT) or _ADDRESS.match(source) is not None


def open_query(source: str, settings: SourceSettings) -> Source:
    """Open a database and look which columns the query of the mapping has.

    Raises: ParameterError: no query, a driver that is not installed, an address or a query that
        the database refuses, one column name twice.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if settings.query is None:
        raise ParameterError(
            "the mapping names no query; say SELECT ... as [source] query (`lada data map`: "
            "--query)"
        )
    if _READS.match(settings.query) is None:
        raise ParameterError("[source] query: expected one that begins with SELECT or WITH")
    engine = _engine(source)
    where = f"the query on {engine.url.get_backend_name()}"
    try:
        with _result(engine, settings.query, rows=1) as result:
            names = tuple(result.keys())
    except SQLAlchemyError as error:
        raise ParameterError(f"{where} was refused: {_reason(error)}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ParameterError(f"{where}: two columns are called {twice[0][:40]!r}; name them apart")

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        line = 0
        places = [(at, name) for at, name in enumerate(names) if not needed or name in needed]
        try:
            with _result(engine, str(settings.query), rows=_FETCHED_ROWS) as result:
                for values in result:
                    line += 1
                    yield checked_row(line, {name: text_of(values[at]) for at, name in places})
        except SQLAlchemyError as error:
            raise TransportError(
                f"{where} broke off behind row {line}: {_kind(error)}; nothing was imported, start "
                "again"
            ) from error

    ordered = re.search(r"\border\s+by\b", settings.query, re.IGNORECASE)
    said = [f"{engine.url.get_backend_name()}, {len(names)} columns"]
    if ordered is None:
        said.append("the query has no ORDER BY: another run may see the rows in another order")
    return Source(columns=names, said=tuple(said), read=read)


def _engine(source: str) -> Any:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool

    if source.startswith(_FROM_ENVIRONMENT):
        name = source.removeprefix(_FROM_ENVIRONMENT)
        source = os.environ.get(name, "")
        if not source:
            raise ParameterError(f"the environment has no {name}; put the database's address there")
    try:
        url = make_url(source)
        if "@" in (url.host or ""):
            raise ParameterError(
                "the database's address has more than one @; write those of the password as %40"
            )
        if url.get_backend_name() == "sqlite":
            return create_engine(url, poolclass=NullPool, creator=_sqlite(url.database))
        return create_engine(url, poolclass=NullPool)
    except (ArgumentError, ImportError, ValueError):
        # Without what it says: that may be a part of the password.
        raise ParameterError(
            "the database's address cannot be used; expected as postgresql+psycopg://user@host/"
            "name, with its driver installed, and what is neither a letter nor a digit in a "
            "password written as %40 and the like"
        ) from None


def _sqlite(database: str | None) -> Callable[[], sqlite3.Connection]:
    """Opens a SQLite file for reading alone. Raises: ParameterError: there is none."""
    path = Path(database or "")
    if not path.is_file():
        # The driver would make an empty database.
        raise ParameterError(
            "there is no such SQLite file; a whole path has four slashes: sqlite:////srv/x.db"
        )

    def connect() -> sqlite3.Connection:
        base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _SQLITE_MOST_BYTES)
        base.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        # One cell that is no text is a row's fault and ends no import.
        base.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        return base

    return connect


@contextmanager
def _result(engine: Any, query: str, *, rows: int) -> Iterator[Any]:
    """The query's rows, fetched so many at a time, in a connection that writes nothing."""
    from sqlalchemy import text

    with engine.connect() as connection:
        if engine.url.get_backend_name() == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        streamed = connection.execution_options(stream_results=True, yield_per=rows)
        # A colon is no parameter here: "12:30" may stand in a query.
        yield streamed.execute(text(query.replace(":", r"\:")))


def _kind(error: Exception) -> str:
    # No word of its message: a function that fails on a row may quote the cell.
    return type(getattr(error, "orig", None) or error).__name__


def _reason(error: Exception) -> str:
    """Why a query was refused: what kind of error it is, and its first line where that is known to
    be of the query, the schema or the connection. The first row may have been looked at by then."""
    first = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0][:200]
    kinds = {one.__name__ for one in type(error).__mro__}
    of_sqlite = isinstance(getattr(error, "orig", None), sqlite3.Error)
    if not kinds.intersection(_TOLD) or (of_sqlite and not _OF_THE_QUERY.search(first)):
        return _kind(error)
    return f"{_kind(error)}: {first}"
