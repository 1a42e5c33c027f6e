"""A site during one study: carries out its next task until the study is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from lada_clients.net.failures import told_as
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.exchanges import SiteExchanges
from lada_clients.site.gates.files import RecordFiles, SiteFiles
from lada_clients.site.gates.memory import check_slm_memory
from lada_clients.site.gates.model import check_with_model
from lada_clients.site.gates.slm import SiteSlm, file_hashes
from lada_clients.site.learner import SiteLearner
from lada_clients.site.ledger.population import check_shown, is_new
from lada_clients.site.ledger.shown import ShownLedger
from lada_clients.site.memory import SiteMemory
from lada_clients.site.public_material import read_public_material
from lada_clients.site.review import PlanReview
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_clients.site.training_display import TrainingDisplay
from lada_protocol.events import Accuracy, Epsilon, FellBack, Progress
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import WITH_ACCEPTANCE
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done, Post, Task
from lada_protocol.run_loop import Handler, RunLoop, StudyFailed
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody, PathsBody, parse_body
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.dpsgd.distillation import StepReport
from lada_secure.errors import LedgerError, LocalProtocolError
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, TRAINING
from lada_secure.method.site_training import RoundReports
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.released import Released, post_process

LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Site:
    """One study at one site.

    Attributes: outdated: whether `settings` and `policy` are not those on disk any more.
        display: the screen that shows its training.
    """

    participant: Participant
    settings: SiteSettings
    policy: SitePolicy
    files: SiteFiles
    record_files: RecordFiles
    book: LedgerBook
    secrets: SecretFolder
    memory: SiteMemory
    now: Callable[[], datetime]
    outdated: Callable[[], bool]
    display: TrainingDisplay
    _exchanges: SiteExchanges = field(init=False)
    _ledger: ShownLedger = field(init=False)
    _slm: SiteSlm = field(init=False)
    _learner: SiteLearner | None = None

    def __post_init__(self) -> None:
        self._exchanges = SiteExchanges(participant=self.participant, secrets=self.secrets)
        self._ledger = ShownLedger(participant=self.participant, book=self.book)
        self._slm = SiteSlm(settings=self.settings, hashes=file_hashes(self.settings))

    @property
    def _plan_review(self) -> PlanReview:
        return PlanReview(
            participant=self.participant,
            policy=self.policy,
            book=self.book,
            now=self.now,
            outdated=self.outdated,
        )

    def run(self) -> None:
        """Take part in the study to its end.

        Raises: StudyFailed: the coordinator gave up, or this site refused the plan or withdrew.
            Outdated: settings or policy were changed while people here decided.
        """
        me = self.participant
        me.sync()
        check_shown(self.book.entries(), me.index, party=me.party)
        if not isinstance(self._next_task(), Done) and not self._plan_review.withdrawn():
            self._check_slm()
        try:
            self._serve()
        except StudyFailed as error:
            if missing := self._ledger.not_countersigned():
                told = error.told or FailureCode.LEDGER_NOT_SHOWN
                raise type(error)(f"{error}; {missing}", told=told) from error
            raise
        if missing := self._ledger.not_countersigned():
            raise StudyFailed(missing, told=FailureCode.LEDGER_NOT_SHOWN)
        # Every mask and query of the study was used; no later message needs their keys.
        for use in ("mask", "scores"):
            self.secrets.forget(f"{use}-")

    def _serve(self) -> None:
        try:
            self.loop.run()
        except LedgerError:
            # A person may withdraw in the middle of a step, and the ledger pays for nothing more.
            if not self._plan_review.withdrawn():
                raise
            self._plan_review.leave()

    @property
    def loop(self) -> RunLoop:
        """What this site does in a study, task by task."""
        me = self.participant
        return me.run_loop(
            self._next_task,
            {
                Kind.LEDGER: Handler("close", lambda t: self._show_late(t.attempt)),
                Kind.ACCEPTANCE: Handler("plan", lambda _: self._review()),
                Kind.MASK_KEY: Handler(
                    "opening", lambda t: self._exchanges.post_mask_key(t.attempt)
                ),
                Kind.CONTRIBUTION: Handler(None, lambda t: self._contribute(t.attempt, t.sites)),
                Kind.QUERY: Handler("filter", lambda t: self._ask_scores(t.round_id)),
                Kind.TRAINED: Handler("distillation", lambda t: self._distil(t.round_id)),
                Kind.SITE_PATHS: Handler("uplink", lambda t: self._answer(t.round_id)),
                Kind.CLOSE: Handler("close", lambda t: me.close_round(t.round_id)),
                Kind.REFUSAL: Handler("close", lambda _: self._plan_review.leave()),
            },
        )

    def _next_task(self) -> Task:
        """What the messages so far ask for, unless a person here has withdrawn."""
        me = self.participant
        task = next_site_task(me.index, site=me.party, unshown=self._ledger.unshown())
        leaves = not isinstance(task, Done) and self._plan_review.withdrawn()
        return Post(kind=Kind.REFUSAL) if leaves else task

    def _review(self) -> None:
        """Step 1: accept or refuse; either decision is a ledger entry before it is a message."""
        me, plan = self.participant, self.participant.plan
        if not self._plan_review.passes():
            # The study ended while people were waited for; the next task says how.
            return
        # Before the acceptance, and before the ledger has any of it.
        self.record_files.keep()
        with told_as(FailureCode.MODEL):
            model = self._slm.allowed(plan, self.policy)
        self._check_with_model()
        # The gate has loaded it since.
        self._slm.check(model)
        self._plan_review.accept()
        # Both may be there after a crash; the acceptance speaks of the ledger that was shown, so
        # that the auditor can tell whether it is the whole one.
        shown = parse_body(self._post_ledger(0, WITH_ACCEPTANCE), LedgerBody)
        me.post(
            Kind.ACCEPTANCE,
            {
                "certificate": me.certificate,
                "population": self.book.identity.population,
                "ledger_id": self.book.identity.ledger_id,
                "head_index": shown.head_index,
                "head_hash": shown.head_hash,
                "new_ledger": is_new(self.book.entries()),
                "slm": model.model_dump(),
            },
        )
        # After a crash it may be an earlier acceptance that was sent again.
        self._check_slm()
        self._tell_accuracy("before", round_id=0)

    def _check_slm(self) -> None:
        """Raises: ModelChanged: the SLM is not the one that this site has accepted with."""
        me = self.participant
        acceptance = me.index.find(Kind.ACCEPTANCE, sender=me.party)
        if acceptance is not None:
            self._slm.check(parse_body(acceptance, AcceptanceBody).slm)

    def _check_with_model(self) -> None:
        """What the SLM will take, and the file gate's second half.

        Raises: ParameterError: nothing was promised yet.
        """
        pool, _ = read_public_material(self.participant)
        check_slm_memory(self.settings, self.participant.plan, self.files, pool)
        check_with_model(self.learner, self.files, self.policy)

    def _contribute(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        """Steps 3, 4, 8 and 10: release once, mask for this attempt, seal, send."""
        vector: Released[npt.NDArray[np.int64]]
        if attempt.purpose == CONFIDENCE_EXCESS:
            self._exchanges.check_own_contribution(attempt.round_id, DEMAND)
            vector = self._exchanges.confidence_excess(attempt.round_id, self.learner)
        elif attempt.purpose == STATISTICS:
            self._check_files()
            noised = self._statistics(attempt.round_id)
            vector = post_process(noised, lambda one: one.vector, label="statistics")
            self._post_ledger(attempt.round_id, STATISTICS)
        else:
            vector = self._demand(attempt.round_id)
        self._exchanges.send(attempt, cohort, vector)

    def _check_files(self) -> None:
        """Before anything is reserved. Raises: RecordsChanged, ModelChanged."""
        self.record_files.check()
        self._check_slm()

    def _statistics(self, round_id: int) -> Released[NoisedStatistics]:
        released = self.learner.release_statistics(round_id)
        self._tell_epsilon(round_id, "statistics")
        return released

    def _demand(self, round_id: int) -> Released[npt.NDArray[np.int64]]:
        """The picks as a 0/1 vector: post-processing of this round's released statistics."""
        me = self.participant
        scores = self._exchanges.read_scores(round_id)

        def wanted(noised: NoisedStatistics) -> npt.NDArray[np.int64]:
            vector = np.zeros(me.plan.pool_size, dtype=np.int64)
            if scores is not None:
                vector[list(self.learner.picks(round_id, noised, scores))] = 1
            return vector

        return post_process(self._statistics(round_id), wanted, label=DEMAND)

    def _ask_scores(self, round_id: int) -> None:
        """Steps 6 and 7: one encrypted query per round."""
        self._exchanges.check_own_contribution(round_id, STATISTICS)
        noised = self._statistics(round_id)
        utilities = post_process(noised, self.learner.utilities, label="cell utilities")
        self._exchanges.ask_scores(round_id, utilities)

    def _answer(self, round_id: int) -> None:
        self._exchanges.answer_inquiry(round_id, self.learner)

    def _distil(self, round_id: int) -> None:
        """Step 9, and what may be computed afterwards for free."""
        me = self.participant
        self._exchanges.check_own_contribution(round_id, DEMAND)
        if round_id not in self.learner.state.trained:
            self._check_files()
            paths = me.index.find(Kind.PATHS, sender=me.roster.coordinator.id, round_id=round_id)
            if paths is None:
                raise LocalProtocolError(f"round {round_id}: training before paths")
            self.learner.train(
                round_id,
                self._statistics(round_id).value,
                self.learner.parse_paths(me.payload(paths)),
                RoundReports(
                    progress=self._training_progress(round_id),
                    announce=lambda estimate: self.display.begin(round_id, estimate),
                ),
                demanded=parse_body(paths, PathsBody).demanded,
            )
        self._tell_fallback(round_id)
        self._tell_epsilon(round_id, "distillation")
        self._tell_accuracy("after", round_id=round_id)
        self._post_ledger(round_id, TRAINING)
        paid_by = self.learner.released_adapters(round_id).paid_by
        me.post(Kind.TRAINED, {"paid_by": paid_by}, round_id=round_id)

    def _post_ledger(self, round_id: int, purpose: str) -> Envelope:
        """Show the auditor every entry since the last part, before anything they paid for."""
        return self._ledger.show(round_id, purpose)

    def _show_late(self, place: Attempt) -> None:
        """Show what was spent on a round that went on without this site."""
        LOG.warning(
            "round %d went on without this site; what it has spent on it is shown to the auditor",
            place.round_id,
        )
        self._post_ledger(place.round_id, place.purpose)

    @property
    def learner(self) -> SiteLearner:
        """The model with its data, loaded at first use."""
        if self._learner is None:
            plan, files = self.participant.plan, self.files
            bound = plan.privacy.max_records_per_unit
            self._check_slm()
            # Outside of what is told: it reads the records.
            units = files.units(self.policy, max_records_per_unit=bound)
            with told_as(FailureCode.MODEL):
                self._learner = SiteLearner.load(
                    plan,
                    self.settings,
                    read_public_material(self.participant),
                    units,
                    held_out=() if files.held_out is None else files.held_out.records,
                    book=self.book,
                    memory=self.memory,
                )
            self._check_slm()
        return self._learner

    def _training_progress(self, round_id: int) -> Callable[[StepReport], None]:
        def report(one: StepReport) -> None:
            self.display.show(round_id, one)
            self.participant.events.write(
                Progress,
                round_id=round_id,
                step="distillation",
                done=one.step,
                total=one.steps,
                public_loss=None if one.public_loss is None else round(one.public_loss, 4),
                seconds_left=round(one.seconds_left, 1),
            )
            self._tell_epsilon(round_id, "distillation", spent=one.study_epsilon)

        return report

    def _tell_fallback(self, round_id: int) -> None:
        """Why this round did not follow the site's choice of samples, if it did not."""
        found = self.learner.state.fallbacks.get(round_id)
        if found is None:
            return
        LOG.warning("round %d: %s", round_id, found.sentence)
        self.participant.events.write(
            FellBack,
            round_id=round_id,
            step="distillation",
            action=found.action,
            cause=found.cause,
            because=found.because,
        )

    def _tell_epsilon(self, round_id: int, step: str, *, spent: float | None = None) -> None:
        """What this study has spent; `spent` where a reservation has said it already."""
        plan = self.participant.plan
        if spent is None:
            spent = self.book.epsilon_spent(plan.privacy.target_delta, study_id=plan.study_id)
        self.participant.events.write(
            Epsilon,
            round_id=round_id,
            step=step,
            epsilon=round(spent, 6),
            cap=plan.privacy.epsilon_cap,
        )

    def _tell_accuracy(self, when: Literal["before", "after"], *, round_id: int) -> None:
        """Held-out accuracy for the site's own screen; it goes to its own folder only."""
        if self.settings.held_out is None:
            return
        began = time.monotonic()
        found = self.learner.held_out_accuracy()
        if found is not None:
            self.participant.events.write(
                Accuracy,
                round_id=round_id,
                step="evaluation",
                when=when,
                accuracy=found,
                n=len(self.learner.held_out),
                seconds=round(time.monotonic() - began, 3),
            )
