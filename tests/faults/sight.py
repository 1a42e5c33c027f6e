"""What a run shows from outside: the board, the parties' events, and the sites' ledgers.

Faults are injected by what is seen here, never by the clock.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lada_lab.mock.layout import RunLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message on the board."""

    sequence: int
    kind: str
    sender: str
    to: str
    round_id: int
    purpose: str
    attempt: int
    message_hash: str
    received_at_s: float


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads; nothing is created where there is no file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
        yield connection


@dataclass(slots=True, kw_only=True)
class Sight:
    """Facts of one run so far; `look` takes up what is new."""

    layout: RunLayout
    messages: list[Message] = field(default_factory=list)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _offsets: Counter[Path] = field(default_factory=Counter)
    _seen: set[tuple[str, str, int, str]] = field(default_factory=set)
    _counts: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)

    def look(self) -> None:
        """Read new messages and events."""
        self._read_board()
        for party, folder in self.layout.parties.items():
            for event in self._new_events(folder.events):
                self.events.setdefault(party, []).append(event)
                self._counts[party, event["event"], event["step"], event["round"]] += 1

    @property
    def board(self) -> Path:
        """The coordinator's database."""
        return self.layout.coordinator.state / "board.sqlite"

    def has(self, kind: str, *, sender: str = "", round_id: int = 0, purpose: str = "") -> bool:
        """Whether such a message is on the board; "" for any sender."""
        return (kind, sender, round_id, purpose) in self._seen

    def happened(self, party: str, event: str, step: str, round_id: int) -> int:
        """How often a party has told of this."""
        return self._counts[party, event, step, round_id]

    def last_event_s(self, party: str) -> float:
        """When a party said something last, seconds since the epoch; 0 for never."""
        told = self.events.get(party)
        return float(told[-1]["time_s"]) if told else 0.0

    def doing(self, party: str) -> str:
        """The step a party is in, or what it waits for."""
        told = self.events.get(party, [])
        for event in reversed(told):
            if event["event"] in ("step_started", "step_finished", "waiting", "finished", "failed"):
                return f"{event['event']} {event['step']} {event['round']}"
        return "nothing yet"

    def unpaid(self, site: str, round_id: int, purpose: str) -> bool:
        """Whether a reservation of this site stands in its ledger without its commit."""
        entries = ledger_lines(self.layout.site(site).state)
        open_now: set[str] = set()
        for one in entries:
            if (one.get("round_id"), one.get("purpose")) != (round_id, purpose):
                continue
            key = f"{one['chunk']}"
            if one["kind"] == "reserve":
                open_now.add(key)
            elif one["kind"] == "commit":
                open_now.discard(key)
        return bool(open_now)

    def _read_board(self) -> None:
        # Nothing comes after the end; and whoever has the database open when the coordinator closes
        # it keeps its log file alive.
        if self.has("finished") or not self.board.exists():
            return
        after = self.messages[-1].sequence if self.messages else 0
        try:
            with reading(self.board) as connection:
                rows = connection.execute(
                    "select sequence, kind, sender, addressee, round_id, purpose, attempt,"
                    " message_hash, received_at_s from board_messages where sequence > ?"
                    " order by sequence",
                    (after,),
                ).fetchall()
        except sqlite3.OperationalError:
            # Not made yet, or being recovered: the next look sees it.
            return
        for row in rows:
            one = Message(**dict(zip(Message.__slots__, row, strict=True)))
            self.messages.append(one)
            for sender in ("", one.sender):
                self._seen.add((one.kind, sender, one.round_id, one.purpose))

    def _new_events(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                chunk = file.read()
        except FileNotFoundError:
            return
        complete, end, _ = chunk.rpartition(b"\n")
        self._offsets[path] += len(complete) + len(end)
        for line in complete.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                # Cut by a full disk.
                continue
            if isinstance(event, dict) and {"event", "step", "round", "time_s"} <= event.keys():
                yield event


def ledger_lines(state: Path) -> list[dict[str, Any]]:
    """The entries of the one ledger in a site's state folder; none where there is none yet."""
    for path in state.glob("ledger-*.sqlite"):
        try:
            with reading(path) as connection:
                rows = connection.execute("select line from entries order by number").fetchall()
        except sqlite3.OperationalError:
            return []
        return [json.loads(row[0]) for row in rows]
    return []
