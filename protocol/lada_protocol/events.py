"""Progress events: what every process tells its operator, one canonical JSON object a line.

Events hold ids, counts, seconds and epsilon; never tensors, records, keys or shares. The line
`accuracy` is measured on private records: it stays in the party's own folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lada_protocol.rounds.tasks import Wait
from lada_secure.canonical import Json, canonical_json

WAITING_INTERVAL_S = 10.0
# Between two looks of a process that runs. In a longer gap it was stopped, and nobody could answer.
LONGEST_GAP_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Writes events of one party to a sink (a file, a test's list).

    Args: sink: takes one line including the line feed. clock: seconds since the epoch.
    """

    party: str
    sink: Callable[[bytes], None]
    clock: Callable[[], float]

    def write(self, event: str, *, round_id: int, step: str, **fields: Json) -> None:
        """Write one event."""
        line: dict[str, Json] = {
            "time_s": self.clock(),
            "party": self.party,
            "event": event,
            "round": round_id,
            "step": step,
            **fields,
        }
        self.sink(canonical_json(line) + b"\n")

    def waiting(self, task: Wait, *, since_s: float) -> None:
        """Say for whom this party waits, for how long already, and why."""
        fields: dict[str, Json] = {
            "for": list(task.parties),
            "since_s": round(since_s, 3),
            "because": f"{task.awaited} not here yet",
        }
        self.write("waiting", round_id=task.round_id, step=task.step, **fields)


@dataclass(slots=True, kw_only=True)
class StallTimer:
    """How long a party has waited for the same thing, and when it last said so.

    Args: clock: monotonic seconds. The wall clock may jump, and a jump must use up nobody's time.
    """

    clock: Callable[[], float]
    _task: Wait | None = None
    _waited_s: float = 0.0
    _looked_s: float = 0.0
    _said_s: float = 0.0

    def wait(self, task: Wait, events: EventLog) -> float:
        """Note one more look at an unchanged wait; says so at once, then at every interval.

        A gap of more than `LONGEST_GAP_S` between two looks counts as that much: a process that
        was suspended for an hour has not given anybody an hour to answer.

        Returns: seconds waited for this so far.
        """
        now = self.clock()
        fresh = self._task is None or not task.is_like(self._task)
        gap_s = 0.0 if fresh else min(now - self._looked_s, LONGEST_GAP_S)
        self._waited_s = 0.0 if fresh else self._waited_s + gap_s
        if fresh or now - self._said_s >= WAITING_INTERVAL_S:
            events.waiting(task, since_s=self._waited_s)
            self._said_s = now
        self._task, self._looked_s = task, now
        return self._waited_s
