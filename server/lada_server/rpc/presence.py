"""Who calls, how often and what was refused: for the status file, the metrics and nothing else.

Ids and counts only. The counts start at zero with the process; what a party has said stands on
the board.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

# A site that waits calls at least once in this time, its long poll and its longest pause included.
AWAY_AFTER_S = 60.0


@dataclass(slots=True, kw_only=True)
class PartyActivity:
    """What one party did since the coordinator's process started.

    Args: last_call_s: end of its last call, or now while one is open; seconds since the epoch, 0
      for never. refusals: by error code.
    """

    last_call_s: float = 0.0
    open_calls: int = 0
    calls: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class Presence:
    """Counts calls by party. Thread-safe.

    Args: parties: ids of the roster. clock: seconds since the epoch.
    """

    def __init__(self, parties: Iterable[str], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._parties = {party: PartyActivity() for party in parties}
        self._strangers: Counter[str] = Counter()

    @contextmanager
    def call(self, party: str) -> Iterator[None]:
        """A call of this party that was let in, until it ends, well or not."""
        activity = self._parties[party]
        with self._lock:
            activity.calls += 1
            activity.open_calls += 1
        try:
            yield
        finally:
            with self._lock:
                activity.open_calls -= 1
                activity.last_call_s = self._clock()

    def moved(self, party: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Bytes of payload went from or to this party."""
        with self._lock:
            self._parties[party].up_bytes += up_bytes
            self._parties[party].down_bytes += down_bytes

    def refused(self, party: str | None, reason: str) -> None:
        """A call was refused; `party` None where nobody of the roster made it."""
        with self._lock:
            activity = self._parties.get(party or "")
            counts = self._strangers if activity is None else activity.refusals
            counts[reason] = counts.get(reason, 0) + 1

    def parties(self) -> dict[str, PartyActivity]:
        """What every party did, by id."""
        with self._lock:
            now = self._clock()
            return {
                party: replace(
                    activity,
                    last_call_s=now if activity.open_calls else activity.last_call_s,
                    refusals=dict(activity.refusals),
                )
                for party, activity in self._parties.items()
            }

    def strangers(self) -> dict[str, int]:
        """Refused calls of callers who are not in the roster, by error code."""
        with self._lock:
            return dict(self._strangers)
