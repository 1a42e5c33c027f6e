"""The coordinator's next task, from the message index alone (SPEC.md, "State machines")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import admission_of, shown_with_acceptance, slm_refusal
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.refusals import has_left
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.tasks import GiveUp, Post, RoundView, Task
from lada_protocol.rounds.transcript import missing_from_round
from lada_protocol.wire.messages import (
    MAX_SENTENCE,
    CohortBody,
    InquiryBody,
    fault_of,
    parse_body,
)
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS

# Stands in `given_up` for the time before the first round.
BEFORE_ROUNDS = -1
TOO_FEW = "cohort_too_small"


def next_coordinator_task(index: MessageIndex, *, given_up: frozenset[tuple[int, str]]) -> Task:
    """What the coordinator does next.

    Args: given_up: (round, party) pairs that did not answer within the plan's phase timeout, or
        answered with something that cannot be used; round -1 stands for the time before the
        first round.
    """
    return _CoordinatorView(index=index, me=index.coordinator, given_up=given_up).task()


@dataclass(frozen=True, slots=True, kw_only=True)
class _CoordinatorView(RoundView):
    given_up: frozenset[tuple[int, str]]
    accepted: tuple[str, ...] = ()

    def task(self) -> Task:
        over = self.over()
        if over is not None:
            return over
        if self.find(Kind.CLUSTERS, self.me) is None:
            return Post(kind=Kind.PLAN)
        refusal = self.find(Kind.REFUSAL, self.auditor)
        if refusal is not None:
            said = f"{self.auditor} refuses the plan: {fault_of(refusal)}"
            return GiveUp(code="refused", message=said)
        no_auditor = (BEFORE_ROUNDS, self.auditor) in self.given_up
        purposes = purposes_of(self.plan)
        if not all(self.find(Kind.OPENING_KEY, self.auditor, purpose=one) for one in purposes):
            if no_auditor:
                never = "the auditor never posted its opening keys"
                return GiveUp(code="timeout", message=never)
            return self.wait("plan", "opening keys", self.auditor)
        accepted, refused, silent, unanswered = self.answers()
        coming = len(accepted) + len(unanswered)
        # Whoever has refused does not come back, so nobody need wait for the others' answers.
        hopeless = coming + len(silent) < self.plan.min_cohort
        if silent and coming < self.plan.max_cohort and not hopeless:
            return self.wait("plan", "answers to the plan", *silent, until=self.plan.approve_by)
        if unanswered and not no_auditor and not hopeless:
            return self.wait("plan", "admissions", self.auditor)
        if len(accepted) < self.plan.min_cohort:
            reasons = f" ({'; '.join(refused)})" if refused else ""
            most = coming + len(silent)
            asked = hopeless and (silent or unanswered)
            said = f"at most {most} sites can" if asked else f"{len(accepted)} sites"
            needed = f"{said} take part, {self.plan.min_cohort} are needed{reasons}"
            return GiveUp(code=TOO_FEW, message=needed[:MAX_SENTENCE])
        return replace(self, accepted=tuple(accepted)).first_of_rounds() or Post(kind=Kind.FINISHED)

    def answers(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Sites that were admitted, refusals in words, sites to wait for, and sites to admit.

        A site that was admitted and has withdrawn since is among the first: what it has sent until
        then counts, and `present` leaves it out of everything else.
        """
        index = self.index
        accepted, refused, silent, unanswered = [], [], [], []
        for site in (party.id for party in index.roster.sites):
            refusal = self.find(Kind.REFUSAL, self.auditor, to=site)
            if refusal is None and admission_of(index, site) is None:
                refusal = self.find(Kind.REFUSAL, site)
            if refusal is not None:
                refused.append(f"{site}: {fault_of(refusal)}")
            elif wrong := slm_refusal(index, site):
                # Whatever the auditor says of it.
                refused.append(f"{site}: {wrong}")
            elif admission_of(index, site) is not None:
                accepted.append(site)
            elif self.find(Kind.ACCEPTANCE, site) and shown_with_acceptance(index, site):
                unanswered.append(site)
            elif (BEFORE_ROUNDS, site) not in self.given_up:
                silent.append(site)
            else:
                refused.append(f"{site}: no answer in time")
        return accepted, refused, silent, unanswered

    def round_task(self) -> Task | None:
        alive = self.present(self.accepted)
        asking = tuple(site for site in self.opened_cohort(STATISTICS) if site in alive)
        # The matrix comes before any query is answered, and before there need be one.
        return (
            self.opening(STATISTICS, alive)
            or self.owed(Kind.MATRIX)
            or self.scoring(asking)
            or self.opening(DEMAND, asking)
            or self.owed(Kind.PATHS)
            or self.before_transcript()
            or self.owed(Kind.CLOSE)
            or self.after_transcript()
        )

    def scoring(self, asking: tuple[str, ...]) -> Task | None:
        silent = self.silent(Kind.QUERY, asking, to=self.me)
        for site in asking:
            scores = None if site in silent else self.owed(Kind.SCORES, to=site)
            if scores is not None:
                return scores
        if silent and not self.attempts(Kind.COHORT, DEMAND):
            return self.wait("scoring", "queries", *silent)
        return None

    def before_transcript(self) -> Task | None:
        if self.find(Kind.TRANSCRIPT, self.me) is not None:
            return None
        cohort = self.opened_cohort(DEMAND)
        present = self.present(cohort)
        late = self.silent(Kind.TRAINED, present)
        if late:
            return self.wait("distillation", "training", *late)
        if len(cohort) - len(self.silent(Kind.TRAINED, cohort)) < self.plan.min_cohort:
            # What was paid for is spent, and nobody may take it for a study that was carried out.
            message = self.missing() + self.leavers()
            return GiveUp(code=TOO_FEW, message=message[:MAX_SENTENCE])
        task = self.uplink(present) if self.plan.transfer_in(self.round_id) is not None else None
        return task or self.owed(Kind.TRANSCRIPT)

    def after_transcript(self) -> Task | None:
        present = self.present(self.opened_cohort(DEMAND))
        untrained = self.silent(Kind.TRAINED, present)
        signers = [site for site in present if site not in untrained]
        late = self.silent(Kind.CLOSE, self.present([*signers, self.auditor]))
        if late:
            return self.wait("close", "signatures", *late)
        missing = self.missing()
        return GiveUp(code=TOO_FEW, message=missing) if missing else None

    def uplink(self, trained: tuple[str, ...]) -> Task | None:
        """The coordinator's task in the LLM transfer; None once it is over, or where it cannot be.

        The round is complete without it, so too few sites for a sum end the LLM transfer and not
        the study.
        """
        task = self.opening(CONFIDENCE_EXCESS, trained)
        if task is not None:
            too_few = isinstance(task, GiveUp) and task.code == TOO_FEW
            return None if too_few else task
        if self.find(Kind.LLM_UPDATE, self.me) is not None:
            return None
        inquiry = self.find(Kind.INQUIRY, self.me)
        if inquiry is None:
            return self.owed(Kind.INQUIRY)
        if parse_body(inquiry, InquiryBody).samples:
            asked = self.present(self.opened_cohort(CONFIDENCE_EXCESS))
            late = self.silent(Kind.SITE_PATHS, asked, to=self.me)
            if late:
                return self.wait("uplink", "site paths", *late)
        return self.owed(Kind.LLM_UPDATE)

    def opening(self, purpose: str, alive: tuple[str, ...]) -> Task | None:
        """The coordinator's task in a secure aggregation; None once it is opened."""
        me, auditor, index = self.me, self.auditor, self.index
        attempts = self.attempts(Kind.COHORT, purpose)
        attempt = attempts[-1] if attempts else self.attempt(purpose, -1)
        if not attempts or index.at(Kind.ABORT, attempt, sender=me) is not None:
            if len(alive) < self.plan.min_cohort:
                needed = f"{len(alive)} sites are left, {self.plan.min_cohort} are needed"
                message = f"round {self.round_id}: {needed}{self.leavers()}"
                return GiveUp(code=TOO_FEW, message=message[:MAX_SENTENCE])
            fresh = self.attempt(purpose, attempt.number + 1)
            return Post(kind=Kind.COHORT, attempt=fresh, sites=tuple(sorted(alive)))
        if index.at(Kind.OPENED, attempt, sender=auditor) is not None:
            return None
        refused = index.at(Kind.OPENING_REFUSED, attempt, sender=auditor)
        if refused is not None:
            return GiveUp(code="opening_refused", message=fault_of(refused))
        if index.at(Kind.SUM, attempt, sender=me) is not None:
            if (self.round_id, auditor) not in self.given_up:
                return self.wait("opening", "the opened sum", auditor, attempt=attempt)
            # A second attempt would not help: whether the first was opened is not known here.
            silence = f"round {self.round_id}: the auditor did not answer the sum"
            return GiveUp(code="timeout", message=silence)
        cohort = self.cohort(attempt)
        gone = tuple(site for site in cohort if site not in alive)
        if gone:
            # Late, or what it sent cannot be used: go on among the others, with fresh keys.
            return Post(kind=Kind.ABORT, attempt=attempt, sites=gone)
        for kind, awaited in ((Kind.MASK_KEY, "mask keys"), (Kind.CONTRIBUTION, "contributions")):
            sent = index.all_at(kind, attempt)
            missing = [site for site in cohort if site not in sent]
            if missing:
                return self.wait("opening", awaited, *missing, attempt=attempt)
        return Post(kind=Kind.SUM, attempt=attempt, sites=cohort)

    def present(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Those that were not given up in this round and have not withdrawn."""
        return tuple(
            site
            for site in sites
            if (self.round_id, site) not in self.given_up and not has_left(self.index, site)
        )

    def leavers(self) -> str:
        """Who has withdrawn, in brackets behind another sentence; empty where nobody has."""
        left = [site for site in self.accepted if has_left(self.index, site)]
        return f" ({', '.join(left)} withdrew)" if left else ""

    def cohort(self, attempt: Attempt) -> tuple[str, ...]:
        """The sites of an attempt; none before it has a cohort."""
        named = self.index.at(Kind.COHORT, attempt, sender=self.me)
        return () if named is None else tuple(parse_body(named, CohortBody).sites)

    def opened_cohort(self, purpose: str) -> tuple[str, ...]:
        """The sites whose sum was opened."""
        cohorts = map(self.cohort, self.attempts(Kind.OPENED, purpose))
        return next(filter(None, cohorts), ())

    def missing(self) -> str:
        """What the round lacks of being carried out; empty where it lacks nothing."""
        return missing_from_round(self.index, self.round_id)
