"""The auditor: admits sites, countersigns ledgers, opens each sum once, signs transcripts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lada_clients.auditor.ledgers import (
    KnownEntries,
    LedgerCopies,
    admitted_claim,
    claim_of,
    ledger_fault,
)
from lada_clients.auditor.opening import SumOpening, fault_body
from lada_clients.net.participant import Participant
from lada_protocol.events import NewLedger
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.admission import (
    check_ledger_claim,
    check_slm,
    shown_with_acceptance,
)
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.tasks import Post
from lada_protocol.run_loop import Handler, RunLoop, StudyFailed
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody, parse_body
from lada_secure.errors import LedgerError, LocalProtocolError, PeerError
from lada_secure.privacy.ledger.entries import parse_ledger_lines
from lada_secure.privacy.ledger.verification import ledger_identity

LOG = logging.getLogger(__name__)


def plan_faults(plan: StudyPlan, *, min_cohort: int, epsilon_cap: float) -> tuple[str, ...]:
    """Everything in which a plan passes the auditor's settings; empty where it may be served."""
    faults = []
    if plan.min_cohort < min_cohort:
        faults.append(f"min_cohort {plan.min_cohort} is below {min_cohort}")
    if plan.privacy.epsilon_cap > epsilon_cap:
        faults.append(f"epsilon_cap {plan.privacy.epsilon_cap} is above {epsilon_cap}")
    return tuple(faults)


@dataclass(slots=True, kw_only=True)
class Auditor:
    """One study at the auditor. state_dir: keys, copies and notes, over all studies."""

    participant: Participant
    state_dir: Path
    known_entries: KnownEntries
    min_cohort: int
    epsilon_cap: float
    ledgers: LedgerCopies = field(init=False)
    opening: SumOpening = field(init=False)

    def __post_init__(self) -> None:
        me, folder = self.participant, self.state_dir
        self.ledgers = LedgerCopies(state_dir=folder)
        self.opening = SumOpening(participant=me, state_dir=folder, ledgers=self.ledgers)

    def run(self) -> None:
        """Serve the study to its end.

        Raises: StudyFailed: the coordinator gave up, or this auditor refuses the plan.
        """
        faults = self._refused_plan()
        if faults:
            raise StudyFailed(f"{self.participant.party} refuses the plan: {faults}")
        self.loop.run()

    @property
    def loop(self) -> RunLoop:
        """What the auditor does in a study, task by task."""
        me = self.participant
        return me.run_loop(
            lambda: next_auditor_task(me.index),
            {
                Kind.OPENING_KEY: Handler(
                    "plan", lambda t: self.opening.post_key(t.attempt.purpose)
                ),
                Kind.ADMISSION: Handler("plan", lambda t: self._admit(t.to)),
                Kind.RECEIPT: Handler("opening", self._check_ledger),
                Kind.OPENED: Handler("opening", lambda t: self.opening.answer(t.attempt)),
                Kind.CLOSE: Handler("close", lambda t: me.close_round(t.round_id)),
            },
        )

    def _refused_plan(self) -> str:
        """What the settings have against the plan, once that it is refused is posted."""
        me, plan = self.participant, self.participant.plan
        faults = plan_faults(plan, min_cohort=self.min_cohort, epsilon_cap=self.epsilon_cap)
        if faults:
            me.post(Kind.REFUSAL, {"code": str(FailureCode.POLICY), "message": ""})
        return "; ".join(faults)

    def _admit(self, site: str) -> None:
        """Admit a site whose ledger goes on where it was last seen; no other one may spend."""
        me, known = self.participant, self.known_entries.before(site)
        acceptance = me.index.find(Kind.ACCEPTANCE, sender=site)
        if acceptance is None:
            raise LocalProtocolError(f"asked to admit {site}, which has not accepted")
        if known == 0:
            self._tell_new_ledger(site, parse_body(acceptance, AcceptanceBody))
        body = {"acceptance": acceptance.message_hash, "known_entries": known}
        me.post(Kind.ADMISSION, body, to=site)

    def _joining(self, site: str, body: LedgerBody, part: bytes) -> AcceptanceBody:
        """What a site accepts with, compared with the copy over all studies; nothing is kept yet.

        Raises: PeerError: slm_not_allowed, ledger_behind, ledger_forked, other_ledger, bad_ledger.
            The refusal of this part is the refusal of the acceptance.
        """
        claim = claim_of(self.participant.index, site)
        if claim is None:
            raise LocalProtocolError(f"asked to admit {site}, which has not accepted")
        check_slm(self.participant.index, claim, site=site)
        copy = self.ledgers.entries(site, claim.population)
        if body.first_index != 0:
            raise ledger_fault(
                site,
                "with an acceptance the whole ledger is shown, got entries from "
                f"{body.first_index} on",
            )
        try:
            shown = parse_ledger_lines(part)
        except LedgerError as error:
            raise ledger_fault(site, str(error)) from error
        granted = self.ledgers.granted(claim.ledger_id)
        check_ledger_claim(claim, shown, copy, site=site, granted=granted)
        known = bool(copy) and ledger_identity(copy).ledger_id == claim.ledger_id
        self.known_entries.note(site, len(copy) if known else 0)
        return claim

    def _tell_new_ledger(self, site: str, claim: AcceptanceBody) -> None:
        """A ledger that this auditor has never seen is a budget from its start: say so loudly."""
        restarted = self.ledgers.granted(claim.ledger_id) is not None
        how = "shows a ledger that is new here"
        if restarted:
            how = "goes on with a ledger that was restarted"
        elif claim.new_ledger:
            how = "starts a new ledger with the whole budget"
        others = [one for one in self.ledgers.populations(site) if one != claim.population]
        also = f"; it has shown ledgers of {', '.join(others)} before" if others else ""
        LOG.warning("%s %s, population %s%s", site, how, claim.population, also)
        self.participant.events.write(
            NewLedger,
            round_id=0,
            step="plan",
            site=site,
            population=claim.population,
            restarted=restarted,
            entries=claim.head_index + 1,
        )

    def _check_ledger(self, task: Post) -> None:
        me, site = self.participant, task.to
        round_id, purpose = task.round_id, task.attempt.purpose
        message = me.index.find(Kind.LEDGER, sender=site, round_id=round_id, purpose=purpose)
        answer = partial(me.post, round_id=round_id, purpose=purpose, to=site)
        try:
            if message is None:
                raise PeerError(
                    f"round {round_id}, {purpose}: a ledger of {site} names an attempt or an "
                    "addressee; ledgers have neither",
                    peer=site,
                    round_id=round_id,
                )
            body, part = parse_body(message, LedgerBody), me.payload(message)
            if message is shown_with_acceptance(me.index, site):
                claim = self._joining(site, body, part)
            else:
                claim = admitted_claim(me.index, site)
            self.ledgers.append(me.roster.party(site), claim, body, part)
        except PeerError as error:
            # One site's bad ledger ends nobody else's work; its contributions stay unpaid.
            answer(Kind.REFUSAL, fault_body(error))
            return
        answer(Kind.RECEIPT, {"head_index": body.head_index, "head_hash": body.head_hash})
