"""Rows of a SQL query, by SQLAlchemy, streamed: the database sends as many as are asked for.

The address may hold a password: it is never shown, and `env:NAME` has it read from the environment
instead of the command line, which everybody on the machine can see.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source, text_of
from lada_secure.errors import ParameterError, TransportError

_FETCHED_ROWS: Final = 1000
_FROM_ENVIRONMENT: Final = "env:"


def is_database(source: str) -> bool:
    """Whether a source is a database's address and no file."""
    return source.startswith(_FROM_ENVIRONMENT) or re.match(r"[a-z0-9+]+://", source) is not None


def open_query(source: str, settings: SourceSettings) -> Source:
    """Open a database and look which columns the query of the mapping has.

    Raises: ParameterError: no query, a driver that is not installed, an address or a query that
        the database refuses, one column name twice.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if settings.query is None:
        raise ParameterError("the mapping names no query; say SELECT ... as [source] query")
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
                    yield Row(line, {name: _cell(values[at]) for at, name in places})
        except SQLAlchemyError as error:
            raise TransportError(
                f"{where} broke off behind row {line}: {_reason(error)}; nothing was imported, "
                "start again"
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
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            # The driver would make an empty database.
            raise ParameterError(
                "there is no such SQLite file; a whole path has four slashes: sqlite:////srv/x.db"
            )
        return create_engine(url, poolclass=NullPool)
    except (ArgumentError, ImportError) as error:
        raise ParameterError(
            f"the database's address cannot be used ({type(error).__name__}); expected as "
            "postgresql+psycopg://user@host/name, with its driver installed"
        ) from error


@contextmanager
def _result(engine: Any, query: str, *, rows: int) -> Iterator[Any]:
    """The query's rows, fetched so many at a time, in a connection that writes nothing."""
    from sqlalchemy import text

    with engine.connect() as connection:
        if engine.url.get_backend_name() == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
        elif engine.url.get_backend_name() == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        streamed = connection.execution_options(stream_results=True, yield_per=rows)
        # A colon is no parameter here: "12:30" may stand in a query.
        yield streamed.execute(text(query.replace(":", r"\:")))


def _cell(value: object) -> str | None:
    # Bytes of a database are pictures and the like; no column that is text comes as them.
    return None if isinstance(value, bytes | memoryview) else text_of(value)


def _reason(error: Exception) -> str:
    """The driver's first line; the rest may quote the address, the query or a value."""
    inner = getattr(error, "orig", None) or error
    return f"{type(inner).__name__}: {(str(inner).splitlines() or [''])[0][:200]}"
