"""Where a study stands, read from what the coordinator keeps on disk, whether it runs or not.

Who is connected says a small file beside the board that a running process renews every few
seconds; everything else is read from the board and the event file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.engine import Connection

from lada_protocol.events import EVENTS_FILE, Event, Failed, Finished, Waiting, parse_event
from lada_protocol.identity.roster import Party, Roster
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.tasks import end_of_wait
from lada_secure.errors import ParameterError, PeerError
from lada_server.board.database import Database
from lada_server.board.schema import checked_metadata, messages
from lada_server.board.storage_errors import StorageUnavailable
from lada_server.rpc.limits import AWAY_AFTER_S, PartyActivity
from lada_server.rpc.service import RunningServer
from lada_server.settings import ServerSettings
from lada_server.study.places import PLAN_FILE
from lada_server.study.standing import (
    Standing,
    State,
    StudyMessages,
    read_study_messages,
    standing_of,
    study_code,
)

LOG = logging.getLogger(__name__)

# The newest events stand at the end; a waiting coordinator writes one line in ten seconds.
TAIL_BYTES: Final = 256 * 1024
STATUS_FILE: Final = "presence.json"
INTERVAL_S: Final = 2.0
# A process that has not renewed its file for so long is stopped, killed or stuck.
STALE_AFTER_S: Final = 10.0


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KnownProcess(_Model):
    """The content of the status file."""

    pid: int
    at_s: float
    listen: str
    parties: dict[str, PartyActivity]


class AwaitedParties(_Model):
    """For whom the coordinator waits, since when and why; until when, where people may decide."""

    parties: tuple[str, ...]
    since: str
    because: str
    until: str | None = None


class LastMessage(_Model):
    """The newest message of a party on the board."""

    kind: str
    round: int
    at: str


class PartyStatus(_Model):
    """One party.

    `connected` is None where no coordinator runs that could know, `messages` and `state` where the
    database does not answer. `code`: why it has refused or ended, with its meaning; `next`: what
    the others do. See `standing`.
    """

    id: str
    role: str
    connected: bool | None
    last_call: str | None
    messages: int | None
    last_message: LastMessage | None
    refusals: dict[str, int]
    state: State | None = None
    code: str | None = None
    meaning: str | None = None
    next: str | None = None


class Status(_Model):
    """`lada server status --json`. Times are UTC, to the second."""

    running: bool
    listen: str | None = None
    study_id: str | None = None
    state: Literal["not started", "working", "waiting", "finished", "failed"] = "not started"
    round: int | None = None
    rounds: int | None = None
    step: str | None = None
    since: str | None = None
    waiting: AwaitedParties | None = None
    failure: str | None = None
    code: str | None = None
    storage_failure: str | None = None
    parties: tuple[PartyStatus, ...]


def keep_status_file(path: Path, running: RunningServer) -> threading.Thread:
    """Write the status file every two seconds, in a thread; it goes when the server stops."""
    thread = threading.Thread(target=_keep, args=(path, running), name="status", daemon=True)
    thread.start()
    return thread


def _keep(path: Path, running: RunningServer) -> None:
    fresh = path.with_name(f".{path.name}")
    while True:
        known = KnownProcess(
            pid=os.getpid(),
            at_s=time.time(),
            listen=running.address,
            parties=running.gate.activity(),
        )
        try:
            fresh.write_text(known.model_dump_json(), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            # Telling is not worth a study: the disk's state shows in what matters.
            LOG.warning("cannot write %s: %s", path, error.strerror)
        if running.stopped.wait(INTERVAL_S):
            break
    path.unlink(missing_ok=True)
    # What a killed process, or a full disk, has left half written.
    fresh.unlink(missing_ok=True)


def read_status_file(path: Path, *, now_s: float) -> KnownProcess | None:
    """What a running process says; None where none runs."""
    try:
        known = KnownProcess.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return known if abs(now_s - known.at_s) < STALE_AFTER_S else None


def read_status(settings: ServerSettings, roster: Roster, *, now_s: float) -> Status:
    """The status of the study that these settings belong to, as far as it can be read now.

    Raises: TransportError: the database is damaged. ParameterError: it is of another version.
    """
    process = read_status_file(settings.state_dir / STATUS_FILE, now_s=now_s)
    found: dict[str, Any] = {"running": process is not None}
    if process is not None:
        found["listen"] = process.listen
    plan: StudyPlan | None = None
    with contextlib.suppress(OSError, PeerError):
        plan = parse_plan((settings.state_dir / PLAN_FILE).read_bytes())
        found |= {"study_id": plan.study_id, "rounds": plan.rounds}
    event = newest_event(settings.state_dir / EVENTS_FILE)
    if event is not None:
        found |= _said_by(event)
    board: _Board | None = None
    try:
        board = _read_board(settings, plan, roster)
    except StorageUnavailable as error:
        found["storage_failure"] = str(error)
    if board is not None and board.study is not None:
        found["code"] = study_code(board.study, roster.coordinator.id) or found.get("code")
    said = Status(**found, parties=())
    parties = (party for party in roster.parties if party.id != roster.coordinator.id)
    return said.model_copy(
        update={
            "parties": tuple(
                _party(party, process, board, plan, said, now_s=now_s) for party in parties
            )
        }
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


def _said_by(event: Event) -> dict[str, Any]:
    """Fields of `Status`: where the study is."""
    known = isinstance(event, Waiting | Finished | Failed)
    waited_s = event.waited_s if isinstance(event, Waiting) else 0.0
    since = _time(event.time_s - waited_s)
    found: dict[str, Any] = {
        "state": event.event if known else "working",
        "round": event.round_id,
        "step": event.step,
        "since": since,
    }
    if isinstance(event, Waiting):
        found["waiting"] = AwaitedParties(
            parties=event.awaited, since=since, because=event.because, until=event.until
        )
    if isinstance(event, Failed):
        found |= {"failure": event.message, "code": event.code or None}
    return found


class _Board(NamedTuple):
    """Number of messages and the newest one, by sender; and what they say of the plan's study."""

    senders: dict[str, tuple[int, LastMessage]]
    study: StudyMessages | None


def _read_board(settings: ServerSettings, plan: StudyPlan | None, roster: Roster) -> _Board:
    if settings.database is None and not settings.board_file.exists():
        return _Board({}, None)
    own = messages.c
    counted = (
        sa.select(sa.func.count().label("messages"), sa.func.max(own.sequence).label("newest"))
        .group_by(own.sender)
        .subquery()
    )
    query = sa.select(
        own.sender, counted.c.messages, own.kind, own.round_id, own.received_at_s
    ).join(counted, counted.c.newest == own.sequence)

    def everything(connection: Connection) -> _Board:
        if not sa.inspect(connection).has_table(messages.name):
            return _Board({}, None)
        checked_metadata(connection)
        senders = {
            sender: (count, LastMessage(kind=kind, round=round_id, at=_time(at_s)))
            for sender, count, kind, round_id, at_s in connection.execute(query)
        }
        if plan is None:
            return _Board(senders, None)
        study = read_study_messages(connection, study_id=plan.study_id, roster=roster)
        return _Board(senders, study)

    database = Database(settings.database_url)
    try:
        return database.read("read the board", everything)
    finally:
        database.close()


def _party(
    party: Party,
    process: KnownProcess | None,
    board: _Board | None,
    plan: StudyPlan | None,
    said: Status,
    *,
    now_s: float,
) -> PartyStatus:
    known = None if process is None else process.parties.get(party.id)
    count, last = (None, None) if board is None else board.senders.get(party.id, (0, None))
    standing = _standing(party, board, plan, said)
    return PartyStatus(
        id=party.id,
        role=party.role,
        connected=None if known is None else now_s - known.last_call_s < AWAY_AFTER_S,
        last_call=_time(known.last_call_s) if known is not None and known.last_call_s else None,
        messages=count,
        last_message=last,
        refusals={} if known is None else known.refusals,
        **({} if standing is None else asdict(standing)),
    )


def _standing(
    party: Party, board: _Board | None, plan: StudyPlan | None, said: Status
) -> Standing | None:
    """See `standing`; None before a plan is there, or where the database does not answer."""
    if plan is None or board is None or board.study is None:
        return None
    until, waiting = None, said.waiting
    awaited = () if waiting is None else waiting.parties
    if waiting is not None and party.id in awaited:
        ends = end_of_wait(
            datetime.fromisoformat(waiting.since),
            until=waiting.until,
            timeout_s=plan.phase_timeout_s,
        )
        until = _time(ends.timestamp())
    ended = said.state == "finished" or study_code(board.study, plan.coordinator) is not None
    return standing_of(party, board.study, plan=plan, awaited=awaited, until=until, over=ended)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
