"""Tables of the board's database, their version, and the way from older versions.

One text for SQLite and PostgreSQL. Version 1: without the board's id. Version 2: `board_id` among
the facts, which the folder of payloads repeats, and SQLite files say in their header what they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

SCHEMA_VERSION: Final = 2
# "LDbd" in the header of a SQLite file, where `file` and `PRAGMA application_id` show it.
APPLICATION_ID: Final = 0x4C446264

metadata = sa.MetaData()

# SQLite counts a row id only for INTEGER, PostgreSQL should have 64 bits.
_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

facts = sa.Table(
    "board_facts",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.String(200), nullable=False),
)

messages = sa.Table(
    "board_messages",
    metadata,
    sa.Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    sa.Column("message_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("study_id", sa.String(64), nullable=False),
    sa.Column("round_id", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("sender", sa.String(32), nullable=False, index=True),
    sa.Column("addressee", sa.String(32), nullable=False),
    sa.Column("header", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("payload_sha256", sa.String(64), nullable=False),
    sa.Column("payload_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at_s", sa.Double, nullable=False),
    # One sender says one thing per place: a second header here is an equivocation.
    sa.UniqueConstraint(
        "study_id",
        "round_id",
        "attempt",
        "purpose",
        "kind",
        "sender",
        "addressee",
        name="one_message_per_key",
    ),
)

# Who may read which message, decided once when it is posted.
readers = sa.Table(
    "board_readers",
    metadata,
    sa.Column("reader", sa.String(32), primary_key=True),
    sa.Column("sequence", _Sequence, sa.ForeignKey("board_messages.sequence"), primary_key=True),
)


def create_tables(connection: Connection, *, roster_hash: str) -> None:
    """Make the tables of a new board, and say whose it is."""
    metadata.create_all(connection, checkfirst=False)
    rows = {"schema_version": str(SCHEMA_VERSION), "roster_hash": roster_hash}
    connection.execute(
        facts.insert(), [{"name": name, "value": value} for name, value in rows.items()]
    )
    _name_board(connection)


def migrate(connection: Connection, versions: range) -> None:
    """Take a board from each of these versions to the next, in the caller's transaction."""
    for version in versions:
        _STEPS[version](connection)
        connection.execute(
            facts.update().where(facts.c.name == "schema_version").values(value=str(version + 1))
        )


def _name_board(connection: Connection) -> None:
    connection.execute(facts.insert().values(name="board_id", value=secrets.token_hex(16)))
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")


# What each version lacks of the next one.
_STEPS: Final[Mapping[int, Callable[[Connection], None]]] = {1: _name_board}
