"""A small file beside the board that says who is connected, renewed every few seconds.

It is what `lada server status` knows of a running process; everything else it reads from the
board and the event file, so it works while no process runs.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_server.rpc.presence import PartyActivity, Presence

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFile:
    """Writes the file until told to stop.

    Args: path: of the file. listen: our address. clock: seconds since the epoch.
    """

    path: Path
    presence: Presence
    listen: str
    clock: Callable[[], float]

    def keep(self, stopped: threading.Event) -> threading.Thread:
        """Write now and every two seconds, in a thread; the file goes when it stops."""
        thread = threading.Thread(target=self._run, args=(stopped,), name="status", daemon=True)
        thread.start()
        return thread

    def _run(self, stopped: threading.Event) -> None:
        fresh = self.path.with_name(f".{self.path.name}")
        while True:
            known = KnownProcess(
                pid=os.getpid(),
                at_s=self.clock(),
                listen=self.listen,
                parties=self.presence.parties(),
            )
            try:
                fresh.write_text(known.model_dump_json(), encoding="utf-8")
                fresh.replace(self.path)
            except OSError as error:
                # Telling is not worth a study: the disk's state shows in what matters.
                LOG.warning("cannot write %s: %s", self.path, error.strerror)
            if stopped.wait(INTERVAL_S):
                break
        self.path.unlink(missing_ok=True)
        # What a killed process, or a full disk, has left half written.
        fresh.unlink(missing_ok=True)


def read_status_file(path: Path, *, now_s: float) -> KnownProcess | None:
    """What a running process says; None where none runs."""
    try:
        known = KnownProcess.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return known if abs(now_s - known.at_s) < STALE_AFTER_S else None
