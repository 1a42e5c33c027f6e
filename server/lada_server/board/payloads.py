"""Payloads on disk: one file per message, complete or absent, found by the message's hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.limits import CHUNK_BYTES
from lada_secure.errors import ParameterError, PeerError, TransportError
from lada_server.board.storage_errors import StorageUnavailable

_LOCK_FILE: Final = "lock"
_INCOMING: Final = "incoming"
# Holds the id of the board whose payloads these are.
_BOARD_FILE: Final = "board"
_ID_BYTES: Final = 64


class PayloadFiles:
    """The folder of payloads. One process holds it at a time.

    Raises: ParameterError: another process holds it. TransportError: the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / _INCOMING
        try:
            self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / _LOCK_FILE).open("ab")
        except OSError as error:
            raise TransportError(f"{folder}: cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ParameterError(
                f"{folder} is in use by another coordinator process; stop it first, or give this "
                "one a state_dir of its own"
            ) from error

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

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
        missing = [one for one in message_hashes if not self._path(one).is_file()]
        if missing:
            raise TransportError(
                f"{self._folder}: the payloads of {len(missing)} messages are missing, the first "
                f"is {missing[0][:16]}...; restore database and state_dir from the same backup"
            )

    def remember(self, board_id: str) -> None:
        """Note whose payloads these are; durable. Raises: StorageUnavailable: disk."""
        if self._board_id() == board_id:
            return
        part = self._incoming / _BOARD_FILE
        try:
            with part.open("wb") as file:
                file.write(board_id.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
            part.rename(self._folder / _BOARD_FILE)
            _sync_folder(self._folder)
        except OSError as error:
            raise StorageUnavailable(
                f"{self._folder}: cannot be written: {error.strerror}; free some space"
            ) from error

    def sweep(self, is_known: Callable[[str], bool]) -> int:
        """Delete what an interrupted upload left behind; returns the number of files."""
        stale = [path for path in self._incoming.iterdir() if path.is_file()]
        stale += [path for path in self._kept() if not is_known(path.name)]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def begin(self, envelope: Envelope) -> IncomingPayload:
        """Start to receive the payload that this header announces."""
        return IncomingPayload(envelope, self._incoming, self._path(envelope.message_hash))

    def discard(self, message_hash: str) -> None:
        """Delete the payload of a message that was refused after all."""
        self._path(message_hash).unlink(missing_ok=True)

    def read(self, message_hash: str, *, offset: int = 0) -> Iterator[bytes]:
        """The payload from `offset` on, in chunks of at most `CHUNK_BYTES`.

        Raises: TransportError: the file is missing or cannot be read.
        """
        try:
            with self._path(message_hash).open("rb") as file:
                file.seek(offset)
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise TransportError(
                f"payload {message_hash[:16]}... cannot be read: {error.strerror}; restore the "
                "folder of the board from its backup"
            ) from error

    def _kept(self) -> Iterator[Path]:
        """All complete payloads."""
        for group in self._folder.iterdir():
            if group.is_dir() and group != self._incoming:
                yield from group.iterdir()

    def _board_id(self) -> str | None:
        path = self._folder / _BOARD_FILE
        try:
            return path.read_bytes()[:_ID_BYTES].decode("ascii", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TransportError(f"{path}: cannot be read: {error.strerror}") from error

    def _path(self, message_hash: str) -> Path:
        return self._folder / message_hash[:2] / message_hash


class IncomingPayload:
    """A payload on its way in; leaving the block without `finish` removes it."""

    def __init__(self, envelope: Envelope, incoming: Path, target: Path) -> None:
        self._header = envelope.header
        self._path = incoming / f"{target.name}.{secrets.token_hex(8)}"
        self._target = target
        self._digest = hashlib.sha256()
        self._received = 0
        self._file: BinaryIO

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise self._disk_error(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            # Buffered bytes did not fit either; the file goes in any case.
            if error is None:
                raise self._disk_error(failure) from failure
        finally:
            self._path.unlink(missing_ok=True)

    @property
    def received_bytes(self) -> int:
        """Bytes so far; the offset that the next chunk must have."""
        return self._received

    def write(self, chunk: bytes) -> None:
        """Append a chunk.

        Raises: PeerError: more bytes than announced (reason "too_large"). TransportError: disk.
        """
        if self._received + len(chunk) > self._header.payload_bytes:
            raise PeerError(
                f"{self._header.kind} of {self._header.sender}: payload is longer than the "
                f"{self._header.payload_bytes} bytes that its header announces",
                reason="too_large",
                peer=self._header.sender,
                round_id=self._header.round_id,
            )
        try:
            self._file.write(chunk)
        except OSError as error:
            raise self._disk_error(error) from error
        self._digest.update(chunk)
        self._received += len(chunk)

    def finish(self) -> None:
        """Check length and hash, and put the file in its place, durably.

        Raises: PeerError: another length or hash than announced (reason "payload_mismatch").
        """
        if (
            self._received != self._header.payload_bytes
            or self._digest.hexdigest() != self._header.payload_sha256
        ):
            raise PeerError(
                f"{self._header.kind} of {self._header.sender}: header announces "
                f"{self._header.payload_bytes} bytes with SHA-256 "
                f"{self._header.payload_sha256[:16]}..., got {self._received} bytes with "
                f"{self._digest.hexdigest()[:16]}...",
                reason="payload_mismatch",
                peer=self._header.sender,
                round_id=self._header.round_id,
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._target.parent.mkdir(exist_ok=True, mode=0o700)
            self._path.rename(self._target)
            # The receipt promises the payload, so its name must survive a power cut as well.
            _sync_folder(self._target.parent)
        except OSError as error:
            raise self._disk_error(error) from error

    def _disk_error(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(
            f"{self._target.parent.parent}: cannot store a payload of "
            f"{self._header.payload_bytes} bytes: {error.strerror}; free some space, the sender "
            "tries again"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
