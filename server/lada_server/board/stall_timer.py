"""Waiting out a database that restarts or a disk that is full, visibly and not for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from lada_protocol.events import WAITING_INTERVAL_S, EventLog, Waiting
from lada_server.board.storage_errors import StorageUnavailable

LOG = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True, kw_only=True)
class StorageStallTimer:
    """Tries the coordinator's own work on its board again while the storage refuses.

    Args: limit_s: how long in one go; after it the refusal is raised, and a restart of the
      coordinator goes on from the same place.
    """

    events: EventLog
    limit_s: float
    _interrupted: bool = False

    def retry(self, action: Callable[[], T], *, round_id: int, step: str) -> T:
        """Carry out an action that may be repeated; round and step are for the live view.

        Raises: StorageUnavailable: for longer than `limit_s`. Anything else at once.
        """
        began, said = time.monotonic(), float("-inf")
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return action()
            except StorageUnavailable as error:
                now = time.monotonic()
                if now - began > self.limit_s:
                    raise
                self._interrupted = True
                if now - said >= WAITING_INTERVAL_S:
                    said = now
                    LOG.warning("waiting for the storage: %s", error)
                    self.events.write(
                        Waiting,
                        round_id=round_id,
                        step=step,
                        awaited=("storage",),
                        waited_s=round(now - began, 3),
                        because=str(error)[:300],
                    )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def was_interrupted(self) -> bool:
        """Whether there was anything to wait out since the last call."""
        found, self._interrupted = self._interrupted, False
        return found
