"""The auditor: countersigns ledgers, opens each sum once or refuses, signs transcripts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lada_clients.auditor.ledgers import KnownEntries, LedgerCopies
from lada_clients.auditor.registry import AggregationRegistry
from lada_clients.auditor.scores import ScoreCheck
from lada_clients.net.participant import Participant
from lada_protocol.events import NewLedger
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import admission_of, check_ledger_claim, shown_with_acceptance
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.payments import check_payment
from lada_protocol.rounds.secure_aggregation import (
    AggregateRequest,
    check_aggregate_request,
    check_opened_range,
    purpose_parameters,
)
from lada_protocol.rounds.tasks import Post
from lada_protocol.run_loop import Handler, RunLoop, StudyFailed
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import AcceptanceBody, FaultBody, LedgerBody, parse_body
from lada_secure.canonical import canonical_json
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.sealing import SealedSum
from lada_secure.errors import LedgerError, LocalProtocolError, PeerError
from lada_secure.method.plan import DEMAND
from lada_secure.privacy.ledger.entries import LedgerEntry, parse_ledger_lines
from lada_secure.privacy.ledger.verification import ledger_identity
from lada_secure.storage.whole_files import read_if_there, write_atomically

LOG = logging.getLogger(__name__)

# Refusals that only a decryption can cause.
REFUSED_BY_KEY = frozenset({"out_of_range", "over_quota", "native_failure"})


@dataclass(slots=True, kw_only=True)
class Auditor:
    """One study at the auditor. Aggregate keys never leave `state_dir`."""

    participant: Participant
    state_dir: Path
    ledgers: LedgerCopies
    known_entries: KnownEntries
    registry: AggregationRegistry
    min_cohort: int
    epsilon_cap: float
    _scores: ScoreCheck = field(init=False)

    def __post_init__(self) -> None:
        self._scores = ScoreCheck(participant=self.participant)

    def run(self) -> None:
        """Serve the study to its end.

        Raises: StudyFailed: the coordinator gave up, or this auditor refuses the plan.
        """
        if not self._plan_is_acceptable():
            raise StudyFailed("the plan is outside the auditor's settings; it was refused")
        self.loop.run()

    @property
    def loop(self) -> RunLoop:
        """What the auditor does in a study, task by task."""
        me = self.participant
        return me.run_loop(
            lambda: next_auditor_task(me.index),
            {
                Kind.OPENING_KEY: Handler("plan", lambda t: self._post_key(t.attempt.purpose)),
                Kind.ADMISSION: Handler("plan", lambda t: self._admit(t.to)),
                Kind.RECEIPT: Handler("opening", self._check_ledger),
                Kind.OPENED: Handler("opening", lambda t: self._open(t.attempt)),
                Kind.CLOSE: Handler("close", lambda t: me.close_round(t.round_id)),
            },
        )

    def _plan_is_acceptable(self) -> bool:
        me, plan = self.participant, self.participant.plan
        faults = []
        if plan.min_cohort < self.min_cohort:
            faults.append(f"min_cohort {plan.min_cohort} is below {self.min_cohort}")
        if plan.privacy.epsilon_cap > self.epsilon_cap:
            faults.append(f"epsilon_cap {plan.privacy.epsilon_cap} is above {self.epsilon_cap}")
        if faults:
            message = f"{me.party} refuses the plan: {'; '.join(faults)}"
            me.post(Kind.REFUSAL, {"code": "policy", "message": message})
        return not faults

    def _key(self, purpose: str) -> AggregateKey:
        """The BFV key of a purpose: one per study, made at its first use, kept on disk."""
        plan = self.participant.plan
        parameters = purpose_parameters(plan, purpose)
        path = self.state_dir / "keys" / f"{plan.study_id}-{plan.hash[:16]}-{purpose}.key"
        kept = read_if_there(path)
        if kept is None:
            key = AggregateKey.generate(parameters)
            write_atomically(path, key.to_bytes(), mode=0o600)
        else:
            key = AggregateKey.from_bytes(kept)
        if key.parameters != parameters:
            raise LocalProtocolError(f"{path} holds a key for other parameters")
        return key

    def _post_key(self, purpose: str) -> None:
        me = self.participant
        digest = purpose_parameters(me.plan, purpose).digest
        me.post(
            Kind.OPENING_KEY,
            {"parameters_digest": digest, "certificate": me.certificate},
            lambda: self._key(purpose).public_bytes,
            purpose=purpose,
        )

    def _admit(self, site: str) -> None:
        """Admit a site whose ledger goes on where it was last seen; no other one may spend."""
        acceptance, known = self._acceptance(site), self.known_entries.before(site)
        if known == 0:
            self._tell_new_ledger(site, parse_body(acceptance, AcceptanceBody))
        body = {"acceptance": acceptance.message_hash, "known_entries": known}
        self.participant.post(Kind.ADMISSION, body, to=site)

    def _acceptance(self, site: str) -> Envelope:
        acceptance = self.participant.index.find(Kind.ACCEPTANCE, sender=site)
        if acceptance is None:
            raise LocalProtocolError(f"asked to admit {site}, which has not accepted")
        return acceptance

    def _joining(self, site: str, body: LedgerBody, part: bytes) -> AcceptanceBody:
        """What a site accepts with, compared with the copy over all studies; nothing is kept yet.

        Raises: PeerError: ledger_behind, ledger_forked, other_ledger, bad_ledger. The refusal of
            this part is the refusal of the acceptance.
        """
        claim = parse_body(self._acceptance(site), AcceptanceBody)
        copy = self.ledgers.entries(site, claim.population)
        if body.first_index != 0:
            raise PeerError(
                f"ledger of {site}: with an acceptance the whole ledger is shown, got entries from "
                f"{body.first_index} on",
                reason="bad_ledger",
                peer=site,
            )
        try:
            shown = parse_ledger_lines(part)
        except LedgerError as error:
            raise PeerError(f"ledger of {site}: {error}", reason="bad_ledger", peer=site) from error
        granted = self.ledgers.grants.of(claim.ledger_id)
        check_ledger_claim(claim, shown, copy, site=site, granted=granted)
        self.known_entries.note(site, len(copy) if _is_of(copy, claim) else 0)
        return claim

    def _tell_new_ledger(self, site: str, claim: AcceptanceBody) -> None:
        """A ledger that this auditor has never seen is a budget from its start: say so loudly."""
        restarted = self.ledgers.grants.of(claim.ledger_id) is not None
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

    def _claim(self, site: str) -> AcceptanceBody:
        """What an admitted site has accepted with. Raises: PeerError: it was not admitted."""
        me = self.participant
        acceptance = me.index.find(Kind.ACCEPTANCE, sender=site)
        if acceptance is None or admission_of(me.index, site) is None:
            raise PeerError(
                f"{site} sends a ledger, but was not admitted to the study",
                reason="not_admitted",
                peer=site,
            )
        return parse_body(acceptance, AcceptanceBody)

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
            joins = message is shown_with_acceptance(me.index, site)
            claim = self._joining(site, body, part) if joins else self._claim(site)
            self.ledgers.append(me.roster.party(site), claim, body, part)
        except PeerError as error:
            # One site's bad ledger ends nobody else's work; its contributions stay unpaid.
            answer(Kind.REFUSAL, _fault(error))
            return
        answer(Kind.RECEIPT, {"head_index": body.head_index, "head_hash": body.head_hash})

    def _open(self, attempt: Attempt) -> None:
        me = self.participant
        try:
            request = self._verified(attempt)
            sealed = self._recomputed_sum(request)
            if attempt.purpose == DEMAND:
                self._scores.check(attempt, request.cohort)
            self.registry.claim(me.plan.study_id, attempt, request.sum_message.message_hash)
            values = [int(value) for value in self._key(attempt.purpose).open_sum(sealed)]
            check_opened_range(values, me.plan, attempt.purpose, len(request.cohort))
        except PeerError as error:
            me.post_at(Kind.OPENING_REFUSED, attempt, _fault(error))
            return
        contributions = {site: sent.message_hash for site, sent in request.contributions.items()}
        body = {
            "contributions": contributions,
            "sum_message": request.sum_message.message_hash,
            "largest": max(abs(value) for value in values),
        }
        me.post_at(Kind.OPENED, attempt, body, lambda: canonical_json(values))

    def _verified(self, attempt: Attempt) -> AggregateRequest:
        """Every check that comes before the key is touched."""
        me = self.participant
        self._check_key_is_fresh(attempt)
        request = check_aggregate_request(me.index, attempt)
        for site, paid_by in request.paid_by.items():
            entries = self.ledgers.entries(site, self._claim(site).population)
            check_payment(entries, paid_by, plan=me.plan, attempt=attempt, site=site)
        return request

    def _check_key_is_fresh(self, attempt: Attempt) -> None:
        """A key that has once said "out of range" says nothing more.

        Each such answer to a crafted ciphertext is about one bit on the secret key, so a
        coordinator that goes on after a refusal must not get a second one.

        Raises: PeerError(reason="key_retired").
        """
        me = self.participant
        refusal = Kind.OPENING_REFUSED, me.party, attempt.purpose
        for message in me.index:
            head = message.header
            if (message.kind, head.sender, head.purpose) == refusal and (
                parse_body(message, FaultBody).code in REFUSED_BY_KEY
            ):
                raise PeerError(
                    f"the opening key of {attempt.purpose} refused a sum in round {head.round_id} "
                    "and is not used again; start a new study",
                    reason="key_retired",
                    peer=me.roster.coordinator.id,
                    round_id=attempt.round_id,
                )

    def _recomputed_sum(self, request: AggregateRequest) -> bytes:
        """The sum as the auditor adds it up itself; the coordinator's must be the same bytes."""
        me = self.participant
        parameters = purpose_parameters(me.plan, request.attempt.purpose)
        running = SealedSum(parameters)
        # One at a time: memory does not grow with the cohort.
        for site in request.cohort:
            running.add(me.payload(request.contributions[site]))
        total = running.to_bytes()
        if total != me.payload(request.sum_message):
            raise PeerError(
                f"round {request.attempt.round_id}, {request.attempt.purpose}: the coordinator's "
                "sum is not the sum of the signed contributions",
                reason="wrong_sum",
                peer=me.roster.coordinator.id,
                round_id=request.attempt.round_id,
            )
        return total


def _fault(error: PeerError) -> dict[str, str]:
    return {"code": error.reason, "message": str(error)[:1000]}


def _is_of(copy: Sequence[LedgerEntry], claim: AcceptanceBody) -> bool:
    return bool(copy) and ledger_identity(copy).ledger_id == claim.ledger_id
