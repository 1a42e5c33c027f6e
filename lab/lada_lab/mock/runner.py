"""Running the parties of a mock federation to their end, and collecting what they wrote."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.live import Live

from lada_lab.machine import PeakMemory
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import party_children
from lada_lab.mock.progress import PartyProgress, event_line
from lada_lab.mock.report import Allocation, parse_allocation
from lada_lab.mock.supervisor import ChildFailed, Supervisor
from lada_lab.mock.view import live_table
from lada_protocol.events import Event, parse_event
from lada_secure.errors import ParameterError

MAX_ALLOCATION_BYTES = 16 * 1024 * 1024
# Where progress goes while the parties run: their latest state, and the events since the last call.
Screen: TypeAlias = Callable[[Sequence[PartyProgress], Sequence[Event]], None]


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


def run_parties(layout: RunLayout, supervisor: Supervisor, *, screen: Screen) -> Outcome:
    """Start all parties and wait until all have ended, or until one has failed."""
    began, failure, memory = time.monotonic(), "", PeakMemory()
    tails = {name: EventTail(path=folder.events) for name, folder in layout.parties.items()}
    parties = {name: PartyProgress(party=name) for name in tails}
    events: dict[str, list[Event]] = {name: [] for name in tails}

    def look() -> None:
        news: list[Event] = []
        for party, tail in tails.items():
            for event in tail.read_new():
                parties[party] = parties[party].after(event)
                events[party].append(event)
                news.append(event)
        memory.sample(supervisor.groups.values())
        screen(tuple(parties.values()), sorted(news, key=lambda event: event.time_s))

    try:
        supervisor.run_all(party_children(layout), look)
    except ChildFailed as error:
        failure = str(error)
    return Outcome(
        failure=failure,
        wall_s=time.monotonic() - began,
        peak_memory_bytes=memory.bytes,
        events={name: tuple(told) for name, told in events.items()},
    )


def read_allocations(layout: RunLayout, *, rounds: int) -> dict[str, tuple[Allocation, ...]]:
    """What every site wrote about its allocations, for the rounds that it reached.

    Raises: ParameterError: a file of another form.
    """
    return {
        site: tuple(_read_allocation(path) for path in layout.site(site).allocations(rounds))
        for site in layout.site_ids
    }


def _read_allocation(path: Path) -> Allocation:
    raw = path.read_bytes()
    if len(raw) > MAX_ALLOCATION_BYTES:
        raise ParameterError(f"{path}: {len(raw)} bytes, at most {MAX_ALLOCATION_BYTES}")
    return parse_allocation(raw, where=str(path))


@contextlib.contextmanager
def open_screen(console: Console, *, title: str, rounds: int) -> Iterator[Screen]:
    """A live view on a terminal, plain lines anywhere else."""
    began_s = time.time()

    def print_lines(_parties: Sequence[PartyProgress], news: Sequence[Event]) -> None:
        for event in news:
            line = event_line(event, started_s=began_s)
            if line is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield print_lines
        return
    with Live(console=console, refresh_per_second=5, transient=True) as live:

        def update(parties: Sequence[PartyProgress], _news: Sequence[Event]) -> None:
            now_s = time.time()
            minutes, seconds = divmod(int(now_s - began_s), 60)
            told = f"{title}, {minutes}:{seconds:02d}"
            live.update(live_table(parties, title=told, rounds=rounds, now_s=now_s))

        yield update
