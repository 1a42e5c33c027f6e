"""What was opened, ever: one sum per study, round and purpose, across restarts."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from lada_protocol.rounds.index import Attempt
from lada_secure.errors import PeerError, TransportError


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationRegistry:
    """One small file per opened sum, on disk before the key touches anything.

    Opening two different sums for one (round, purpose) would show their difference, which may be
    a single site. The file appears whole and under its name at once (a hard link fails where
    the name is taken), so neither two auditor processes nor a crash leave a doubtful note.
    """

    folder: Path

    def claim(self, study_id: str, attempt: Attempt, sum_message: str) -> None:
        """Note that this sum, and no other, is opened for its round and purpose.

        Claiming the same sum again is fine: it opens to the same numbers.

        Raises: PeerError(reason="already_opened"); TransportError: the note cannot be written.
        """
        path = self.folder / f"{study_id}-{attempt.round_id}-{attempt.purpose}"
        # Threads of one process claim too; the process id at the end is what `sweep_parts` reads.
        draft = self.folder / f".{path.name}.{secrets.token_hex(8)}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_durably(draft, sum_message.encode("ascii"))
            try:
                os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(self.folder)
        except FileExistsError:
            self._check_same(path, attempt, sum_message)
        except OSError as error:
            raise TransportError(f"cannot write {path}: {error.strerror}") from error

    def _check_same(self, path: Path, attempt: Attempt, sum_message: str) -> None:
        try:
            opened = path.read_bytes().decode("ascii", "replace")
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}") from error
        if opened != sum_message:
            raise PeerError(
                f"round {attempt.round_id}, {attempt.purpose}: another sum was opened before; "
                "two openings would reveal their difference",
                reason="already_opened",
                round_id=attempt.round_id,
            )


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
