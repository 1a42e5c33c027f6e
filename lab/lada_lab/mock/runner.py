"""Running the parties of a mock federation to their end, and collecting what they wrote."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live

from lada_lab.machine import PeakMemory
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.progress import PartyProgress, event_line
from lada_lab.mock.report import Allocation, parse_allocation
from lada_lab.mock.supervisor import Child, Supervisor, failure_text
from lada_lab.mock.view import live_table
from lada_protocol.events import Event, parse_event
from lada_secure.errors import ParameterError

TICK_S = 0.2
MAX_ALLOCATION_BYTES = 16 * 1024 * 1024


class Screen(Protocol):
    """Where progress goes while the parties run."""

    def show(self, parties: Sequence[PartyProgress], news: Sequence[Event]) -> None:
        """Called a few times a second with the latest state and the events since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the parties' run ended. `failure` is empty where all of them ended well."""

    failure: str
    wall_s: float
    peak_memory_bytes: int | None
    events: Mapping[str, tuple[Event, ...]]


@dataclass(slots=True, kw_only=True)
class EventTail:
    """Follows one event file that another process appends to."""

    path: Path
    _offset: int = field(default=0, init=False)

    def read_new(self) -> tuple[Event, ...]:
        """Events in the complete lines since the last call; nothing while there is no file.

        Raises: ParameterError: a complete line that is not an event.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return ()
        # The last line may still be in the writer's hands.
        complete, _, _ = chunk.rpartition(b"\n")
        if not complete:
            return ()
        self._offset += len(complete) + 1
        return tuple(parse_event(line) for line in complete.split(b"\n") if line.strip())


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Follows the event files of all parties."""

    tails: Mapping[str, EventTail]
    parties: dict[str, PartyProgress]
    events: dict[str, list[Event]]
    memory: PeakMemory = field(default_factory=PeakMemory)

    def read(self) -> tuple[Event, ...]:
        news: list[Event] = []
        for party, tail in self.tails.items():
            for event in tail.read_new():
                self.parties[party] = self.parties[party].after(event)
                self.events[party].append(event)
                news.append(event)
        return tuple(sorted(news, key=lambda event: event.time_s))


def run_parties(
    layout: RunLayout, children: Sequence[Child], supervisor: Supervisor, *, screen: Screen
) -> Outcome:
    """Start all parties and wait until all have ended, or until one has failed.

    The first failure ends the run: the others are stopped, because a party that lost a peer can
    only wait.
    """
    started = time.monotonic()
    watch = _Watch(
        tails={name: EventTail(path=one.events) for name, one in layout.parties.items()},
        parties={name: PartyProgress(party=name) for name in layout.parties},
        events={name: [] for name in layout.parties},
    )
    for child in children:
        supervisor.start(child)
    failure = ""
    while supervisor.running and not failure:
        time.sleep(TICK_S)
        failures = [failure_text(one) for one in supervisor.poll() if one.status != 0]
        failure = failures[0] if failures else ""
        watch.memory.sample(supervisor.groups.values())
        screen.show(tuple(watch.parties.values()), watch.read())
    supervisor.stop()
    screen.show(tuple(watch.parties.values()), watch.read())
    return Outcome(
        failure=failure,
        wall_s=time.monotonic() - started,
        peak_memory_bytes=watch.memory.bytes,
        events={name: tuple(events) for name, events in watch.events.items()},
    )


def read_allocations(layout: RunLayout, *, rounds: int) -> dict[str, tuple[Allocation, ...]]:
    """What every site wrote about its allocations, for the rounds that it reached.

    Raises: ParameterError: a file of another form.
    """
    found: dict[str, tuple[Allocation, ...]] = {}
    for site_id in layout.site_ids:
        found[site_id] = tuple(
            parse_allocation(_limited(path.read_bytes(), str(path)), where=str(path))
            for path in layout.site(site_id).allocations(rounds)
        )
    return found


def _limited(raw: bytes, where: str) -> bytes:
    if len(raw) > MAX_ALLOCATION_BYTES:
        raise ParameterError(f"{where}: {len(raw)} bytes, at most {MAX_ALLOCATION_BYTES}")
    return raw


@contextlib.contextmanager
def open_screen(console: Console, *, title: str, rounds: int) -> Iterator[Screen]:
    """A live view on a terminal, plain lines anywhere else."""
    if not console.is_terminal:
        yield _PlainScreen(console.print, started_s=time.time())
        return
    with Live(console=console, refresh_per_second=5, transient=True) as live:
        yield _LiveScreen(live, title=title, rounds=rounds)


class _PlainScreen:
    def __init__(self, write: Callable[..., None], *, started_s: float) -> None:
        self._write = write
        self._started_s = started_s

    def show(self, parties: Sequence[PartyProgress], news: Sequence[Event]) -> None:
        del parties
        for event in news:
            line = event_line(event, started_s=self._started_s)
            if line is not None:
                self._write(line, markup=False, highlight=False, soft_wrap=True)


class _LiveScreen:
    def __init__(self, live: Live, *, title: str, rounds: int) -> None:
        self._live = live
        self._title = title
        self._rounds = rounds
        self._started_s = time.monotonic()

    def show(self, parties: Sequence[PartyProgress], news: Sequence[Event]) -> None:
        del news
        minutes, seconds = divmod(int(time.monotonic() - self._started_s), 60)
        self._live.update(
            live_table(
                parties,
                title=f"{self._title}, {minutes}:{seconds:02d}",
                rounds=self._rounds,
                now_s=time.time(),
            )
        )
