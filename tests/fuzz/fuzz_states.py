"""Where a site or the auditor stands at a moment of the recording, made once and restored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fuzz_loopback import Idle, LoopbackClient, Row, ScriptedBoard
from fuzz_study import RecordedStudy, silent

from lada_clients.auditor.opening import claim_opening
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import Outbox
from lada_protocol.kinds import Kind, may_read
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purpose_parameters
from lada_protocol.run_loop import StudyFailed
from lada_protocol.wire.envelope import Envelope
from lada_secure.encryption.parameters import AggregationParameters
from lada_secure.errors import LadaError, LocalProtocolError, ParameterError, PeerError
from lada_secure.privacy.ledger.memory import MemoryLedger

_FIRST_NEW = 1_000

Stamp = tuple[int, int]


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Size and time of change of every file."""
    found: dict[str, Stamp] = {}
    cut = len(str(folder)) + 1
    for parent, _, names in os.walk(folder):
        for name in names:
            path = f"{parent}/{name}"
            status = os.stat(path)
            found[path[cut:]] = status.st_size, status.st_mtime_ns
    return found


class KeptFolder:
    """A folder that can be put back to what it was when this was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamps = _stamps(folder)
        self._content = {name: (folder / name).read_bytes() for name in self._stamps}

    def restore(self) -> None:
        """Delete what is new, write again what has changed."""
        now = _stamps(self.folder)
        for name in now.keys() - self._stamps.keys():
            (self.folder / name).unlink()
        for name, content in self._content.items():
            if now.get(name) != self._stamps[name]:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                status = path.stat()
                self._stamps[name] = status.st_size, status.st_mtime_ns


@dataclass(slots=True, kw_only=True)
class PartyState:
    """A party with an index, a state folder and a board that the harness plays."""

    me: Participant
    board: ScriptedBoard
    folder: Path
    kept: KeptFolder
    make_book: Callable[[], MemoryLedger]
    _book: MemoryLedger | None = None

    def book(self) -> MemoryLedger:
        """The site's ledger."""
        if self._book is None:
            self._book = self.make_book()
        return self._book

    def footprint(self) -> tuple[int, int, dict[str, Stamp]]:
        """What a refused message must leave as it is."""
        index = getattr(self.me, "index", None)
        return 0 if index is None else len(index), len(self.board.posted), _stamps(self.folder)

    def files(self, name: str) -> dict[str, Stamp]:
        """The files of one part of the state folder."""
        return _stamps(self.folder / name)

    def posted_kinds(self) -> list[Kind]:
        """What this party has sent to the played board."""
        found = [self.me.index.by_hash(one) for one in self.board.posted]
        return [Kind.FAILED if one is None else one.kind for one in found]

    def guarded(self, step: Callable[[], str | None]) -> str | None:
        """One step; errors of this project and waiting are ways to end."""
        try:
            return step()
        except StudyFailed:
            return "ends the study"
        except PeerError as error:
            return f"stopped: {error.reason}"
        except (LocalProtocolError, ParameterError):
            # These say that the mistake is ours, and it is not.
            raise
        except LadaError as error:
            return f"stopped: {error.code}"
        except Idle:
            return "waits"


class PartyStates:
    """Makes states of one party at any moment of the recording."""

    def __init__(self, study: RecordedStudy, party: str, folder: Path) -> None:
        self._study = study
        self._party = study.recording.roster.party(party)
        self._folder = folder
        self._known = {one.message_hash: payload for _, one, payload in study.recording.rows}
        self._client = LoopbackClient(
            identity=study.recording.identity(party),
            roster=study.recording.roster,
            party_id=party,
        )
        self._folders: dict[int, KeptFolder] = {}

    def parameters(self, purpose: str) -> AggregationParameters:
        """Of the honest plan."""
        return purpose_parameters(self._study.recording.plan, purpose)

    def at(self, until: int, *, without: set[int], rows: Sequence[Row]) -> PartyState:
        """The party with everything before `until`, about to be shown `rows`."""
        recording = self._study.recording
        seen = [
            (number, one)
            for number, one, _ in recording.rows
            if number < until and number not in without and self._may_read(one)
        ]
        kept = self._folders.get(until)
        if kept is None:
            folder = self._folder / f"{self._party.id}-{until}"
            self._fill(folder, until)
            kept = self._folders[until] = KeptFolder(folder)
        folder = kept.folder
        board = ScriptedBoard(start=_FIRST_NEW, rows=rows, known=self._known)
        self._client.stub = board
        me = Participant(
            party=self._party.id,
            roster=recording.roster,
            client=self._client,
            signing_key=recording.credentials[self._party.id].signing_key,
            certificate=recording.certificate(self._party.id),
            outbox=Outbox(folder=folder, roster=recording.roster),
            events=silent(self._party.id),
        )
        if until > 1:
            me.plan = recording.plan
            me.index = MessageIndex(recording.plan, recording.roster)
            for _, one in seen:
                me.index.add(one)
        return PartyState(
            me=me,
            board=board,
            folder=folder,
            kept=kept,
            make_book=lambda: self._make_book(any(one.kind is Kind.ACCEPTANCE for _, one in seen)),
        )

    def _may_read(self, one: Envelope) -> bool:
        head = one.header
        return may_read(
            kind=one.kind,
            sender=head.sender,
            to=head.to,
            reader=self._party.id,
            role=self._party.role,
        )

    def _fill(self, folder: Path, until: int) -> None:
        """What the party had on disk at that moment."""
        recording = self._study.recording
        outbox = Outbox(folder=folder, roster=recording.roster)
        folder.mkdir()
        ledgers: dict[str, bytes] = {}
        answered = {
            (one.header.to, one.header.purpose)
            for number, one, _ in recording.rows
            if number < until and one.kind is Kind.RECEIPT
        }
        for number, one, payload in recording.rows:
            head = one.header
            if number < until and head.sender == self._party.id:
                outbox.store(one, payload)
            if one.kind is Kind.LEDGER and (head.sender, head.purpose) in answered:
                ledgers[head.sender] = ledgers.get(head.sender, b"") + payload
        source = recording.state(self._party.id)
        for part in ("keys", "secrets"):
            if (source / part).exists():
                shutil.copytree(source / part, folder / part)
        (folder / "secrets").mkdir(exist_ok=True)
        if self._party.id == recording.roster.auditor.id:
            auditor = recording.auditor(recording.participant(self._party.id, folder), folder)
            for site, raw in ledgers.items():
                path = folder / "ledgers" / site / "patients.jsonl"
                path.parent.mkdir(parents=True)
                path.write_bytes(raw)
            for number, one, _ in recording.rows:
                if number < until and one.kind is Kind.OPENED:
                    head = one.header
                    attempt = Attempt(round_id=head.round_id, purpose=head.purpose, number=0)
                    claim_opening(
                        auditor.opening.notes,
                        recording.plan.study_id,
                        attempt,
                        cast(str, head.body["sum_message"]),
                    )

    def _make_book(self, joined: bool) -> MemoryLedger:
        """The ledger at the end of the recording, or a new one before the plan is accepted."""
        book = self._study.recording.book(self._party.id)
        if joined:
            kept = self._study.books[self._party.id]
            book.identity, book._kept = kept.identity, type(book._kept)(kept.identity)
            with kept._transaction() as old, book._transaction() as new:
                for entry in old.entries():
                    paid_by = getattr(entry, "reserve_hash", "")
                    new.append(entry, old.output(paid_by), written=entry.time)
        return book
