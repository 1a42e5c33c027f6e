"""A site during one study: carries out its next task until the study is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from lada_clients.participant import Outgoing, Participant, StudyFailed, checked_transcript
from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import SiteMemory
from lada_clients.site.policy import describe_plan, plan_faults
from lada_clients.site.secrets import SecretFolder
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.index import Attempt
from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.messages import OpenedBody, parse_body
from lada_protocol.opening import (
    check_mask_keys,
    keys_digest,
    mask_context,
    purpose_parameters,
    site_bound_of,
)
from lada_protocol.plan import DEMAND, STATISTICS, TRAINING, parse_time
from lada_protocol.site_round import next_site_task
from lada_protocol.tasks import (
    AskScores,
    CloseRound,
    Contribute,
    Distil,
    Done,
    PostMaskKey,
    ReviewPlan,
    SiteTask,
    Wait,
)
from lada_secure.canonical import parse_canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, Record, parse_pool, pool_hash, read_records
from lada_secure.distillation.training import StepReport
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import LedgerError, LocalProtocolError, ParameterError, PeerError
from lada_secure.learnability.arrays import FloatArray
from lada_secure.learnability.cells import Clusters, parse_clusters
from lada_secure.learnability.statistics import NoisedStatistics
from lada_secure.privacy.ledger import LedgerBook, ReserveEntry, format_ledger_lines
from lada_secure.privacy.released import Released, post_process, require_released
from lada_secure.privacy.units import bound_units

STEPS: Mapping[type[object], str] = {
    ReviewPlan: "plan",
    PostMaskKey: "opening",
    Contribute: "opening",
    AskScores: "filter",
    Distil: "distillation",
    CloseRound: "close",
}


@dataclass(slots=True, kw_only=True)
class Site:
    """One study at one site."""

    participant: Participant
    settings: SiteSettings
    policy: SitePolicy
    book: LedgerBook
    secrets: SecretFolder
    memory: SiteMemory
    now: Callable[[], datetime]
    approved: Callable[[str, str], bool]
    _learner: SiteLearner | None = field(default=None)

    def run(self) -> None:
        """Take part in the study to its end.

        Raises: StudyFailed: the coordinator gave up, or this site refused the plan.
        """
        me = self.participant
        while True:
            me.sync()
            task = next_site_task(me.index, plan=me.plan, roster=me.roster, site=me.party)
            if isinstance(task, Done):
                if task.failure is not None:
                    raise StudyFailed(task.failure)
                self._forget_keys()
                me.events.write("finished", round_id=me.plan.rounds - 1, step="close")
                return
            if isinstance(task, Wait):
                me.wait(task)
            else:
                self._carry_out(task)

    def _forget_keys(self) -> None:
        """Every mask and query of the study was used; no later message needs their keys."""
        for use in ("mask", "scores"):
            self.secrets.forget(f"{use}-{self.participant.plan.hash[:16]}-")

    def _carry_out(self, task: SiteTask) -> None:
        events, client = self.participant.events, self.participant.client
        step, round_id = _step_of(task), _round_of(task)
        began, before = time.monotonic(), client.traffic
        events.write("step_started", round_id=round_id, step=step)
        match task:
            case ReviewPlan():
                self._review()
            case PostMaskKey(attempt=attempt):
                self._post_mask_key(attempt)
            case Contribute(attempt=attempt, cohort=cohort):
                self._contribute(attempt, cohort)
            case AskScores(round_id=round_id):
                self._ask_scores(round_id)
            case Distil(round_id=round_id):
                self._distil(round_id)
            case CloseRound(round_id=round_id):
                digest = checked_transcript(self.participant, round_id)
                self.participant.post(
                    Kind.CLOSE,
                    lambda: Outgoing(body={"transcript_sha256": digest}),
                    round_id=round_id,
                )
        after = client.traffic
        events.write(
            "step_finished",
            round_id=round_id,
            step=step,
            seconds=round(time.monotonic() - began, 3),
            bytes_up=after.up_bytes - before.up_bytes,
            bytes_down=after.down_bytes - before.down_bytes,
        )

    def _review(self) -> None:
        """Step 1: accept or refuse; either decision is a ledger entry before it is a message."""
        me = self.participant
        plan = me.plan
        faults = plan_faults(plan, self.policy, roster=me.roster, now=self.now())
        by_person = self.policy.approval == "person"
        if not faults and by_person and not self.approved(plan.study_id, plan.hash):
            faults = (
                "nobody has approved it here; read it with `lada site show` and decide with "
                f"`lada site approve {plan.study_id}`",
            )
        if faults or not by_person:
            self.book.decide(
                "refuse" if faults else "approve",
                study_id=plan.study_id,
                plan_hash=plan.hash,
                expires=parse_time(plan.expires),
                decided_by=f"policy-of-{me.party}",
                statement="; ".join(faults) if faults else " ".join(describe_plan(plan)),
            )
        if faults:
            message = f"{me.party} refuses the plan: {'; '.join(faults)}"
            me.post(
                Kind.REFUSAL,
                lambda: Outgoing(body={"code": "policy", "message": message[:1000]}),
            )
            raise StudyFailed(message)
        me.post(
            Kind.ACCEPTANCE,
            lambda: Outgoing(
                body={"certificate": me.certificate, "population": self.policy.population}
            ),
        )
        self._tell_accuracy("before", round_id=0)

    def _post_mask_key(self, attempt: Attempt) -> None:
        key = self._mask_key(attempt)
        self.participant.post(
            Kind.MASK_KEY,
            lambda: Outgoing(body={"public_key": key.public_bytes.hex()}),
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def _mask_key(self, attempt: Attempt) -> MaskKey:
        """Fresh per round, purpose and attempt: one key for two attempts would reveal the
        difference of two masks to whoever sees both sums."""
        return MaskKey.from_secret_bytes(
            self.secrets.once(
                f"mask-{self.participant.plan.hash[:16]}-{attempt.round_id}-{attempt.purpose}"
                f"-{attempt.number}",
                lambda: MaskKey.generate().to_secret_bytes(),
            )
        )

    def _contribute(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        """Steps 3, 4 and 8: release once, mask for this attempt, seal, send."""
        if attempt.purpose == STATISTICS:
            noised = self._statistics(attempt.round_id)
            vector = post_process(noised, lambda one: one.vector, label="statistics")
            self._post_ledger(attempt.round_id, STATISTICS)
        else:
            vector = self._demand(attempt.round_id)
        self._send_sealed(attempt, cohort, vector)

    def _send_sealed(
        self, attempt: Attempt, cohort: tuple[str, ...], vector: Released[npt.NDArray[np.int64]]
    ) -> None:
        require_released(vector, what=f"contribution to {attempt.purpose}")
        me = self.participant
        parameters = purpose_parameters(me.plan, attempt.purpose)
        keys = me.index.all_at(Kind.MASK_KEY, attempt)
        raw_keys = check_mask_keys(cohort, keys, attempt)
        digest = keys_digest({site: keys[site] for site in cohort})

        def make() -> Outgoing:
            mask = pairwise_mask(
                self._mask_key(attempt),
                me.party,
                {site: raw for site, raw in raw_keys.items() if site != me.party},
                context=mask_context(me.plan, me.roster, attempt, digest),
                length=parameters.length,
                modulus=parameters.plain_modulus,
            )
            hidden = masked(
                vector.value,
                mask,
                bound=site_bound_of(me.plan, attempt.purpose),
                modulus=parameters.plain_modulus,
            )
            key_message = me.index.find(
                Kind.OPENING_KEY, sender=me.roster.auditor.id, purpose=attempt.purpose
            )
            if key_message is None:
                raise PeerError("the auditor has posted no opening key", reason="missing_message")
            key = parse_public_key(me.payload(key_message), parameters)
            return Outgoing(
                body={
                    "keys_digest": digest,
                    "paid_by": vector.paid_by,
                    "parameters_digest": parameters.digest,
                },
                payload=seal(key, parameters, hidden),
            )

        me.post(
            Kind.CONTRIBUTION,
            make,
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def _statistics(self, round_id: int) -> Released[NoisedStatistics]:
        released = self.learner.release_statistics(round_id, self.book)
        self._tell_epsilon(round_id, "statistics")
        return released

    def _demand(self, round_id: int) -> Released[npt.NDArray[np.int64]]:
        """The picks as a 0/1 vector: post-processing of this round's released statistics."""
        me = self.participant
        scores_message = me.index.find(
            Kind.SCORES, sender=me.roster.coordinator.id, to=me.party, round_id=round_id
        )
        if scores_message is None:
            raise LocalProtocolError(f"round {round_id}: demand before scores")
        key = self._scoring_key(round_id)
        scores: FloatArray = key.decrypt(me.payload(scores_message), me.plan.pool_size)

        def wanted(noised: NoisedStatistics) -> npt.NDArray[np.int64]:
            vector = np.zeros(me.plan.pool_size, dtype=np.int64)
            vector[self.learner.picks(round_id, noised, scores)] = 1
            return vector

        return post_process(self._statistics(round_id), wanted, label=DEMAND)

    def _ask_scores(self, round_id: int) -> None:
        """Steps 6 and 7: one encrypted query per round."""
        me = self.participant
        self._check_own_contribution(round_id, STATISTICS)
        noised = self._statistics(round_id)
        utilities = post_process(
            noised, lambda one: self.learner.utilities(round_id, one), label="cell utilities"
        )
        cells = len(utilities.value)
        me.post(
            Kind.QUERY,
            lambda: Outgoing(
                body={"cells": cells},
                payload=self._scoring_key(round_id).encrypt(utilities.value),
            ),
            round_id=round_id,
            to=me.roster.coordinator.id,
        )

    def _scoring_key(self, round_id: int) -> ScoringKey:
        plan = self.participant.plan
        cells = plan.allocation.clusters * plan.allocation.difficulty_bins
        raw = self.secrets.once(
            f"scores-{plan.hash[:16]}-{round_id}",
            lambda: ScoringKey.generate(cells, row_bound=1).to_bytes(),
        )
        return ScoringKey.from_bytes(raw)

    def _check_own_contribution(self, round_id: int, purpose: str) -> None:
        """Step 5, the site's side: the signed opening must hold this site's own contribution.

        Raises: PeerError(reason="not_in_opening").
        """
        me = self.participant
        opened = me.index.opened(round_id, purpose, auditor=me.roster.auditor.id)
        attempt = Attempt(round_id=round_id, purpose=purpose, number=opened.header.attempt)
        mine = me.index.at(Kind.CONTRIBUTION, attempt, sender=me.party)
        listed = parse_body(opened, OpenedBody).contributions.get(me.party)
        if mine is None or listed != mine.message_hash:
            raise PeerError(
                f"round {round_id}, {purpose}: the opened sum does not hold what this site sent",
                reason="not_in_opening",
                peer=me.roster.auditor.id,
                round_id=round_id,
            )

    def _distil(self, round_id: int) -> None:
        """Step 9, and what may be computed afterwards for free."""
        me = self.participant
        self._check_own_contribution(round_id, DEMAND)
        if self.memory.adapters(round_id) is None:
            paths = me.index.find(Kind.PATHS, sender=me.roster.coordinator.id, round_id=round_id)
            if paths is None:
                raise LocalProtocolError(f"round {round_id}: training before paths")
            self.learner.train(
                round_id,
                self._statistics(round_id).value,
                self.learner.parse_paths(me.payload(paths)),
                book=self.book,
                progress=self._training_progress(round_id),
            )
        self._tell_epsilon(round_id, "distillation")
        self._tell_accuracy("after", round_id=round_id)
        self._post_ledger(round_id, TRAINING)
        paid_by = self._newest_reservation(round_id, TRAINING)
        me.post(Kind.TRAINED, lambda: Outgoing(body={"paid_by": paid_by}), round_id=round_id)

    def _newest_reservation(self, round_id: int, purpose: str) -> str:
        study = self.participant.plan.study_id
        for entry in reversed(self.book.entries()):
            if isinstance(entry, ReserveEntry) and (
                (entry.study_id, entry.round_id, entry.purpose) == (study, round_id, purpose)
            ):
                return entry.entry_hash
        raise LedgerError(f"round {round_id}: nothing was reserved for {purpose}")

    def _post_ledger(self, round_id: int, purpose: str) -> None:
        """Show the auditor every entry since the last part, before anything they paid for."""
        me = self.participant

        def make() -> Outgoing:
            entries = self.book.entries()
            first = self._entries_shown()
            head = entries[-1]
            return Outgoing(
                body={
                    "first_index": first,
                    "head_index": head.index,
                    "head_hash": head.entry_hash,
                },
                payload=format_ledger_lines(entries[first:]),
            )

        me.post(Kind.LEDGER, make, round_id=round_id, purpose=purpose)

    def _entries_shown(self) -> int:
        """Ledger entries that the auditor has been sent in this study."""
        me = self.participant
        shown = [
            int(one.header.body["head_index"]) + 1
            for one in me.index
            if one.kind is Kind.LEDGER and one.header.sender == me.party
        ]
        return max(shown, default=0)

    @property
    def learner(self) -> SiteLearner:
        """The model with its data, loaded at first use."""
        if self._learner is None:
            me = self.participant
            records = read_records(self.settings.records)
            held_out: tuple[Record, ...] = ()
            if self.settings.held_out is not None:
                held_out = read_records(self.settings.held_out)
            pool, clusters = self._public_material()
            self._learner = SiteLearner.load(
                plan=me.plan,
                settings=self.settings,
                pool=pool,
                clusters=clusters,
                units=bound_units(
                    records, max_records_per_unit=me.plan.privacy.max_records_per_unit
                ),
                held_out=held_out,
                memory=self.memory,
            )
        return self._learner

    def _public_material(self) -> tuple[tuple[PoolSample, ...], Clusters]:
        """Pool and clusters, checked against the hashes in the plan."""
        me = self.participant
        coordinator = me.roster.coordinator.id
        pool_message = me.index.find(Kind.POOL, sender=coordinator)
        clusters_message = me.index.find(Kind.CLUSTERS, sender=coordinator)
        while pool_message is None or clusters_message is None:
            me.wait(
                Wait(step="plan", round_id=0, awaited="pool and clusters", parties=(coordinator,))
            )
            pool_message = me.index.find(Kind.POOL, sender=coordinator)
            clusters_message = me.index.find(Kind.CLUSTERS, sender=coordinator)
        try:
            pool = parse_pool(me.payload(pool_message), where="the coordinator's pool")
        except ParameterError as error:
            raise PeerError(str(error), reason="wrong_pool", peer=coordinator) from error
        raw = me.payload(clusters_message)
        if pool_hash(pool) != me.plan.pool_sha256 or len(pool) != me.plan.pool_size:
            raise PeerError("the pool is not the one in the plan", reason="wrong_pool")
        if sha256_hex(raw) != me.plan.clusters_sha256:
            raise PeerError("the clusters are not those in the plan", reason="wrong_clusters")
        limit = kind_rules(Kind.CLUSTERS).max_payload_bytes
        clusters = parse_clusters(parse_canonical_json(raw, max_bytes=limit))
        if clusters.count != me.plan.allocation.clusters:
            raise PeerError("the number of clusters differs from the plan", reason="wrong_clusters")
        return pool, clusters

    def _training_progress(self, round_id: int) -> Callable[[StepReport], None]:
        def report(one: StepReport) -> None:
            self.participant.events.write(
                "progress",
                round_id=round_id,
                step="distillation",
                done=one.step,
                total=one.steps,
                public_loss=None if one.public_loss is None else round(one.public_loss, 4),
            )
            self._tell_epsilon(round_id, "distillation")

        return report

    def _tell_epsilon(self, round_id: int, step: str) -> None:
        plan = self.participant.plan
        self.participant.events.write(
            "epsilon",
            round_id=round_id,
            step=step,
            epsilon=round(
                self.book.epsilon_spent(plan.privacy.target_delta, study_id=plan.study_id), 6
            ),
            cap=plan.privacy.epsilon_cap,
        )

    def _tell_accuracy(self, when: str, *, round_id: int) -> None:
        """Held-out accuracy for the site's own screen; it goes to its own folder only."""
        if self.settings.held_out is None:
            return
        began = time.monotonic()
        found = self.learner.held_out_accuracy()
        if found is None:
            return
        self.participant.events.write(
            "accuracy",
            round_id=round_id,
            step="evaluation",
            when=when,
            accuracy=found,
            n=len(self.learner.held_out),
            seconds=round(time.monotonic() - began, 3),
        )


def _step_of(task: SiteTask) -> str:
    if isinstance(task, Contribute):
        return STATISTICS if task.attempt.purpose == STATISTICS else DEMAND
    return STEPS[type(task)]


def _round_of(task: SiteTask) -> int:
    match task:
        case PostMaskKey(attempt=attempt) | Contribute(attempt=attempt):
            return attempt.round_id
        case (
            AskScores(round_id=round_id) | Distil(round_id=round_id) | CloseRound(round_id=round_id)
        ):
            return round_id
        case _:
            return 0
