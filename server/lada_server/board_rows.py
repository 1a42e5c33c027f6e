"""Rows of the board's database: reading and writing single messages, and whose board it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from lada_protocol.envelope import Envelope
from lada_protocol.roster import Roster
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError
from lada_server import schema


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


def check_facts(connection: Connection, roster: Roster) -> None:
    """Make the tables of a new board, or check that an old one is ours."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(schema.facts.name):
        schema.metadata.create_all(connection)
        connection.execute(
            schema.facts.insert(),
            [
                {"name": "schema_version", "value": str(schema.SCHEMA_VERSION)},
                {"name": "roster_hash", "value": roster.hash},
            ],
        )
        return
    rows = connection.execute(sa.select(schema.facts.c.name, schema.facts.c.value)).all()
    found = {str(name): str(value) for name, value in rows}
    version = found.get("schema_version")
    if version != str(schema.SCHEMA_VERSION):
        raise ParameterError(
            f"the board's database has schema version {version}, this software reads "
            f"{schema.SCHEMA_VERSION}; use the software version that made it"
        )
    if found.get("roster_hash") != roster.hash:
        raise ParameterError(
            f"the board belongs to roster {found.get('roster_hash', 'none')[:16]}..., the settings "
            f"name {roster.hash[:16]}...; a new roster needs a new state_dir"
        )


@contextmanager
def database_errors(what: str) -> Iterator[None]:
    """Turn what the database raises while doing `what` into a TransportError."""
    try:
        yield
    except SQLAlchemyError as error:
        # Only the driver's own text: SQLAlchemy's adds the statement with its values.
        cause = getattr(error, "orig", None) or type(error).__name__
        raise TransportError(
            f"cannot {what}: the database says {cause}; check that it runs and has space"
        ) from error
