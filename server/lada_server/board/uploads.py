"""Payloads that have not arrived whole yet, kept so that a broken upload goes on where it was.

A party's unfinished uploads are files in a folder of its own; few at a time, so a party that
begins much and ends nothing cannot fill the disk. What is here counts for nothing until the
store has checked length and hash and taken it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.limits import CHUNK_BYTES
from lada_secure.errors import PeerError, TransportError

UNFINISHED_PER_PARTY: Final = 4
# A study that was given up leaves its last pieces behind.
FORGOTTEN_AFTER_S: Final = 14 * 24 * 3600.0


class Uploads:
    """The folder of unfinished uploads. Thread-safe; one process holds it.

    Raises: TransportError: the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._running: dict[Path, Upload] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.glob("*/*"):
                if path.stat().st_mtime < time.time() - FORGOTTEN_AFTER_S:
                    path.unlink()
        except OSError as error:
            raise TransportError(f"{folder}: cannot be used: {error.strerror}") from error

    def progress(self, party: str, message_hash: str) -> int:
        """Bytes that have arrived. An upload of this message that still runs is ended.

        Ended, because bytes of a dead connection may still lie in our buffers: without that the
        answer could be out of date before it arrives.
        """
        path = self._path(party, message_hash)
        with self._lock:
            running = self._running.pop(path, None)
        if running is not None:
            running.stop()
        return _size(path)

    def begin(self, party: str, envelope: Envelope) -> Upload:
        """Receive the payload of this message; takes over from an upload that still runs."""
        path = self._path(party, envelope.message_hash)
        upload = Upload(self, path, envelope)
        with self._lock:
            before = self._running.get(path)
            self._running[path] = upload
            self._drop_oldest(path)
        if before is not None:
            before.stop()
        upload.received_bytes = _size(path)
        return upload

    def forget(self, party: str, message_hash: str) -> None:
        """Drop what is left of an upload whose message is on the board by now."""
        path = self._path(party, message_hash)
        with self._lock:
            if path in self._running:
                return
        with contextlib.suppress(OSError):
            path.unlink()

    def _path(self, party: str, message_hash: str) -> Path:
        return self._folder / party / message_hash

    def _drop_oldest(self, keep: Path) -> None:
        try:
            keep.parent.mkdir(exist_ok=True, mode=0o700)
            others = [one for one in keep.parent.iterdir() if one not in self._running]
            others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
            for path in others[UNFINISHED_PER_PARTY - 1 :]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise TransportError(f"{keep.parent}: cannot be used: {error.strerror}") from error

    def _ended(self, upload: Upload) -> None:
        with self._lock:
            if self._running.get(upload.path) is upload:
                del self._running[upload.path]


class Upload:
    """One payload on its way in. Leaving the block keeps what has arrived."""

    def __init__(self, owner: Uploads, path: Path, envelope: Envelope) -> None:
        self.path = path
        self._owner = owner
        self._header = envelope.header
        self._lock = threading.Lock()
        self._stopped = False
        self._file: BinaryIO | None = None
        self.received_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._owner._ended(self)

    def stop(self) -> None:
        """Take no more bytes. Idempotent."""
        with self._lock:
            self._stopped = True
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def write(self, offset: int, chunk: bytes) -> None:
        """Append a chunk; an offset of 0 starts over.

        Raises: PeerError: another offset than what has arrived, more bytes than announced, or
          another connection has taken over (reason "superseded"). TransportError: disk.
        """
        with self._lock:
            if self._stopped:
                raise PeerError(
                    f"upload of {self._header.kind} goes on over another connection",
                    reason="superseded",
                    peer=self._header.sender,
                )
            if self._file is None and offset == 0:
                self.received_bytes = 0
            if offset != self.received_bytes:
                raise PeerError(
                    f"expected the chunk at offset {self.received_bytes}, got {offset}",
                    peer=self._header.sender,
                )
            if offset + len(chunk) > self._header.payload_bytes:
                raise PeerError(
                    f"{self._header.kind} of {self._header.sender}: payload is longer than the "
                    f"{self._header.payload_bytes} bytes that its header announces",
                    reason="too_large",
                    peer=self._header.sender,
                    round_id=self._header.round_id,
                )
            try:
                if self._file is None:
                    self._file = self.path.open("ab" if offset else "wb", buffering=0)
                if self._file.write(chunk) != len(chunk):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise TransportError(
                    f"{self.path.parent}: cannot store a part of a payload: {error.strerror}; free "
                    "some space, the sender tries again"
                ) from error
            self.received_bytes += len(chunk)

    def read(self) -> Iterator[bytes]:
        """What has arrived, in chunks."""
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise TransportError(f"{self.path}: cannot be read: {error.strerror}") from error

    def discard(self) -> None:
        """Forget what has arrived: it is in the store, or was not what its header announces."""
        self.stop()
        with contextlib.suppress(OSError):
            self.path.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
