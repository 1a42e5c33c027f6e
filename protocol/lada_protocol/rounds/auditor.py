"""The auditor's next task, from the message index alone (SPEC.md, "State machines", Auditor)."""

from __future__ import annotations

from dataclasses import dataclass

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.admission import is_to_admit, shown_with_acceptance
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.tasks import (
    AdmitSite,
    CheckLedger,
    CloseRound,
    OpenSum,
    PostOpeningKey,
    Task,
    Wait,
)
from lada_protocol.rounds.view import RoundView, study_over
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import LedgerBody, parse_body
from lada_secure.errors import PeerError


def next_auditor_task(index: MessageIndex, *, plan: StudyPlan, roster: Roster) -> Task:
    """What the auditor does next.

    Acceptances with a verified ledger come first: a site spends nothing before its answer. Ledgers
    come before sums, so that a contribution's payment is known when its sum arrives.
    """
    auditor, coordinator = roster.auditor.id, roster.coordinator.id
    for purpose in purposes_of(plan):
        if index.find(Kind.OPENING_KEY, sender=auditor, purpose=purpose) is None:
            return PostOpeningKey(purpose=purpose)
    for party in roster.sites:
        if is_to_admit(index, party.id, roster=roster):
            return AdmitSite(site=party.id)
    unchecked = [one for one in index if one.kind is Kind.LEDGER and _is_due(index, one, auditor)]
    if unchecked:
        # Oldest part of each chain first: a later part only verifies on top of it.
        first = min(unchecked, key=lambda part: (part.header.sender, _first_index(part))).header
        return CheckLedger(site=first.sender, round_id=first.round_id, purpose=first.purpose)
    current = 0
    for round_id in range(plan.rounds):
        see = _AuditorRound(index=index, plan=plan, roster=roster, round_id=round_id)
        task = see.task()
        if task is not None:
            return task
        current = current if see.find(Kind.CLOSE, auditor) is None else round_id + 1
    over = study_over(index, plan=plan, roster=roster)
    current = min(current, plan.rounds - 1)
    awaited = Wait(
        step="opening", round_id=current, awaited="contributions", parties=(coordinator,)
    )
    return over or awaited


@dataclass(frozen=True, slots=True, kw_only=True)
class _AuditorRound(RoundView):
    def task(self) -> Task | None:
        """The auditor's task in the round; None while, or once, there is nothing to do."""
        for purpose in purposes_of(self.plan):
            for number in self.index.attempts(Kind.SUM, round_id=self.round_id, purpose=purpose):
                attempt = self.attempt(purpose, number)
                answers = (Kind.OPENED, Kind.OPENING_REFUSED)
                if not any(self.index.at(kind, attempt, sender=self.auditor) for kind in answers):
                    return OpenSum(attempt=attempt)
        if self.find(Kind.TRANSCRIPT, self.coordinator) is None:
            return None
        return self.until(Kind.CLOSE, self.auditor, CloseRound(round_id=self.round_id))


def _is_due(index: MessageIndex, part: Envelope, auditor: str) -> bool:
    """Whether a ledger part has no answer; one that comes with an acceptance waits for that."""
    head = part.header
    with_acceptance = shown_with_acceptance(index, head.sender) is part
    if with_acceptance and index.find(Kind.ACCEPTANCE, sender=head.sender) is None:
        return False
    place = Attempt(round_id=head.round_id, purpose=head.purpose, number=0)
    answers = (Kind.RECEIPT, Kind.REFUSAL)
    return not any(index.at(kind, place, sender=auditor, to=head.sender) for kind in answers)


def _first_index(part: Envelope) -> int:
    """Where the part starts; a body that cannot be read comes first and is refused."""
    try:
        return parse_body(part, LedgerBody).first_index
    except PeerError:
        return -1
