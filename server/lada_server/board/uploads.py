"""Payloads that have not arrived whole yet, kept so that a broken upload goes on where it was.

A party's unfinished uploads are files in a folder of its own; few at a time, so a party that
begins much and ends nothing cannot fill the disk. What is here counts for nothing until the
store has taken it over and checked length and hash.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lada_protocol.wire.envelope import Envelope
from lada_server.board.storage_errors import disk_errors

UNFINISHED_PER_PARTY: Final = 4
# A study that was given up leaves its last pieces behind.
FORGOTTEN_AFTER_S: Final = 14 * 24 * 3600.0


class Uploads:
    """The folder of unfinished uploads, best on the disk of the payloads. Thread-safe.

    One process holds it. Raises: TransportError: the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._running: dict[Path, Upload] = {}
        with disk_errors(f"{folder}: cannot be used"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.glob("*/*"):
                if path.stat().st_mtime < time.time() - FORGOTTEN_AFTER_S:
                    path.unlink()

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
        upload = Upload(path, envelope)
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
        with disk_errors(f"{keep.parent}: cannot be used"):
            keep.parent.mkdir(exist_ok=True, mode=0o700)
            others = [
                path for path in keep.parent.iterdir() if path != keep and path not in self._running
            ]
            others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in others[UNFINISHED_PER_PARTY - 1 :]:
                path.unlink(missing_ok=True)


class Upload:
    """One payload on its way in; whoever writes it sees to the order of its chunks."""

    def __init__(self, path: Path, envelope: Envelope) -> None:
        self.path = path
        self.received_bytes = 0
        self._envelope = envelope
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Take no more bytes. Idempotent."""
        with self._lock:
            self._stopped = True

    def write(self, offset: int, chunk: bytes) -> None:
        """Append a chunk; an offset of 0 starts over.

        Raises: PeerError: another connection has taken over (reason "superseded").
          TransportError: disk.
        """
        cannot = f"{self.path.parent}: cannot store a part of a payload"
        with self._lock, disk_errors(cannot, advice="free some space, the sender tries again"):
            self._check_ours()
            with self.path.open("ab" if offset else "wb") as file:
                file.write(chunk)
            self.received_bytes = offset + len(chunk)

    def move(self, target: Path) -> None:
        """Hand over what has arrived. From now on no other connection can change it.

        Raises: PeerError: another connection has taken over (reason "superseded"). OSError: disk.
        """
        with self._lock:
            self._check_ours()
            # Copies where the folders lie on two disks, as mounted volumes do.
            shutil.move(self.path, target)

    def discard(self) -> None:
        """Forget what has arrived: the message is on the board."""
        self.stop()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _check_ours(self) -> None:
        if self._stopped:
            raise self._envelope.fault(
                f"upload of {self._envelope.kind} goes on over another connection",
                reason="superseded",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
