"""Tables of the board's database, for SQLite and PostgreSQL alike, and what is asked of them.

Among them is whose board it is, in which version, and which folder of payloads belongs to it.
"""

from __future__ import annotations

import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.identity.roster import Roster
from lada_protocol.wire.envelope import Envelope, Header
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.state_folder import check_schema_version
from lada_server.board.payloads import PayloadFiles

WHERE: Final = "the board's database"
SCHEMA_VERSION: Final = 2
# "LDbd" in the header of a SQLite file, where `file` and `PRAGMA application_id` show it.
APPLICATION_ID: Final = 0x4C446264

# Columns that say where a message belongs, named as in its header but for the last, `to` there.
PLACE: Final = ("study_id", "round_id", "attempt", "purpose", "kind", "sender", "addressee")

tables = sa.MetaData()

# SQLite counts a row id only for INTEGER, PostgreSQL should have 64 bits.
_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.Table(
    "board_metadata",
    tables,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.String(200), nullable=False),
)

messages = sa.Table(
    "board_messages",
    tables,
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
    # One sender says one thing per place: a second header there is an equivocation.
    sa.UniqueConstraint(*PLACE, name="one_message_per_key"),
)

# Who may read which message, decided once when it is posted.
readers = sa.Table(
    "board_readers",
    tables,
    sa.Column("reader", sa.String(32), primary_key=True),
    sa.Column("sequence", _Sequence, sa.ForeignKey("board_messages.sequence"), primary_key=True),
)


def open_board(
    connection: Connection, *, roster: Roster, payloads: PayloadFiles
) -> tuple[str, set[str]]:
    """Make the tables of a new board, or check those of an old one, in one transaction.

    Returns: the board's id, which the folder of payloads is to remember once this is committed,
      and the hashes of its messages.
    Raises: ParameterError: of another roster or version, another board's folder, or not a board at
      all. TransportError: damaged, or payloads are missing.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    if on_sqlite:
        _check_pages(connection)
    present = sa.inspect(connection).get_table_names()
    if metadata.name in present:
        found = checked_metadata(connection)
        if found.get("roster_hash") != roster.hash:
            raise ParameterError(
                f"the board belongs to roster {found.get('roster_hash', 'none')[:16]}..., the "
                f"settings name {roster.hash[:16]}...; a new roster needs a new study: another "
                "study_id once this one is over, and a database of its own where one is set"
            )
        hashes = set(connection.execute(sa.select(messages.c.message_hash)).scalars())
        payloads.check_complete(found["board_id"], hashes)
        return found["board_id"], hashes
    if on_sqlite and present:
        # A file with somebody else's tables, as a site's ledger, is not made into a board.
        raise ParameterError(
            f"{WHERE} is no board: the file holds the tables {', '.join(present[:5])}; name "
            "another file. Nothing was changed"
        )
    payloads.check_unused()
    return _create_board(connection, roster), set()


def checked_metadata(connection: Connection) -> dict[str, str]:
    """What the database says of itself. Raises: ParameterError: of another version, or of none."""
    rows = connection.execute(sa.select(metadata.c.name, metadata.c.value))
    found = {str(name): str(value) for name, value in rows}
    check_schema_version(
        found.get("schema_version"), current=SCHEMA_VERSION, where=WHERE, refusal=ParameterError
    )
    return found


def _create_board(connection: Connection, roster: Roster) -> str:
    tables.create_all(connection, checkfirst=False)
    values = {
        "schema_version": str(SCHEMA_VERSION),
        "roster_hash": roster.hash,
        "board_id": secrets.token_hex(16),
    }
    rows = [{"name": name, "value": value} for name, value in values.items()]
    connection.execute(metadata.insert(), rows)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
    return values["board_id"]


def _check_pages(connection: Connection) -> None:
    """A damaged page is noticed now, not in the middle of a round."""
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if said != "ok":
        raise TransportError(
            f"{WHERE} is damaged ({' '.join(str(said).split())}); restore it and the state folder "
            "from the same backup"
        )


def known_sequence(connection: Connection, envelope: Envelope) -> int | None:
    """The sequence of this very message, if it is on the board.

    Raises: PeerError(reason="equivocation"): its place holds another message.
    """
    header = envelope.header
    query = sa.select(messages.c.sequence, messages.c.message_hash).filter_by(**_place(header))
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.message_hash != envelope.message_hash:
        raise envelope.fault(
            f"{header.sender} posted {header.kind} for study {header.study_id}, round "
            f"{header.round_id}, attempt {header.attempt}, purpose {header.purpose or '-'} as "
            f"{row.message_hash[:16]}... and now sends {envelope.message_hash[:16]}... in its "
            "place; a retry sends the same bytes",
            reason="equivocation",
        )
    return int(row.sequence)


def stored_bytes(connection: Connection, sender: str) -> int:
    """Header and payload bytes of all messages of a sender."""
    size = sa.func.sum(messages.c.payload_bytes + sa.func.length(messages.c.header))
    total = connection.execute(sa.select(size).filter_by(sender=sender)).scalar_one()
    return int(total or 0)


def insert_message(
    connection: Connection, envelope: Envelope, audience: list[str], now_s: float
) -> int:
    """Store a message and who may read it. Returns: its sequence."""
    header = envelope.header
    row = messages.insert().values(
        **_place(header),
        message_hash=envelope.message_hash,
        header=envelope.header_bytes,
        signature=envelope.signature,
        payload_sha256=header.payload_sha256,
        payload_bytes=header.payload_bytes,
        received_at_s=now_s,
    )
    sequence: int = connection.execute(row.returning(messages.c.sequence)).scalar_one()
    connection.execute(
        readers.insert(), [{"reader": party, "sequence": sequence} for party in audience]
    )
    return sequence


def _place(header: Header) -> dict[str, str | int]:
    same = {name: getattr(header, name) for name in PLACE[:-1]}
    return {**same, "addressee": header.to}
