"""A small file beside the board that says who is connected, renewed every few seconds.

It is what `lada server status` knows of a running process; everything else it reads from the
board and the event file, so it works while no process runs.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_server.rpc.presence import Presence

LOG = logging.getLogger(__name__)

STATUS_FILE: Final = "presence.json"
INTERVAL_S: Final = 2.0
# A process that has not renewed its file for so long is stopped, killed or stuck.
STALE_AFTER_S: Final = 10.0


class KnownParty(BaseModel):
    """What a process says of one party; see `PartyActivity`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    last_call_s: float
    open_calls: int
    calls: int
    up_bytes: int
    down_bytes: int
    refusals: dict[str, int]


class KnownProcess(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    at_s: float
    listen: str
    parties: dict[str, KnownParty]


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

        def run() -> None:
            self._write()
            while not stopped.wait(INTERVAL_S):
                self._write()
            self.path.unlink(missing_ok=True)
            # What a killed process, or a full disk, has left half written.
            self._fresh.unlink(missing_ok=True)

        thread = threading.Thread(target=run, name="status", daemon=True)
        thread.start()
        return thread

    @property
    def _fresh(self) -> Path:
        return self.path.with_name(f".{self.path.name}")

    def _write(self) -> None:
        known = {
            "pid": os.getpid(),
            "at_s": self.clock(),
            "listen": self.listen,
            "parties": {party: asdict(one) for party, one in self.presence.parties().items()},
        }
        try:
            self._fresh.write_text(json.dumps(known), encoding="utf-8")
            self._fresh.replace(self.path)
        except OSError as error:
            # Telling is not worth a study: the disk's state shows in what matters.
            LOG.warning("cannot write %s: %s", self.path, error.strerror)


def read_status_file(path: Path, *, now_s: float) -> KnownProcess | None:
    """What a running process says; None where none runs."""
    try:
        known = KnownProcess.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return known if abs(now_s - known.at_s) < STALE_AFTER_S else None
