"""Tables of the board's database, for SQLite and PostgreSQL alike, and what is asked of them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.wire.envelope import Envelope, Header
from lada_secure.errors import PeerError

SCHEMA_VERSION: Final = 2
# "LDbd" in the header of a SQLite file, where `file` and `PRAGMA application_id` show it.
APPLICATION_ID: Final = 0x4C446264

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
    sa.UniqueConstraint(
        *("study_id", "round_id", "attempt", "purpose", "kind", "sender", "addressee"),
        name="one_message_per_key",
    ),
)

# Who may read which message, decided once when it is posted.
readers = sa.Table(
    "board_readers",
    tables,
    sa.Column("reader", sa.String(32), primary_key=True),
    sa.Column("sequence", _Sequence, sa.ForeignKey("board_messages.sequence"), primary_key=True),
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
        raise PeerError(
            f"{header.sender} posted {header.kind} for study {header.study_id}, round "
            f"{header.round_id}, attempt {header.attempt}, purpose {header.purpose or '-'} as "
            f"{row.message_hash[:16]}... and now sends {envelope.message_hash[:16]}... in its "
            "place; a retry sends the same bytes",
            reason="equivocation",
            peer=header.sender,
            round_id=header.round_id,
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
    return {
        "study_id": header.study_id,
        "round_id": header.round_id,
        "attempt": header.attempt,
        "purpose": header.purpose,
        "kind": header.kind,
        "sender": header.sender,
        "addressee": header.to,
    }
