"""Progress events: what every process tells its operator, one canonical JSON object a line.

Events hold ids, counts, seconds and epsilon; never tensors, records, keys or shares. The line
`accuracy` is measured on private records: it stays in the party's own folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lada_protocol.tasks import Wait
from lada_secure.canonical import Json, canonical_json

WAITING_INTERVAL_S = 10.0


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


@dataclass(slots=True)
class Patience:
    """How long a party has waited for the same thing, and when it last said so."""

    _task: Wait | None = None
    _since_s: float = 0.0
    _said_s: float = 0.0

    def wait(self, task: Wait, events: EventLog) -> float:
        """Note one more look at an unchanged wait; says so at once, then at every interval.

        Returns: seconds waited for this so far.
        """
        now = events.clock()
        fresh = self._task is None or (
            self._task.step,
            self._task.round_id,
            self._task.awaited,
        ) != (
            task.step,
            task.round_id,
            task.awaited,
        )
        if fresh:
            self._since_s = now
        if fresh or now - self._said_s >= WAITING_INTERVAL_S:
            events.waiting(task, since_s=now - self._since_s)
            self._said_s = now
        self._task = task
        return now - self._since_s
