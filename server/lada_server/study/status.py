"""Where a study stands, read from what the coordinator keeps on disk, whether it runs or not."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import Connection

from lada_protocol.events import EVENTS_FILE, Event, Failed, Finished, Waiting, parse_event
from lada_protocol.identity.roster import Roster
from lada_protocol.plan import parse_plan
from lada_secure.errors import ParameterError, PeerError
from lada_server.board import schema
from lada_server.board.database import Database
from lada_server.board.metadata import check_version, stored_facts
from lada_server.board.storage_errors import StorageUnavailable
from lada_server.rpc.presence import AWAY_AFTER_S
from lada_server.settings import ServerSettings
from lada_server.study.status_file import STATUS_FILE, KnownProcess, read_status_file

# The newest events stand at the end; a waiting coordinator writes one line in ten seconds.
TAIL_BYTES: Final = 256 * 1024


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AwaitedParties(_Model):
    """For whom the coordinator waits, since when and why."""

    parties: tuple[str, ...]
    since: str
    because: str


class LastMessage(_Model):
    """The newest message of a party on the board."""

    kind: str
    round: int
    at: str


class PartyStatus(_Model):
    """One party.

    `connected` is None where no coordinator runs that could know, `messages` where the database
    does not answer.
    """

    id: str
    role: str
    connected: bool | None
    last_call: str | None
    messages: int | None
    last_message: LastMessage | None
    refusals: dict[str, int]


class Status(_Model):
    """`lada server status --json`. Times are UTC, to the second."""

    running: bool
    listen: str | None
    study_id: str | None
    state: Literal["not started", "working", "waiting", "finished", "failed"]
    round: int | None
    rounds: int | None
    step: str | None
    since: str | None
    waiting: AwaitedParties | None
    failure: str | None
    storage_failure: str | None
    parties: tuple[PartyStatus, ...]


def read_status(settings: ServerSettings, roster: Roster, *, now_s: float) -> Status:
    """The status of the study that these settings belong to, as far as it can be read now.

    Raises: TransportError: the database is damaged. ParameterError: it is of a newer version.
    """
    process = read_status_file(settings.state_dir / STATUS_FILE, now_s=now_s)
    event = newest_event(settings.state_dir / EVENTS_FILE)
    plan = _plan(settings.state_dir / "plan.json")
    said: dict[str, tuple[int, LastMessage]] | None = None
    storage_failure = None
    try:
        said = _last_messages(settings)
    except StorageUnavailable as error:
        storage_failure = str(error)
    return Status(
        running=process is not None,
        listen=None if process is None else process.listen,
        study_id=None if plan is None else plan[0],
        state=_state(event),
        round=None if event is None else event.round_id,
        rounds=None if plan is None else plan[1],
        step=None if event is None else event.step,
        since=None if event is None else _since(event),
        waiting=AwaitedParties(parties=event.awaited, since=_since(event), because=event.because)
        if isinstance(event, Waiting)
        else None,
        failure=event.message if isinstance(event, Failed) else None,
        storage_failure=storage_failure,
        parties=tuple(
            _party(one.id, one.role, process, said, now_s=now_s)
            for one in roster.parties
            if one.id != roster.coordinator.id
        ),
    )


def newest_event(path: Path) -> Event | None:
    """The last event that says where the study is; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return parse_event(line)
        except ParameterError:
            # A line cut by a crash, or by the start of what was read.
            continue
    return None


def _state(
    event: Event | None,
) -> Literal["not started", "working", "waiting", "finished", "failed"]:
    if event is None:
        return "not started"
    return event.event if isinstance(event, Waiting | Finished | Failed) else "working"


def _since(event: Event) -> str:
    return _time(event.time_s - (event.waited_s if isinstance(event, Waiting) else 0.0))


def _plan(path: Path) -> tuple[str, int] | None:
    try:
        plan = parse_plan(path.read_bytes())
    except (OSError, PeerError):
        return None
    return plan.study_id, plan.rounds


def _last_messages(settings: ServerSettings) -> dict[str, tuple[int, LastMessage]]:
    """Number of messages and the newest one, by sender."""
    file = settings.state_dir / "board.sqlite"
    if settings.database is None and not file.exists():
        return {}
    table = schema.messages
    newest = sa.select(
        table.c.sender, sa.func.count().label("messages"), sa.func.max(table.c.sequence).label("at")
    ).group_by(table.c.sender)
    chosen = newest.subquery()
    query = sa.select(
        table.c.sender, chosen.c.messages, table.c.kind, table.c.round_id, table.c.received_at_s
    ).join(chosen, chosen.c.at == table.c.sequence)

    def newest_of_each(connection: Connection) -> dict[str, tuple[int, LastMessage]]:
        if not sa.inspect(connection).has_table(table.name):
            return {}
        check_version(stored_facts(connection))
        return {
            sender: (count, LastMessage(kind=kind, round=round_id, at=_time(at_s)))
            for sender, count, kind, round_id, at_s in connection.execute(query)
        }

    database = Database(settings.database or f"sqlite:///{file}")
    try:
        return database.read("read the board", newest_of_each)
    finally:
        database.close()


def _party(
    party: str,
    role: str,
    process: KnownProcess | None,
    board: dict[str, tuple[int, LastMessage]] | None,
    *,
    now_s: float,
) -> PartyStatus:
    known = None if process is None else process.parties.get(party)
    said = None if board is None else board.get(party)
    return PartyStatus(
        id=party,
        role=role,
        connected=None if known is None else now_s - known.last_call_s < AWAY_AFTER_S,
        last_call=_time(known.last_call_s) if known is not None and known.last_call_s else None,
        messages=None if board is None else (0 if said is None else said[0]),
        last_message=None if said is None else said[1],
        refusals={} if known is None else known.refusals,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
