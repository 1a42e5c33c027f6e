"""Rows of the board's database: reading and writing single messages."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import LocalProtocolError, PeerError
from lada_server.board import schema


def known_sequence(connection: Connection, envelope: Envelope) -> int | None:
    """The sequence of this very message, if it is on the board.

    Raises: PeerError(reason="equivocation"): its place holds another message.
    """
    table, header = schema.messages, envelope.header
    row = connection.execute(
        sa.select(table.c.sequence, table.c.message_hash).where(
            table.c.study_id == header.study_id,
            table.c.round_id == header.round_id,
            table.c.attempt == header.attempt,
            table.c.purpose == header.purpose,
            table.c.kind == header.kind,
            table.c.sender == header.sender,
            table.c.addressee == header.to,
        )
    ).one_or_none()
    if row is None:
        return None
    if row[1] != envelope.message_hash:
        raise PeerError(
            f"{header.sender} posted {header.kind} for study {header.study_id}, round "
            f"{header.round_id}, attempt {header.attempt}, purpose {header.purpose or '-'} as "
            f"{row[1][:16]}... and now sends {envelope.message_hash[:16]}... in its place; a "
            "retry sends the same bytes",
            reason="equivocation",
            peer=header.sender,
            round_id=header.round_id,
        )
    return int(row[0])


def stored_bytes(connection: Connection, sender: str) -> int:
    """Header and payload bytes of all messages of a sender."""
    table = schema.messages
    total = connection.execute(
        sa.select(sa.func.sum(table.c.payload_bytes + sa.func.length(table.c.header))).where(
            table.c.sender == sender
        )
    ).scalar_one()
    return int(total or 0)


def insert_message(connection: Connection, envelope: Envelope, now_s: float) -> int:
    """Store a message. Returns: its sequence."""
    header = envelope.header
    result = connection.execute(
        schema.messages.insert().values(
            message_hash=envelope.message_hash,
            study_id=header.study_id,
            round_id=header.round_id,
            attempt=header.attempt,
            purpose=header.purpose,
            kind=header.kind,
            sender=header.sender,
            addressee=header.to,
            header=envelope.header_bytes,
            signature=envelope.signature,
            payload_sha256=header.payload_sha256,
            payload_bytes=header.payload_bytes,
            received_at_s=now_s,
        )
    )
    key = result.inserted_primary_key
    if key is None:
        raise LocalProtocolError("the database gave no sequence number for a stored message")
    return int(key[0])
