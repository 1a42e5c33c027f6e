"""Payloads that have not arrived whole yet, kept so that a broken upload goes on where it was.

A party's unfinished uploads are files in a folder of its own; few at a time, so a party that
begins much and ends nothing cannot fill the disk. What is here counts for nothing until the
store has taken it over and checked length and hash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from lada_protocol.wire.envelope import Envelope, Header
from lada_secure.errors import PeerError, TransportError
from lada_server.board.payloads import check_payload

UNFINISHED_PER_PARTY: Final = 4
# A study that was given up leaves its last pieces behind.
FORGOTTEN_AFTER_S: Final = 14 * 24 * 3600.0


class Uploads:
    """The folder of unfinished uploads, on the disk of the payloads. Thread-safe.

    One process holds it. Raises: TransportError: the disk refuses.
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
        path = self._folder / party / message_hash
        with self._lock:
            running = self._running.pop(path, None)
        if running is not None:
            running.stop()
        return _size(path)

    @contextlib.contextmanager
    def begin(self, party: str, envelope: Envelope) -> Iterator[Upload]:
        """Receive the payload of this message; takes over from an upload that still runs.

        The end of the block keeps what has arrived.
        """
        path = self._folder / party / envelope.message_hash
        upload = Upload(path, envelope.header)
        with self._lock:
            self._drop_oldest(path)
            before = self._running.get(path)
            self._running[path] = upload
        if before is not None:
            before.stop()
        upload.received_bytes = _size(path)
        try:
            yield upload
        finally:
            upload.stop()
            with self._lock:
                if self._running.get(path) is upload:
                    del self._running[path]

    def _drop_oldest(self, keep: Path) -> None:
        try:
            keep.parent.mkdir(exist_ok=True, mode=0o700)
            others = [
                path for path in keep.parent.iterdir() if path != keep and path not in self._running
            ]
            others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in others[UNFINISHED_PER_PARTY - 1 :]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise TransportError(f"{keep.parent}: cannot be used: {error.strerror}") from error


class Upload:
    """One payload on its way in."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.received_bytes = 0
        self._header = header
        self._lock = threading.Lock()
        self._stopped = False
        self._file: BinaryIO | None = None

    def stop(self) -> None:
        """Take no more bytes. Idempotent."""
        with self._lock:
            self._stopped = True
            self._close()

    def write(self, offset: int, chunk: bytes) -> None:
        """Append a chunk; an offset of 0 starts over.

        Raises: PeerError: another offset than what has arrived, or another connection has taken
          over (reason "superseded"). TransportError: disk.
        """
        with self._lock:
            self._check_ours()
            if self._file is None and offset == 0:
                self.received_bytes = 0
            if offset != self.received_bytes:
                raise PeerError(
                    f"expected the chunk at offset {self.received_bytes}, got {offset}",
                    peer=self._header.sender,
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

    def check(self) -> None:
        """Compare what has arrived with what the header announces.

        Raises: PeerError: another length or hash (reason "payload_mismatch"). TransportError: disk.
        """
        try:
            check_payload(self.path, self._header)
        except OSError as error:
            raise TransportError(f"{self.path}: cannot be read: {error.strerror}") from error

    def move(self, target: Path) -> None:
        """Hand over what has arrived. From now on no other connection can change it.

        Raises: PeerError: another connection has taken over (reason "superseded"). OSError: disk.
        """
        with self._lock:
            self._check_ours()
            self._close()
            self.path.rename(target)

    def discard(self) -> None:
        """Forget what has arrived: the message is on the board."""
        self.stop()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _check_ours(self) -> None:
        if self._stopped:
            raise PeerError(
                f"upload of {self._header.kind} goes on over another connection",
                reason="superseded",
                peer=self._header.sender,
            )

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
