"""The board: every signed message of a study, durable before it is acknowledged.

The coordinator posts its own messages here in-process; those of others come through
`service.py`. Both pass the same checks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import may_read
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.limits import MAX_LIST_BYTES, MAX_LIST_ENTRIES, MAX_WAIT_S
from lada_secure.canonical import sha256_hex
from lada_secure.errors import PeerError, TransportError
from lada_server.board.database import Database
from lada_server.board.payloads import PayloadFiles
from lada_server.board.schema import (
    insert_message,
    known_sequence,
    messages,
    metadata,
    open_board,
    readers,
    stored_bytes,
)

LOG = logging.getLogger(__name__)

DEFAULT_STORED_BYTES_PER_PARTY: Final = 64 * 1024**3
LARGEST_SEQUENCE: Final = 2**63 - 1


class BoardEntry(NamedTuple):
    """A message as it lies on the board: header bytes and signature, checked when it came."""

    sequence: int
    header_bytes: bytes
    signature: bytes


class BoardStore:
    """Messages in a database (SQLite or PostgreSQL by URL), payloads in files.

    Thread-safe. Sequence numbers rise by time of arrival, starting at 1.

    Args: url: SQLAlchemy URL. payload_dir: folder of this board alone. roster: who may post and
      read; a board keeps to the roster it was opened with first.
    Raises: ParameterError: the database belongs to another roster, payload folder or
      version, or another process has the board. TransportError: database or disk cannot be
      reached, or are damaged.
    """

    def __init__(
        self,
        url: str,
        *,
        payload_dir: Path,
        roster: Roster,
        stored_bytes_per_party: int = DEFAULT_STORED_BYTES_PER_PARTY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.roster = roster
        self._quota_bytes = stored_bytes_per_party
        self._clock = clock
        self._news = threading.Condition()
        self._newest = {party.id: 0 for party in roster.parties}
        self._read_to: dict[str, int] = {}
        self._closed = False
        self._database = Database(url)
        self._payloads = PayloadFiles(payload_dir)
        try:
            self._database.hold()
            board_id, known = self._database.write(
                "open the board",
                lambda connection: open_board(connection, roster=roster, payloads=self._payloads),
            )
            self._payloads.remember(board_id)
            removed = self._payloads.sweep(known)
        except BaseException:
            self._database.close()
            raise
        if removed:
            LOG.warning("removed %d unfinished payload files", removed)

    def close(self) -> None:
        """End all waits and release the database."""
        self._closed = True
        self.wake()
        self._database.close()

    def post(self, envelope: Envelope, payload: bytes = b"") -> int:
        """Put a message on the board; the same message again returns the same sequence.

        Raises: PeerError: reason "equivocation" for another header under the same key,
          "wrong_role", "wrong_roster", "bad_addressee", "too_large", "payload_mismatch", "quota".
          TransportError: database or disk.
        """
        return self.receive(envelope, lambda path: path.write_bytes(payload))

    def admit(self, envelope: Envelope) -> int | None:
        """What `post` checks before it takes any payload; the sequence where it is there already.

        Raises: PeerError, TransportError: as `post`.
        """
        header = envelope.header
        self._check(envelope)
        known, used = self._database.read(
            "look up a message",
            lambda connection: (
                known_sequence(connection, envelope),
                stored_bytes(connection, header.sender),
            ),
        )
        size = header.payload_bytes + len(envelope.header_bytes)
        if known is None and used + size > self._quota_bytes:
            raise envelope.fault(
                f"{header.sender} has {used} bytes on the board, {size} more would pass its "
                f"{self._quota_bytes}; raise the limit at the coordinator",
                reason="quota",
            )
        return known

    def receive(self, envelope: Envelope, fill: Callable[[Path], object]) -> int:
        """Like `post`, with a function that puts the payload into a file.

        It is not called where the message is on the board already or is refused.
        """
        known = self.admit(envelope)
        if known is not None:
            return known
        self._payloads.put(envelope, fill)
        return self._insert(envelope)

    def entries(
        self,
        reader: str,
        after: int,
        *,
        wait_s: float = 0.0,
        gone: Callable[[], bool] = lambda: False,
    ) -> list[BoardEntry]:
        """Messages that `reader` may see with a sequence above `after`, in order.

        At most `MAX_LIST_ENTRIES` and about `MAX_LIST_BYTES` at once; ask again after the last one.
        Waits up to `wait_s` seconds (at most `MAX_WAIT_S`) for the first; returns early, with
        nothing, where the board closes or `gone` turns true and `wake` is called. Asking for what
        comes after a message says that it was read.

        Raises: PeerError: the reader is not in the roster. TransportError: database.
        """
        self.roster.party(reader)
        # The caller may name any 64-bit number; the database counts in 63 bits.
        after = min(after, LARGEST_SEQUENCE)
        deadline = time.monotonic() + min(max(wait_s, 0.0), MAX_WAIT_S)
        with self._news:
            self._read_to[reader] = max(after, self._read_to.get(reader, 0))
            self._news.notify_all()
        while True:
            found = self._select(reader, after)
            if found:
                return found
            with self._news:
                # A message that came since the query has raised `_newest` and is not missed.
                woken = self._news.wait_for(
                    lambda: self._newest[reader] > after or self._closed or gone(),
                    timeout=max(0.0, deadline - time.monotonic()),
                )
                if not woken or self._closed or gone():
                    return []

    def visible(
        self, reader: str, after: int, *, wait_s: float = 0.0
    ) -> list[tuple[int, Envelope]]:
        """Like `entries`, with the envelopes parsed and their signatures checked again."""
        return [
            (
                entry.sequence,
                parse_envelope(entry.header_bytes, entry.signature, roster=self.roster),
            )
            for entry in self.entries(reader, after, wait_s=wait_s)
        ]

    def wait_until_read(
        self,
        sequence: int,
        *,
        timeout_s: float,
        expected: Collection[str] = (),
        without: Collection[str] = (),
    ) -> tuple[str, ...]:
        """Wait until everybody who reads this board has read `sequence`.

        Args: expected: parties that will come although they have not read since the board was
            opened, as after a restart. without: parties that nobody waits for.
        Returns: the parties that have not, after `timeout_s` seconds; empty where all have.
        """

        def behind() -> tuple[str, ...]:
            awaited = sorted({*expected, *self._read_to} - {self.roster.coordinator.id, *without})
            return tuple(party for party in awaited if self._read_to.get(party, 0) < sequence)

        with self._news:
            self._news.wait_for(lambda: not behind() or self._closed, timeout=timeout_s)
            return behind()

    def check(self) -> None:
        """Whether the database answers. Raises: TransportError: it does not."""
        query = sa.select(metadata.c.name).limit(1)
        self._database.read(
            "ask the board's database", lambda connection: connection.execute(query).all()
        )

    def wake(self) -> None:
        """Let all waits look whether their caller is gone."""
        with self._news:
            self._news.notify_all()

    def payload(self, message_hash: str) -> bytes:
        """The whole payload of a message on the board; for the coordinator itself.

        Raises: PeerError: no such message (reason "not_found"). TransportError: the file is
          missing or damaged.
        """
        stored = self._known(message_hash)
        payload = b"".join(self._payloads.read(message_hash))
        if len(payload) != stored.payload_bytes or sha256_hex(payload) != stored.payload_sha256:
            raise TransportError(
                f"payload {message_hash[:16]}... of {stored.sender} was damaged on disk; restore "
                "the folder of the board from its backup"
            )
        return payload

    def payload_chunks(self, message_hash: str, *, reader: str, offset: int) -> Iterator[bytes]:
        """The payload from `offset` on, for a reader who may see the message.

        Raises: PeerError: no such message for this reader (reason "not_found": whether it exists
          is not said), or an offset past the end (reason "malformed").
        """
        stored = self._known(message_hash, reader)
        if not 0 <= offset <= stored.payload_bytes:
            raise PeerError(
                f"offset {offset} of a payload with {stored.payload_bytes} bytes", peer=reader
            )
        return self._payloads.read(message_hash, offset=offset)

    def _check(self, envelope: Envelope) -> None:
        """The checks of a foreign message, for our own too, and whether its addressee may be."""
        header = envelope.header
        parse_envelope(envelope.header_bytes, envelope.signature, roster=self.roster)
        if header.to and header.to not in self._newest:
            raise envelope.fault(
                f"{header.kind} of {header.sender} goes to {header.to!r}, who is not in the roster",
                reason="bad_addressee",
            )
        if envelope.kind.rules.needs_addressee and not header.to:
            raise envelope.fault(
                f"{header.kind} of {header.sender} needs an addressee and names none",
                reason="bad_addressee",
            )

    def _select(self, reader: str, after: int) -> list[BoardEntry]:
        query = (
            sa.select(messages.c.sequence, messages.c.header, messages.c.signature)
            .join(readers)
            .where(readers.c.reader == reader, readers.c.sequence > after)
            .order_by(readers.c.sequence)
            .limit(MAX_LIST_ENTRIES)
        )

        def first(connection: Connection) -> list[BoardEntry]:
            found: list[BoardEntry] = []
            size = 0
            for sequence, header, signature in connection.execute(query):
                size += len(header)
                if found and size > MAX_LIST_BYTES:
                    break
                found.append(BoardEntry(sequence, header, signature))
            return found

        return self._database.read("list messages", first)

    def _known(self, message_hash: str, reader: str | None = None) -> sa.Row[Any, Any, Any]:
        """Sender, `payload_sha256` and `payload_bytes` of a message that `reader` may see."""
        query = sa.select(
            messages.c.sender, messages.c.payload_sha256, messages.c.payload_bytes
        ).where(messages.c.message_hash == message_hash)
        if reader is not None:
            query = query.join(readers).where(readers.c.reader == reader)
        stored = self._database.read(
            "look up a message", lambda connection: connection.execute(query).one_or_none()
        )
        if stored is None:
            raise PeerError(
                f"message {message_hash[:16]}... is not on the board, or not for this reader",
                reason="not_found",
                peer=reader,
            )
        return stored

    def _insert(self, envelope: Envelope) -> int:
        header = envelope.header
        audience = [
            party.id
            for party in self.roster.parties
            if may_read(
                kind=envelope.kind,
                sender=header.sender,
                to=header.to,
                reader=party.id,
                role=party.role,
            )
        ]

        def insert(connection: Connection) -> int:
            known = known_sequence(connection, envelope)
            if known is not None:
                return known
            return insert_message(connection, envelope, audience, self._clock())

        try:
            sequence = self._database.write("store a message", insert)
        except PeerError:
            self._payloads.discard(envelope.message_hash)
            raise
        # Also where it was there already: a commit whose answer was lost has woken nobody yet.
        with self._news:
            for reader in audience:
                self._newest[reader] = max(self._newest[reader], sequence)
            self._news.notify_all()
        LOG.info(
            "message %d: %s of %s, round %d, %d bytes",
            sequence,
            header.kind,
            header.sender,
            header.round_id,
            header.payload_bytes,
        )
        return sequence
