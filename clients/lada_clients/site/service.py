"""A site during one study: carries out its next task until the study is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from lada_clients.net.participant import Outgoing, Participant, StudyFailed, checked_transcript
from lada_clients.site.aggregation import SiteAggregation
from lada_clients.site.blind_scores import SiteScoring
from lada_clients.site.gates.files import SiteFiles, check_with_model
from lada_clients.site.gates.policy import describe_plan, plan_faults, planned_budget
from lada_clients.site.gates.public_material import read_public_material
from lada_clients.site.gates.record_files import RecordFiles
from lada_clients.site.learner import SiteLearner
from lada_clients.site.ledger.population import check_shown, is_new, reused_name_faults, spending
from lada_clients.site.llm_transfer import SiteTransfer
from lada_clients.site.memory import SiteMemory
from lada_clients.site.secrets import SecretFolder
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_clients.site.training_display import UNWATCHED, TrainingWatcher
from lada_protocol.kinds import Kind
from lada_protocol.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, TRAINING, parse_time
from lada_protocol.rounds.admission import WITH_ACCEPTANCE
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import (
    AnswerInquiry,
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
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import LedgerBody, parse_body
from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.data.records import PoolSample
from lada_secure.dpsgd.distillation import StepReport
from lada_secure.errors import LedgerError, LocalProtocolError
from lada_secure.privacy.ledger.book import LedgerBook, ReserveEntry, format_ledger_lines
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.released import Released, post_process

STEPS: Mapping[type[object], str] = {
    ReviewPlan: "plan",
    PostMaskKey: "opening",
    Contribute: "opening",
    AskScores: "filter",
    Distil: "distillation",
    AnswerInquiry: "uplink",
    CloseRound: "close",
}


@dataclass(slots=True, kw_only=True)
class Site:
    """One study at one site."""

    participant: Participant
    settings: SiteSettings
    policy: SitePolicy
    files: SiteFiles
    record_files: RecordFiles
    book: LedgerBook
    secrets: SecretFolder
    memory: SiteMemory
    now: Callable[[], datetime]
    approved: Callable[[str, str], bool]
    watcher: TrainingWatcher = UNWATCHED
    _learner: SiteLearner | None = field(default=None)

    def run(self) -> None:
        """Take part in the study to its end.

        Raises: StudyFailed: the coordinator gave up, or this site refused the plan.
        """
        me = self.participant
        me.sync()
        check_shown(self.book.entries(), me.index, party=me.party)
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
            self.secrets.forget(f"{use}-")

    def _carry_out(self, task: SiteTask) -> None:
        events, client = self.participant.events, self.participant.client
        step, round_id = _step_of(task), _round_of(task)
        began, before = time.monotonic(), client.traffic
        events.write("step_started", round_id=round_id, step=step)
        match task:
            case ReviewPlan():
                self._review()
            case PostMaskKey(attempt=attempt):
                self._opening.post_mask_key(attempt)
            case Contribute(attempt=attempt, cohort=cohort):
                self._contribute(attempt, cohort)
            case AskScores(round_id=round_id):
                self._ask_scores(round_id)
            case Distil(round_id=round_id):
                self._distil(round_id)
            case AnswerInquiry(round_id=round_id):
                self._llm_transfer.answer(round_id)
            case CloseRound(round_id=round_id):
                digest = checked_transcript(self.participant, round_id)
                self.participant.post(
                    Kind.CLOSE,
                    lambda: Outgoing(body={"transcript_sha256": digest}),
                    round_id=round_id,
                )
        events.write(
            "step_finished",
            round_id=round_id,
            step=step,
            seconds=round(time.monotonic() - began, 3),
            bytes_up=client.traffic.up_bytes - before.up_bytes,
            bytes_down=client.traffic.down_bytes - before.down_bytes,
        )

    def _review(self) -> None:
        """Step 1: accept or refuse; either decision is a ledger entry before it is a message."""
        me = self.participant
        plan = me.plan
        entries, code = self.book.entries(), "policy"
        faults = plan_faults(plan, self.policy, roster=me.roster, now=self.now())
        faults = (*faults, *reused_name_faults(entries, plan))
        spent = spending(entries)
        over = planned_budget(plan, self.policy, spent=spent).fault()
        if over and not faults:
            faults, code = (over,), "over_budget"
        by_person = self.policy.approval == "person"
        if not faults and by_person and not self.approved(plan.study_id, plan.hash):
            faults = (
                "nobody has approved it here; read it with `lada site show` and decide with "
                f"`lada site approve {plan.study_id}`",
            )
        if not faults:
            # Before the acceptance, and before the ledger has any of it.
            self.record_files.keep()
            self._check_with_model()
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
                lambda: Outgoing(body={"code": code, "message": message[:1000]}),
            )
            raise StudyFailed(message)
        # Both may be there after a crash; the acceptance speaks of the ledger that was shown.
        shown = parse_body(self._post_ledger(0, WITH_ACCEPTANCE), LedgerBody)
        me.post(Kind.ACCEPTANCE, lambda: self._acceptance(shown))
        self._tell_accuracy("before", round_id=0)

    def _acceptance(self, shown: LedgerBody) -> Outgoing:
        """What this site pays from, so that the auditor can tell whether it is the whole ledger."""
        head = self.book.head()
        return Outgoing(
            body={
                "certificate": self.participant.certificate,
                "population": head.population,
                "ledger_id": head.ledger_id,
                "head_index": shown.head_index,
                "head_hash": shown.head_hash,
                "new_ledger": is_new(self.book.entries()),
            }
        )

    def _check_with_model(self) -> None:
        """The file gate's second half. Raises: ParameterError: nothing was promised yet."""
        check_with_model(self.learner, self.files, self.policy)

    def _contribute(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        """Steps 3, 4, 8 and 10: release once, mask for this attempt, seal, send."""
        vector: Released[npt.NDArray[np.int64]]
        if attempt.purpose == CONFIDENCE_EXCESS:
            self._opening.check_own_contribution(attempt.round_id, DEMAND)
            vector = self._llm_transfer.excess_over_threshold(attempt.round_id)
        elif attempt.purpose == STATISTICS:
            self.record_files.check()
            noised = self._statistics(attempt.round_id)
            vector = post_process(noised, lambda one: one.vector, label="statistics")
            self._post_ledger(attempt.round_id, STATISTICS)
        else:
            vector = self._demand(attempt.round_id)
        self._opening.send(attempt, cohort, vector)

    def _statistics(self, round_id: int) -> Released[NoisedStatistics]:
        released = self.learner.release_statistics(round_id, self.book)
        self._tell_epsilon(round_id, "statistics")
        return released

    def _demand(self, round_id: int) -> Released[npt.NDArray[np.int64]]:
        """The picks as a 0/1 vector: post-processing of this round's released statistics."""
        me = self.participant
        scores = self._scoring.read(round_id)

        def wanted(noised: NoisedStatistics) -> npt.NDArray[np.int64]:
            vector = np.zeros(me.plan.pool_size, dtype=np.int64)
            if scores is not None:
                vector[self.learner.picks(round_id, noised, scores)] = 1
            return vector

        return post_process(self._statistics(round_id), wanted, label=DEMAND)

    def _ask_scores(self, round_id: int) -> None:
        """Steps 6 and 7: one encrypted query per round."""
        self._opening.check_own_contribution(round_id, STATISTICS)
        noised = self._statistics(round_id)
        utilities = post_process(
            noised, lambda one: self.learner.utilities(round_id, one), label="cell utilities"
        )
        self._scoring.ask(round_id, utilities)

    def _distil(self, round_id: int) -> None:
        """Step 9, and what may be computed afterwards for free."""
        me = self.participant
        self._opening.check_own_contribution(round_id, DEMAND)
        if self.memory.adapters(round_id) is None:
            self.record_files.check()
            paths = me.index.find(Kind.PATHS, sender=me.roster.coordinator.id, round_id=round_id)
            if paths is None:
                raise LocalProtocolError(f"round {round_id}: training before paths")
            self.learner.train(
                round_id,
                self._statistics(round_id).value,
                self.learner.parse_paths(me.payload(paths)),
                book=self.book,
                progress=self._training_progress(round_id),
                announce=lambda estimate: self.watcher.begin(round_id, estimate),
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

    def _post_ledger(self, round_id: int, purpose: str) -> Envelope:
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

        return me.post(Kind.LEDGER, make, round_id=round_id, purpose=purpose)

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
    def _opening(self) -> SiteAggregation:
        return SiteAggregation(participant=self.participant, secrets=self.secrets)

    @property
    def _scoring(self) -> SiteScoring:
        return SiteScoring(participant=self.participant, secrets=self.secrets)

    @property
    def _llm_transfer(self) -> SiteTransfer:
        return SiteTransfer(
            participant=self.participant,
            opening=self._opening,
            learner=self.learner,
            book=self.book,
        )

    @property
    def learner(self) -> SiteLearner:
        """The model with its data, loaded at first use."""
        if self._learner is None:
            me = self.participant
            pool, clusters = self._public_material()
            self._learner = SiteLearner.load(
                plan=me.plan,
                settings=self.settings,
                pool=pool,
                clusters=clusters,
                records=PrivateRecords(
                    self.files.units(
                        self.policy, max_records_per_unit=me.plan.privacy.max_records_per_unit
                    )
                ),
                held_out=() if self.files.held_out is None else self.files.held_out.records,
                memory=self.memory,
            )
        return self._learner

    def _public_material(self) -> tuple[tuple[PoolSample, ...], Clusters]:
        return read_public_material(self.participant)

    def _training_progress(self, round_id: int) -> Callable[[StepReport], None]:
        def report(one: StepReport) -> None:
            self.watcher.show(round_id, one)
            self.participant.events.write(
                "progress",
                round_id=round_id,
                step="distillation",
                done=one.step,
                total=one.steps,
                public_loss=None if one.public_loss is None else round(one.public_loss, 4),
                seconds_left=round(one.seconds_left, 1),
            )
            self._tell_epsilon(round_id, "distillation", spent=one.study_epsilon)

        return report

    def _tell_epsilon(self, round_id: int, step: str, *, spent: float | None = None) -> None:
        """What this study has spent; `spent` where a reservation has said it already."""
        plan = self.participant.plan
        if spent is None:
            spent = self.book.epsilon_spent(plan.privacy.target_delta, study_id=plan.study_id)
        self.participant.events.write(
            "epsilon",
            round_id=round_id,
            step=step,
            epsilon=round(spent, 6),
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
        return task.attempt.purpose
    return STEPS[type(task)]


def _round_of(task: SiteTask) -> int:
    match task:
        case PostMaskKey(attempt=attempt) | Contribute(attempt=attempt):
            return attempt.round_id
        case (
            AskScores(round_id=round_id)
            | Distil(round_id=round_id)
            | AnswerInquiry(round_id=round_id)
            | CloseRound(round_id=round_id)
        ):
            return round_id
        case _:
            return 0
