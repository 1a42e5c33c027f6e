"""The auditor's next task, from the message index alone (SPEC.md, "State machines", Auditor)."""

from __future__ import annotations

from dataclasses import replace

from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import is_to_admit, shown_with_acceptance
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.tasks import Post, RoundView, Task
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import LedgerBody, parse_body
from lada_secure.errors import PeerError


def next_auditor_task(index: MessageIndex) -> Task:
    """What the auditor does next.

    Acceptances with a verified ledger come first: a site spends nothing before its answer. Ledgers
    come before sums, so that a contribution's payment is known when its sum arrives.
    """
    return _AuditorView(index=index, me=index.auditor).task()


class _AuditorView(RoundView):
    __slots__ = ()

    def task(self) -> Task:
        index = self.index
        for purpose in purposes_of(self.plan):
            if self.find(Kind.OPENING_KEY, self.me, purpose=purpose) is None:
                return Post(kind=Kind.OPENING_KEY, attempt=self.attempt(purpose, 0))
        for party in index.roster.sites:
            if is_to_admit(index, party.id):
                return Post(kind=Kind.ADMISSION, to=party.id)
        due = [part for part in index if part.kind is Kind.LEDGER and _is_due(index, part)]
        if due:
            # Oldest part of each chain first: a later part only verifies on top of it.
            part = min(due, key=lambda part: (part.header.sender, _first_index(part)))
            return Post(kind=Kind.RECEIPT, attempt=_place(part), to=part.header.sender)
        rounds = range(self.plan.rounds)
        closed = [one for one in rounds if index.find(Kind.CLOSE, sender=self.me, round_id=one)]
        current = replace(self, round_id=min(max(closed, default=-1) + 1, rounds[-1]))
        awaited = current.wait("opening", "contributions", self.coordinator)
        return self.first_of_rounds() or self.over() or awaited

    def round_task(self) -> Task | None:
        for purpose in purposes_of(self.plan):
            for attempt in self.attempts(Kind.SUM, purpose):
                answers = (Kind.OPENED, Kind.OPENING_REFUSED)
                if not any(self.index.at(kind, attempt, sender=self.me) for kind in answers):
                    return Post(kind=Kind.OPENED, attempt=attempt)
        if self.find(Kind.TRANSCRIPT, self.coordinator) is None:
            return None
        return self.owed(Kind.CLOSE)


def _place(part: Envelope) -> Attempt:
    """Where a ledger part is answered: parts belong to a round and a purpose, to no attempt."""
    return Attempt(round_id=part.header.round_id, purpose=part.header.purpose)


def _is_due(index: MessageIndex, part: Envelope) -> bool:
    """Whether a ledger part has no answer; one that comes with an acceptance waits for that."""
    head = part.header
    with_acceptance = shown_with_acceptance(index, head.sender) is part
    if with_acceptance and index.find(Kind.ACCEPTANCE, sender=head.sender) is None:
        return False
    return not any(
        index.at(kind, _place(part), sender=index.auditor, to=head.sender)
        for kind in (Kind.RECEIPT, Kind.REFUSAL)
    )


def _first_index(part: Envelope) -> int:
    """Where the part starts; a body that cannot be read comes first and is refused."""
    try:
        return parse_body(part, LedgerBody).first_index
    except PeerError:
        return -1
