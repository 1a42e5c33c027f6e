"""Whose board a database holds, which version it has, and whether its payloads lie beside it."""

from __future__ import annotations

import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.identity.roster import Roster
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.state_folder import check_schema_version
from lada_server.board import schema
from lada_server.board.payloads import PayloadFiles

WHERE: Final = "the board's database"


def open_board(connection: Connection, *, roster: Roster, payloads: PayloadFiles) -> str:
    """Make the tables of a new board, or check those of an old one, in one transaction.

    Returns: the board's id, which the folder of payloads is to remember once this is committed.
    Raises: ParameterError: of another roster or version, another board's folder, or not a board at
      all. TransportError: damaged, or payloads are missing.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    if on_sqlite:
        _check_pages(connection)
    tables = sa.inspect(connection).get_table_names()
    if schema.metadata.name in tables:
        found = checked_metadata(connection)
        if found.get("roster_hash") != roster.hash:
            raise ParameterError(
                f"the board belongs to roster {found.get('roster_hash', 'none')[:16]}..., the "
                f"settings name {roster.hash[:16]}...; a new roster needs a new state_dir, and a "
                "database of its own"
            )
        hashes = connection.execute(sa.select(schema.messages.c.message_hash)).scalars()
        payloads.check_complete(found["board_id"], hashes)
        return found["board_id"]
    if on_sqlite and tables:
        # A file with somebody else's tables, as a site's ledger, is not made into a board.
        raise ParameterError(
            f"{WHERE} is no board: the file holds the tables {', '.join(tables[:5])}; name another "
            "file. Nothing was changed"
        )
    payloads.check_unused()
    return _create_board(connection, roster)


def checked_metadata(connection: Connection) -> dict[str, str]:
    """What the database says of itself. Raises: ParameterError: of another version, or of none."""
    rows = connection.execute(sa.select(schema.metadata.c.name, schema.metadata.c.value))
    found = {str(name): str(value) for name, value in rows}
    check_schema_version(
        found.get("schema_version"),
        current=schema.SCHEMA_VERSION,
        where=WHERE,
        refusal=ParameterError,
    )
    return found


def _create_board(connection: Connection, roster: Roster) -> str:
    schema.tables.create_all(connection, checkfirst=False)
    values = {
        "schema_version": str(schema.SCHEMA_VERSION),
        "roster_hash": roster.hash,
        "board_id": secrets.token_hex(16),
    }
    rows = [{"name": name, "value": value} for name, value in values.items()]
    connection.execute(schema.metadata.insert(), rows)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA application_id={schema.APPLICATION_ID}")
    return values["board_id"]


def _check_pages(connection: Connection) -> None:
    """A damaged page is noticed now, not in the middle of a round."""
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if said != "ok":
        raise TransportError(
            f"{WHERE} is damaged ({' '.join(str(said).split())}); restore it and the state folder "
            "from the same backup"
        )
