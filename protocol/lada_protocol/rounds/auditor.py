"""The auditor's next task, from the message index alone (DESIGN section 3)."""

from __future__ import annotations

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.admission import is_to_admit, shown_with_acceptance
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.site import study_over
from lada_protocol.rounds.tasks import (
    AdmitSite,
    AuditorTask,
    CheckLedger,
    CloseRound,
    OpenSum,
    PostOpeningKey,
    Wait,
)
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import LedgerBody, parse_body
from lada_secure.errors import PeerError


def next_auditor_task(index: MessageIndex, *, plan: StudyPlan, roster: Roster) -> AuditorTask:
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
    ledger = _unchecked_ledger(index, auditor)
    if ledger is not None:
        return ledger
    current = 0
    for round_id in range(plan.rounds):
        for purpose in purposes_of(plan):
            attempt = _unopened(index, auditor, round_id, purpose)
            if attempt is not None:
                return OpenSum(attempt=attempt)
        closed = index.find(Kind.CLOSE, sender=auditor, round_id=round_id) is not None
        if not closed and index.find(Kind.TRANSCRIPT, sender=coordinator, round_id=round_id):
            return CloseRound(round_id=round_id)
        current = round_id + 1 if closed else current
    over = study_over(index, plan=plan, roster=roster)
    if over is not None:
        return over
    return Wait(
        step="opening",
        round_id=min(current, plan.rounds - 1),
        awaited="contributions",
        parties=(coordinator,),
    )


def _unchecked_ledger(index: MessageIndex, auditor: str) -> CheckLedger | None:
    waiting = []
    for envelope in index:
        head = envelope.header
        if envelope.kind is not Kind.LEDGER or _is_early(index, envelope):
            continue
        answered = any(
            index.find(
                kind,
                sender=auditor,
                to=head.sender,
                round_id=head.round_id,
                purpose=head.purpose,
            )
            for kind in (Kind.RECEIPT, Kind.REFUSAL)
        )
        if not answered:
            waiting.append((_first_index(envelope), head))
    if not waiting:
        return None
    # Oldest part of each chain first: a later part only verifies on top of it.
    _, first = min(waiting, key=lambda one: (one[1].sender, one[0]))
    return CheckLedger(site=first.sender, round_id=first.round_id, purpose=first.purpose)


def _is_early(index: MessageIndex, envelope: Envelope) -> bool:
    """Whether it is the ledger of an acceptance that is not there yet."""
    head = envelope.header
    with_it = shown_with_acceptance(index, head.sender)
    return with_it is envelope and index.find(Kind.ACCEPTANCE, sender=head.sender) is None


def _first_index(envelope: Envelope) -> int:
    """Where the part starts; a body that cannot be read comes first and is refused."""
    try:
        return parse_body(envelope, LedgerBody).first_index
    except PeerError:
        return -1


def _unopened(index: MessageIndex, auditor: str, round_id: int, purpose: str) -> Attempt | None:
    for number in index.attempts(Kind.SUM, round_id=round_id, purpose=purpose):
        attempt = Attempt(round_id=round_id, purpose=purpose, number=number)
        answers = (Kind.OPENED, Kind.OPENING_REFUSED)
        if all(index.at(kind, attempt, sender=auditor) is None for kind in answers):
            return attempt
    return None
