"""The event file of a dialling party: progress for its operator, flushed line by line."""

from __future__ import annotations

import time
from pathlib import Path

from lada_protocol.events import EventLog
from lada_secure.storage.line_file import open_line_file

EVENTS_FILE = "events.jsonl"


def open_event_log(party: str, state_dir: Path) -> EventLog:
    """An event log that appends to `state_dir`/events.jsonl.

    Raises: TransportError: the file cannot be opened.
    """
    return EventLog(party=party, sink=open_line_file(state_dir / EVENTS_FILE), clock=time.time)
