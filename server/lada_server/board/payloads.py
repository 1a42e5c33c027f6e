"""Payloads on disk: one file per message, complete or absent, found by the message's hash."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.limits import CHUNK_BYTES
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import read_if_there, replace_file, sync
from lada_server.board.storage_errors import StorageUnavailable, disk_errors

_INCOMING: Final = "incoming"
# Holds the id of the board whose payloads these are.
_BOARD_FILE: Final = "board"
_ID_BYTES: Final = 64


class PayloadFiles:
    """The folder of payloads; whoever holds the board's database has it alone.

    Raises: TransportError: the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / _INCOMING
        with disk_errors(f"{folder}: cannot be used"):
            self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    def check_unused(self) -> None:
        """Check that no other board has left payloads here, before a new board takes the folder.

        Raises: ParameterError: it has. Starting anew would delete them.
        """
        if self._board_id() is not None or any(True for _ in self._kept()):
            raise ParameterError(
                f"{self._folder} holds the payloads of a board, but the database has no board: is "
                "it the right database? Restore it from its backup, or give a new board a "
                "state_dir of its own. Nothing was changed"
            )

    def check_complete(self, board_id: str, message_hashes: Iterable[str]) -> None:
        """Check that this is that board's folder and has the payload of every message.

        Raises: ParameterError: it is another board's. TransportError: payloads are missing.
        """
        known = self._board_id()
        if known is not None and known != board_id:
            raise ParameterError(
                f"{self._folder} holds the payloads of board {known[:8]}..., the database is of "
                f"board {board_id[:8]}...; name the state_dir and the database that belong "
                "together. Nothing was changed"
            )
        missing = [name for name in message_hashes if not self._path(name).is_file()]
        if missing:
            raise TransportError(
                f"{self._folder}: the payloads of {len(missing)} messages are missing, the first "
                f"is {missing[0][:16]}...; restore database and state_dir from the same backup"
            )

    def remember(self, board_id: str) -> None:
        """Note whose payloads these are; durable. Raises: StorageUnavailable: disk."""
        if self._board_id() == board_id:
            return
        cannot = f"{self._folder}: cannot be written"
        with disk_errors(cannot, advice="free some space", refusal=StorageUnavailable):
            replace_file(self._folder / _BOARD_FILE, board_id.encode("ascii"))
            sync(self._folder)

    def sweep(self, message_hashes: Container[str]) -> int:
        """Delete what an interrupted upload left behind; returns the number of files."""
        stale = [path for path in self._incoming.iterdir() if path.is_file()]
        stale += [path for path in self._kept() if path.name not in message_hashes]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def put(self, envelope: Envelope, fill: Callable[[Path], object]) -> None:
        """Let `fill` put the payload that this header announces into a file, and keep it, durably.

        Raises: PeerError: another length or hash than announced (reason "payload_mismatch").
          StorageUnavailable: disk.
        """
        target = self._path(envelope.message_hash)
        part = self._incoming / f"{target.name}.{secrets.token_hex(8)}"
        size = envelope.header.payload_bytes
        with disk_errors(
            f"{self._folder}: cannot store a payload of {size} bytes",
            advice="free some space, the sender tries again",
            refusal=StorageUnavailable,
        ):
            try:
                fill(part)
                _check(part, envelope)
                target.parent.mkdir(exist_ok=True, mode=0o700)
                sync(part)
                part.rename(target)
                # The receipt promises the payload, so its name must survive a power cut as well.
                sync(target.parent)
            finally:
                part.unlink(missing_ok=True)

    def discard(self, message_hash: str) -> None:
        """Delete the payload of a message that was refused after all."""
        self._path(message_hash).unlink(missing_ok=True)

    def read(self, message_hash: str, *, offset: int = 0) -> Iterator[bytes]:
        """The payload from `offset` on, in chunks of at most `CHUNK_BYTES`.

        Raises: TransportError: the file is missing or cannot be read.
        """
        path, cannot = self._path(message_hash), f"payload {message_hash[:16]}... cannot be read"
        advice = "restore the folder of the board from its backup"
        with disk_errors(cannot, advice=advice), path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def _kept(self) -> Iterator[Path]:
        """All complete payloads."""
        return (path for path in self._folder.glob("*/*") if path.parent != self._incoming)

    def _board_id(self) -> str | None:
        raw = read_if_there(self._folder / _BOARD_FILE)
        return None if raw is None else raw[:_ID_BYTES].decode("ascii", "replace")

    def _path(self, message_hash: str) -> Path:
        return self._folder / message_hash[:2] / message_hash


def _check(path: Path, envelope: Envelope) -> None:
    """Compare a file with what a header announces.

    Raises: PeerError: another length or hash (reason "payload_mismatch"). OSError: disk.
    """
    header = envelope.header
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if (size, digest) != (header.payload_bytes, header.payload_sha256):
        raise envelope.fault(
            f"{header.kind} of {header.sender}: header announces {header.payload_bytes} bytes "
            f"with SHA-256 {header.payload_sha256[:16]}..., got {size} bytes with "
            f"{digest[:16]}...",
            reason="payload_mismatch",
        )
