"""The event file of a dialling party: progress for its operator, flushed line by line."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from lada_protocol.events import EventLog
from lada_secure.errors import TransportError

LOG = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


def open_event_log(party: str, state_dir: Path) -> EventLog:
    """An event log that appends to `state_dir`/events.jsonl.

    An event that does not fit on the disk is left out: telling is not worth a study.

    Raises: TransportError: the file cannot be opened.
    """
    path = state_dir / EVENTS_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise TransportError(f"cannot write {path}: {error.strerror}") from error

    torn = False

    def write(line: bytes) -> None:
        nonlocal torn
        if torn:
            # What fitted of the line before must not spoil this one.
            line = b"\n" + line
        try:
            torn = file.write(line) < len(line)
        except OSError as error:
            LOG.warning("cannot write %s: %s", path, error.strerror)

    return EventLog(party=party, sink=write, clock=time.time)
