"""Tables of the board's database and how its connections are set up.

The schema version stands in the database; a file of another version is refused instead of
being read as if it were ours.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from lada_secure.errors import ParameterError

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 15_000

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


def open_database(url: str) -> Engine:
    """An engine for the board. SQLite files are set to WAL and to flush every commit.

    Raises: ParameterError: the URL cannot be read, or names neither SQLite nor PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        # The URL may hold a password, so it is not quoted.
        raise ParameterError(
            "database: expected an SQLAlchemy URL such as sqlite:////var/lib/lada/board.sqlite"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ParameterError(f"database: expected sqlite or postgresql, got {backend!r}")
    try:
        engine = sa.create_engine(parsed, **_engine_options(parsed))
    except ImportError as error:
        raise ParameterError(
            f"database: the driver of {parsed.drivername} is not installed ({error})"
        ) from error
    if backend == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _engine_options(url: URL) -> dict[str, Any]:
    # pre_ping: a database that was restarted between two calls is reconnected, not reported.
    return {"pool_pre_ping": url.get_backend_name() != "sqlite"}


def _set_up_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    """WAL lets readers go on while one writes; FULL makes a receipt survive a power cut."""
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
