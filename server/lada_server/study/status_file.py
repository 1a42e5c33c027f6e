"""A small file beside the board that says who is connected, renewed every few seconds.

It is what `lada server status` knows of a running process; everything else it reads from the
board and the event file, so it works while no process runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_server.rpc.limits import PartyActivity
from lada_server.rpc.service import RunningServer

LOG = logging.getLogger(__name__)

STATUS_FILE: Final = "presence.json"
INTERVAL_S: Final = 2.0
# A process that has not renewed its file for so long is stopped, killed or stuck.
STALE_AFTER_S: Final = 10.0


class KnownProcess(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    at_s: float
    listen: str
    parties: dict[str, PartyActivity]


def keep_status_file(path: Path, running: RunningServer) -> threading.Thread:
    """Write it now and every two seconds, in a thread, until the server stops; then it goes."""
    thread = threading.Thread(target=_keep, args=(path, running), name="status", daemon=True)
    thread.start()
    return thread


def _keep(path: Path, running: RunningServer) -> None:
    fresh = path.with_name(f".{path.name}")
    while True:
        known = KnownProcess(
            pid=os.getpid(),
            at_s=time.time(),
            listen=running.address,
            parties=running.gate.activity(),
        )
        try:
            fresh.write_text(known.model_dump_json(), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            # Telling is not worth a study: the disk's state shows in what matters.
            LOG.warning("cannot write %s: %s", path, error.strerror)
        if running.stopped.wait(INTERVAL_S):
            break
    path.unlink(missing_ok=True)
    # What a killed process, or a full disk, has left half written.
    fresh.unlink(missing_ok=True)


def read_status_file(path: Path, *, now_s: float) -> KnownProcess | None:
    """What a running process says; None where none runs."""
    try:
        known = KnownProcess.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return known if abs(now_s - known.at_s) < STALE_AFTER_S else None
