"""The coordinator under test: the calls of its board, and the tasks behind them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from fuzz_edits import Dice, edit_bytes
from fuzz_loopback import CallRefused, RealBoard, Row
from fuzz_study import RecordedStudy
from fuzz_targets import MOST_STEPS, FindingError, Stage, Target

from lada_protocol.rounds.tasks import Done, Wait
from lada_protocol.run_loop import StudyFailed
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.limits import CHUNK_BYTES
from lada_secure.errors import PeerError
from lada_server.board import schema
from lada_server.board.store import BoardStore
from lada_server.rpc.calls import BoardCalls


@dataclass(frozen=True, slots=True, kw_only=True)
class _Board:
    """A filled board that is put back after every input; `last` is its newest sequence."""

    store: BoardStore
    calls: BoardCalls
    last: int

    @contextlib.contextmanager
    def without(self, stage: Stage) -> Iterator[None]:
        """Make room for a message of the recording; afterwards all is as it was."""
        engine, messages, readers = (
            self.store._database.writer,
            schema.messages,
            schema.readers,
        )
        place = messages.c.message_hash == stage.envelope.message_hash
        with engine.begin() as connection:
            held = connection.execute(sa.select(messages).where(place)).mappings().one_or_none()
            shown = connection.execute(
                sa.select(readers).where(readers.c.sequence == stage.sequence)
            ).mappings()
            shown_rows = [dict(one) for one in shown]
            connection.execute(readers.delete().where(readers.c.sequence == stage.sequence))
            connection.execute(messages.delete().where(place))
        last = self.last_without(stage)
        newest = dict(self.store._newest)
        self.store._newest.update(dict.fromkeys(newest, last))
        try:
            yield
        finally:
            with engine.begin() as connection:
                new = connection.execute(
                    sa.select(messages.c.message_hash).where(messages.c.sequence > last)
                )
                for message_hash in list(new.scalars()):
                    if message_hash != stage.envelope.message_hash:
                        self.store._payloads.discard(message_hash)
                connection.execute(readers.delete().where(readers.c.sequence > last))
                connection.execute(messages.delete().where(messages.c.sequence > last))
            self.store._newest.update(newest)
            with engine.begin() as connection:
                if held is not None:
                    connection.execute(messages.insert().values(dict(held)))
                    connection.execute(readers.insert(), shown_rows)

    def last_without(self, stage: Stage) -> int:
        """The newest sequence but for a message: SQLite gives the number of a deleted row again."""
        return self.last - 1 if stage.sequence == self.last else self.last

    def footprint(self) -> tuple[int, int, int]:
        """Messages, what readers may see, and files."""
        with self.store._database.reader.connect() as connection:
            counts = [
                int(connection.execute(sa.select(sa.func.count()).select_from(one)).scalar_one())
                for one in (schema.messages, schema.readers)
            ]
        files = sum(len(names) for _, _, names in os.walk(self.store._payloads._folder))
        return counts[0], counts[1], files


class CoordinatorTarget(Target):
    """The board's three calls, and the coordinator behind them."""

    party = "coordinator"

    def __init__(self, study: RecordedStudy, folder: Path) -> None:
        super().__init__(study)
        self._folder = folder
        self._boards: dict[int, _Board] = {}

    def deliver(self, stage: Stage, row: Row, dice: Dice) -> str:
        """Post over the wire, then let the coordinator carry out its tasks."""
        board = self._board(stage.until)
        caller = stage.envelope.header.sender
        if dice.below(16) == 15:
            caller = dice.pick(sorted(self.keys))
        stub = RealBoard(board.calls, self.recording.credentials[caller].tls_certificate_pem)
        if dice.below(32) == 31:
            return self._ask(stub, dice)
        with board.without(stage):
            before = board.footprint()
            try:
                stub.post_raw(iter(_frames(row, dice)))
            except CallRefused as error:
                if board.footprint() != before:
                    raise FindingError("a refused message left something on the board") from error
                return f"refused: {error.reason or 'unreadable'}"
            return self._react(board, stage, caller)

    def _board(self, until: int) -> _Board:
        """A board that holds what came before this moment."""
        if until not in self._boards:
            folder = self._folder / f"board-{until}"
            _copy_board(self.recording.state("coordinator"), folder, until)
            store = self.recording.open_store(folder)
            calls = self.recording.serve(store, folder / "uploads")
            self._boards[until] = _Board(store=store, calls=calls, last=until - 1)
        return self._boards[until]

    def _ask(self, stub: RealBoard, dice: Dice) -> str:
        """List and fetch with numbers of any size."""
        number = int.from_bytes(bytes(dice.byte() for _ in range(8)), "big")
        digest = dice.some(40) or hashlib.sha256(b"").digest()
        try:
            stub.List(lada_pb2.ListRequest(after_sequence=number))
            for _ in stub.Fetch(lada_pb2.FetchRequest(message_sha256=digest, offset=number)):
                pass
        except CallRefused as error:
            return f"call refused: {error.reason}"
        return "answered"

    def _react(self, board: _Board, stage: Stage, sender: str) -> str:
        one = self.recording.coordinator(board.store)
        # It has read everything before this moment; only what is new goes through the board.
        for number, envelope, _ in self.recording.rows:
            if number < stage.until and number != stage.sequence:
                one.board.index.add(envelope)
        one.board._sequence = board.last_without(stage)
        for _ in range(MOST_STEPS):
            try:
                task = one.loop.next_task()
                if isinstance(task, Wait | Done):
                    return f"accepted, {type(task).__name__.lower()}"
                one.loop.carry_out(task)
            except StudyFailed:
                return "gave the study up"
            except PeerError as error:
                if sender != "auditor":
                    raise FindingError(
                        f"{sender} ended the coordinator's work: {error.reason}"
                    ) from error
                return f"stopped: {error.reason}"
        return "accepted, works on"

    def close(self) -> None:
        """Release all boards."""
        for board in self._boards.values():
            board.store.close()


def _copy_board(source: Path, folder: Path, until: int) -> None:
    """The recorded board as it was before this sequence; payload files are shared."""
    folder.mkdir()
    shutil.copy(source / "board.sqlite", folder)
    shutil.copytree(
        source / "payloads",
        folder / "payloads",
        copy_function=os.link,
        ignore=shutil.ignore_patterns("lock", "incoming"),
    )
    with contextlib.closing(sqlite3.connect(folder / "board.sqlite")) as database, database:
        for table in (schema.readers.name, schema.messages.name):
            database.execute(f"DELETE FROM {table} WHERE sequence >= ?", (until,))  # noqa: S608


def _frames(row: Row, dice: Dice) -> list[bytes]:
    """What the sender streams; sometimes out of order, repeated, cut or changed."""
    opening = lada_pb2.Opening(header=row.header_bytes, signature=row.signature)
    frames = [lada_pb2.PostFrame(opening=opening).SerializeToString()]
    for offset in range(0, len(row.payload), CHUNK_BYTES):
        data = row.payload[offset : offset + CHUNK_BYTES]
        chunk = lada_pb2.Chunk(offset=offset, data=data, sha256=hashlib.sha256(data).digest())
        frames.append(lada_pb2.PostFrame(chunk=chunk).SerializeToString())
    operation, at = dice.below(64), dice.place(len(frames))
    if operation == 63:
        frames[at] = edit_bytes(frames[at], dice)
    elif operation == 62:
        frames.insert(at, frames[at])
    elif operation == 61:
        frames.reverse()
    elif operation == 60:
        del frames[at]
    elif operation == 59:
        frames.append(
            lada_pb2.PostFrame(
                chunk=lada_pb2.Chunk(
                    offset=dice.byte() << dice.below(57), data=dice.some(8), sha256=dice.some(32)
                )
            ).SerializeToString()
        )
    return frames
