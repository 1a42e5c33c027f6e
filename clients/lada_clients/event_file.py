"""The event file of a dialling party: progress for its operator, flushed line by line."""

from __future__ import annotations

import time
from pathlib import Path

from lada_protocol.events import EventLog
from lada_secure.errors import TransportError

EVENTS_FILE = "events.jsonl"


def open_event_log(party: str, state_dir: Path) -> EventLog:
    """An event log that appends to `state_dir`/events.jsonl.

    Raises: TransportError: the folder cannot be written.
    """
    path = state_dir / EVENTS_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise TransportError(f"cannot write {path}: {error.strerror}") from error

    def write(line: bytes) -> None:
        file.write(line)

    return EventLog(party=party, sink=write, clock=time.time)
