"""Whose board a database holds, which version it has, and whether its payloads lie beside it."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.identity.roster import Roster
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.schema_versions import versions_to_migrate
from lada_server.board import schema
from lada_server.board.payloads import PayloadFiles

WHERE: Final = "the board's database"


def open_board(connection: Connection, *, roster: Roster, payloads: PayloadFiles) -> str:
    """Make the tables of a new board, or check an old one and migrate it, in one transaction.

    Returns: the board's id, which the folder of payloads is to remember once this is committed.
    Raises: ParameterError: of another roster, a newer version, another board's folder, or not a
      board at all. TransportError: damaged, or payloads are missing.
    """
    _check_pages(connection)
    if not sa.inspect(connection).has_table(schema.facts.name):
        _check_empty(connection)
        payloads.check_unused()
        schema.create_tables(connection, roster_hash=roster.hash)
        return stored_facts(connection)["board_id"]
    found = stored_facts(connection)
    versions = check_version(found)
    if found.get("roster_hash") != roster.hash:
        raise ParameterError(
            f"the board belongs to roster {found.get('roster_hash', 'none')[:16]}..., the settings "
            f"name {roster.hash[:16]}...; a new roster needs a new state_dir, and a database of "
            "its own"
        )
    schema.migrate(connection, versions)
    board_id = stored_facts(connection)["board_id"]
    hashes = connection.execute(sa.select(schema.messages.c.message_hash)).scalars()
    payloads.check_complete(board_id, hashes)
    return board_id


def stored_facts(connection: Connection) -> dict[str, str]:
    """What the database says of itself."""
    rows = connection.execute(sa.select(schema.facts.c.name, schema.facts.c.value))
    return {str(name): str(value) for name, value in rows}


def check_version(found: dict[str, str]) -> range:
    """The versions to migrate from. Raises: ParameterError: newer, or no version."""
    return versions_to_migrate(
        found.get("schema_version"),
        current=schema.SCHEMA_VERSION,
        where=WHERE,
        refusal=ParameterError,
    )


def _check_pages(connection: Connection) -> None:
    """SQLite alone: a damaged page is noticed now, not in the middle of a round."""
    if connection.dialect.name != "sqlite":
        return
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if said != "ok":
        raise TransportError(
            f"{WHERE} is damaged ({' '.join(str(said).split())}); restore it and the state folder "
            "from the same backup"
        )


def _check_empty(connection: Connection) -> None:
    """A file with somebody else's tables, as a site's ledger, is not made into a board."""
    if connection.dialect.name != "sqlite":
        return
    tables = sa.inspect(connection).get_table_names()
    if tables:
        raise ParameterError(
            f"{WHERE} is no board: the file holds the tables {', '.join(tables[:5])}; name another "
            "file. Nothing was changed"
        )
