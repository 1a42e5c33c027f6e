"""How each party stands in its study: its state, the code of a failure, and what happens next.

Read from the signed messages of the board, by whoever may look at the coordinator's disk. Nothing
here decides anything: the coordinator's rules do, and these words say what they will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lada_protocol.failure_codes import CODES, FailureCode, meaning_of
from lada_protocol.identity.roster import Party, Roster
from lada_protocol.kinds import Kind, Role
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.endings import ending_in
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.errors import PeerError
from lada_server.board.schema import messages

State: TypeAlias = Literal[
    "no word", "taking part", "awaited", "refused", "ended", "missed round", "done"
]
_COUNTED: Final = (Kind.ACCEPTANCE, Kind.OPENING_KEY, Kind.TRAINED, Kind.TRANSCRIPT, Kind.FINISHED)
_FAULTS: Final = (Kind.REFUSAL, Kind.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One party. code, meaning: of a failure, by `FailureCode` or SPEC.md, section 12."""

    state: State
    code: str | None = None
    meaning: str | None = None
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyMessages:
    """What the board says of the parties of one study.

    newest: of each sender, by kind. faults: refusals and endings in their order. rounds: of each
    sender and kind.
    """

    newest: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Envelope, ...] = ()
    rounds: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)

    def has(self, kind: Kind, sender: str) -> bool:
        """Whether the sender has sent such a message."""
        return (kind, sender) in self.rounds

    def refusal_of(self, party: str) -> Envelope | None:
        """By which a party refused the plan, or the auditor the party."""
        for one in self.faults:
            head = one.header
            if one.kind is Kind.REFUSAL and party == (head.to or head.sender) and not head.purpose:
                return one
        return None

    def newest_failure_of(self, party: str) -> Envelope | None:
        """The last `failed` of a sender."""
        mine = [one for one in self.faults if one.kind is Kind.FAILED]
        return next((one for one in reversed(mine) if one.header.sender == party), None)


def read_study_messages(connection: Connection, *, study_id: str, roster: Roster) -> StudyMessages:
    """From a board, whether its coordinator runs or not.

    Raises: PeerError: a header is not the one that was signed.
    """
    own = messages.c
    of_study = sa.select(own.sender, own.kind, own.round_id, own.header, own.signature).where(
        own.study_id == study_id
    )
    newest = (
        sa.select(sa.func.max(own.sequence)).where(own.study_id == study_id).group_by(own.sender)
    )
    rounds: dict[tuple[str, str], set[int]] = {}
    for sender, kind, round_id in connection.execute(
        sa.select(own.sender, own.kind, own.round_id).where(
            own.study_id == study_id, own.kind.in_([str(kind) for kind in _COUNTED])
        )
    ):
        rounds.setdefault((kind, sender), set()).add(round_id)
    faults = of_study.where(own.kind.in_([str(kind) for kind in _FAULTS])).order_by(own.sequence)
    return StudyMessages(
        newest={
            row.sender: row.kind
            for row in connection.execute(of_study.where(own.sequence.in_(newest)))
        },
        faults=tuple(
            parse_envelope(bytes(row.header), bytes(row.signature), roster=roster)
            for row in connection.execute(faults)
        ),
        rounds={key: frozenset(found) for key, found in rounds.items()},
    )


def standing_of(
    party: Party,
    found: StudyMessages,
    *,
    plan: StudyPlan,
    awaited: tuple[str, ...],
    until: str | None,
    over: bool,
) -> Standing:
    """How a party stands.

    Args: awaited: whom the coordinator waits for now. until: when it stops to, in UTC. over:
        whether the study is.
    """
    refusal = found.refusal_of(party.id)
    if refusal is not None:
        return _refused(party, _code_of(refusal), plan, over=over)
    if found.newest.get(party.id) == Kind.FAILED:
        failed = found.newest_failure_of(party.id)
        ended = None if failed is None else ending_in(failed)
        if ended is not None:
            return _ended(party, ended.code, plan, until=until, over=over)
    coordinator = plan.coordinator
    closed = found.rounds.get((Kind.TRANSCRIPT, coordinator), frozenset())
    trained = found.rounds.get((Kind.TRAINED, party.id), frozenset())
    missed = sorted(closed - trained) if party.role is Role.SITE else []
    if missed and (over or missed[-1] == max(closed)):
        code = FailureCode.MISSED_ROUND
        place = f"round {missed[-1] + 1}: {code.meaning}; {code.mend}"
        going = "the study is over" if over else "it takes part in the next round if it is there"
        return Standing(state="missed round", code=code, meaning=place, next=going)
    if party.id in awaited:
        return Standing(state="awaited", next=_waiting(party, plan, until))
    if over and found.has(Kind.FINISHED, coordinator):
        return Standing(state="done", next="nothing; the study is over")
    if found.newest.get(party.id) is None:
        return Standing(state="no word")
    return Standing(state="taking part")


def _refused(party: Party, code: str, plan: StudyPlan, *, over: bool) -> Standing:
    going = f"the study goes on without it if {plan.min_cohort} sites or more take part"
    if party.role is Role.AUDITOR:
        going = "the study ends: nobody else can open a sum"
    if over:
        going = "the study is over"
    mend = f"; {FailureCode(code).mend}" if code in CODES else ""
    return Standing(state="refused", code=code, meaning=meaning_of(code), next=f"{going}{mend}")


def _ended(
    party: Party, code: FailureCode, plan: StudyPlan, *, until: str | None, over: bool
) -> Standing:
    going = "the study is over" if over else _waiting(party, plan, until)
    return Standing(state="ended", code=code, meaning=code.meaning, next=f"{going}; {code.mend}")


def _waiting(party: Party, plan: StudyPlan, until: str | None) -> str:
    how_long = f"until {until}" if until else f"{plan.phase_timeout_s:g} s once its part is due"
    if party.role is Role.AUDITOR:
        return f"the coordinator waits for it {how_long}, then ends the study"
    return (
        f"the coordinator waits for it {how_long}, then goes on without it in this round, or ends "
        f"the study if fewer than {plan.min_cohort} sites are left"
    )


def _code_of(refusal: Envelope) -> str:
    try:
        return parse_body(refusal, FaultBody).code
    except PeerError:
        return FailureCode.UNTOLD


def study_code(found: StudyMessages, coordinator: str) -> str | None:
    """The code with which the coordinator ended the study; None where it did not."""
    failed = found.newest_failure_of(coordinator)
    return None if failed is None else _code_of(failed)
