"""Auditor and site under test, on a board that the harness plays."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_edits import Dice, Draft, edit_bytes
from fuzz_loopback import Idle, Row
from fuzz_states import PartyState, PartyStates
from fuzz_study import RecordedStudy
from fuzz_targets import MOST_STEPS, FindingError, Stage, Target
from sealed_sums import add_sealed

from lada_clients.auditor.opening import REFUSED_BY_KEY
from lada_protocol.kinds import Kind
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done, Wait
from lada_protocol.run_loop import StudyFailed
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.allocation.cells import parse_clusters
from lada_secure.canonical import parse_canonical_json
from lada_secure.errors import LadaError, PeerError


class ClientTarget(Target):
    """What the two dialling parties have in common: a list, payloads, an index, a next task."""

    def __init__(self, study: RecordedStudy, folder: Path) -> None:
        super().__init__(study)
        self.states = PartyStates(study, self.party, folder)

    def deliver(self, stage: Stage, row: Row, dice: Dice) -> str:
        """Show the message on a board, then let the party carry out its tasks."""
        rows = [row, *self.followers(stage, row)]
        fresh = stage.envelope.kind is Kind.PLAN
        dropped = {stage.sequence, *(number for number, _ in self.followed(stage))}
        state = self.states.at(1 if fresh else stage.until, without=dropped, rows=rows)
        spoil = dice.below(64)
        if spoil == 63:
            state.board.reply_edit = lambda raw: edit_bytes(raw, dice)
        elif spoil == 62:
            state.board.chunk_edit = lambda raw: edit_bytes(raw, dice)
        try:
            return self._work(state, stage, row, fresh)
        finally:
            state.kept.restore()

    def followed(self, stage: Stage) -> list[tuple[int, Envelope]]:
        """Messages of the recording that must change with this one."""
        return []

    def followers(self, stage: Stage, row: Row) -> list[Row]:
        """Those messages, made again."""
        return []

    def _work(self, state: PartyState, stage: Stage, row: Row, fresh: bool) -> str:
        before = state.footprint()
        try:
            if fresh:
                state.me.join(wait_s=60.0)
            else:
                state.me.sync()
        except LadaError as error:
            if state.footprint() != before:
                raise FindingError("a refused message left something behind") from error
            return f"refused: {_reason(error)}"
        except Idle:
            return "waits"
        return self.react(state, stage, row)

    @abstractmethod
    def react(self, state: PartyState, stage: Stage, row: Row) -> str:
        """Carry out what follows."""

    def steps(self, state: PartyState, step: Callable[[], str | None]) -> str:
        """Carry out tasks until there is nothing to do."""
        for _ in range(MOST_STEPS):
            ended = state.guarded(step)
            if ended is not None:
                return ended
        return "works on"


class AuditorTarget(ClientTarget):
    """Ledgers, sums and transcripts at the real auditor."""

    party = "auditor"

    def followed(self, stage: Stage) -> list[tuple[int, Envelope]]:
        """The sum over a changed contribution."""
        if stage.envelope.kind is not Kind.CONTRIBUTION:
            return []
        head = stage.envelope.header
        return [
            (number, one)
            for number, one, _ in self.recording.rows
            if one.kind is Kind.SUM and number < stage.until and one.header.purpose == head.purpose
        ]

    def followers(self, stage: Stage, row: Row) -> list[Row]:
        """Add up again, with the changed contribution among the others."""
        made = []
        for _, total in self.followed(stage):
            draft = Draft.of(total, b"")
            names = draft.header["body"]["contributions"]
            names[stage.envelope.header.sender] = hashlib.sha256(row.header_bytes).hexdigest()
            parts = [
                row.payload if one.message_hash == stage.envelope.message_hash else payload
                for _, one, payload in self.recording.rows
                if one.kind is Kind.CONTRIBUTION and one.header.purpose == total.header.purpose
            ]
            try:
                draft.payload = add_sealed(self.states.parameters(total.header.purpose), parts)
            except PeerError:
                draft.payload = b"no sum"
            made.append(draft.finish(Dice(b""), self.keys))
        return made

    def react(self, state: PartyState, stage: Stage, row: Row) -> str:
        """Review the plan where it is new, then all tasks."""
        auditor = self.recording.auditor(state.me, state.folder)
        if stage.envelope.kind is Kind.PLAN and auditor._refused_plan():
            return "refuses the plan"

        def step() -> str | None:
            me = state.me
            task = next_auditor_task(me.index)
            if isinstance(task, Wait | Done):
                return type(task).__name__.lower()
            kept = state.files("ledgers"), state.files("opened")
            asked = len(me.index)
            try:
                auditor.loop.carry_out(task)
            except PeerError as error:
                if row.header_bytes and stage.envelope.header.sender in self.sites:
                    raise FindingError(f"a site ended the auditor's work: {error}") from error
                raise
            self._check_answer(me.index, asked, kept, state)
            return None

        return self.steps(state, step)

    @property
    def sites(self) -> set[str]:
        """Ids of all sites."""
        return {one.id for one in self.recording.roster.sites}

    @staticmethod
    def _check_answer(
        index: MessageIndex, asked: int, kept: tuple[Any, Any], state: PartyState
    ) -> None:
        """A refusal left ledgers and registry as they were."""
        answer = list(index)[-1] if len(index) > asked else None
        if answer is None:
            return
        if answer.kind is Kind.REFUSAL and state.files("ledgers") != kept[0]:
            raise FindingError("a refused ledger part was kept")
        refused = answer.kind is Kind.OPENING_REFUSED
        if (
            refused
            and parse_body(answer, FaultBody).code not in REFUSED_BY_KEY
            and state.files("opened") != kept[1]
        ):
            raise FindingError("a sum that was refused unopened was claimed")


class SiteTarget(ClientTarget):
    """Plan, pool, keys, secure aggregations, scores, paths and transcripts at the real site."""

    party = "site-a"

    def react(self, state: PartyState, stage: Stage, row: Row) -> str:
        """All tasks; and the parser that stands behind a hash which only a plan can make right."""
        if stage.envelope.kind is Kind.CLUSTERS:
            self._read_clusters(row.payload)
        site = self.recording.site(state.me, state.folder, state.book())

        def step() -> str | None:
            me = state.me
            task = next_site_task(me.index, site=me.party)
            if isinstance(task, Wait | Done):
                return type(task).__name__.lower()
            sent = len(state.board.posted)
            try:
                site.loop.carry_out(task)
            except LadaError as error:
                after = [one for one in state.posted_kinds()[sent:] if one is not Kind.LEDGER]
                if after and not isinstance(error, StudyFailed):
                    raise FindingError(f"sent {after} and then refused: {error}") from error
                raise
            return None

        return self.steps(state, step)

    @staticmethod
    def _read_clusters(raw: bytes) -> None:
        limit = Kind.CLUSTERS.rules.max_payload_bytes
        try:
            parse_clusters(parse_canonical_json(raw, max_bytes=limit))
        except PeerError:
            return


def _reason(error: LadaError) -> str:
    return error.reason if isinstance(error, PeerError) else error.code
