"""Messages written to disk before they are sent, so that a retry sends the same bytes.

Sealing and encryption are randomised: a message made twice would differ, and two different
messages in one slot look like a lie to every reader.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_clients.net.study_folder import study_folder
from lada_protocol.identity.roster import Roster
from lada_protocol.rounds.index import Slot, slot_of
from lada_protocol.wire.envelope import Envelope, envelope_from_line, envelope_to_line
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import TransportError

# As `write_atomically` names its parts: the number is that of the writing process.
_PART: Final = re.compile(r"\..+\.([1-9][0-9]{0,9})")


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part.

    Raises: TransportError: disk full, read-only, not permitted.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TransportError(f"cannot write {path}: {error.strerror}") from error


def sweep_parts(folder: Path) -> int:
    """Delete what killed processes had not finished to write under a folder.

    Parts of a process that lives stay, unless it is this one, which has written nothing yet: in a
    container every process of a party may have the same number.

    Returns: how many there were. Raises: TransportError: the disk refuses.
    """
    found = 0
    try:
        for path in folder.rglob(".*"):
            match = _PART.fullmatch(path.name)
            if match is not None and not _lives(int(match[1])) and path.is_file():
                path.unlink(missing_ok=True)
                found += 1
    except OSError as error:
        raise TransportError(f"cannot clean up {folder}: {error.strerror}") from error
    return found


def _lives(process_id: int) -> bool:
    """Whether another process of this number runs."""
    if process_id == os.getpid():
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """One signed message per slot, in each study's folder; `folder` is the party's state folder."""

    folder: Path
    roster: Roster

    def load(self, slot: Slot, *, study_id: str, plan_hash: str) -> tuple[Envelope, bytes] | None:
        """The message once written for a slot, with its payload; None if there is none."""
        base = self._base(slot, study_id, plan_hash)
        try:
            line = base.with_suffix(".message").read_bytes()
            payload = base.with_suffix(".payload").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TransportError(f"cannot read {base}: {error.strerror}") from error
        return envelope_from_line(line, roster=self.roster), payload

    def store(self, envelope: Envelope, payload: bytes) -> None:
        """Keep a message. The payload is written first: the message file makes it count."""
        head = envelope.header
        base = self._base(slot_of(envelope), head.study_id, head.plan_hash)
        write_atomically(base.with_suffix(".payload"), payload)
        write_atomically(base.with_suffix(".message"), envelope_to_line(envelope))

    def _base(self, slot: Slot, study_id: str, plan_hash: str) -> Path:
        digest = sha256_hex(canonical_json([study_id, plan_hash, *slot]))[:32]
        study = study_folder(self.folder, study_id, plan_hash)
        return study / "outbox" / f"{slot.kind}-{slot.round_id}-{digest}"
