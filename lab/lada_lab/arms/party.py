"""One simulated site during one arm: its picks and its student.

The private side is in `guides`; all that happens here is post-processing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lada_lab.arms.arms import Arm
from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.guides import SiteReleases
from lada_lab.arms.joint_training import JointTraining
from lada_lab.arms.path_book import PathBook
from lada_lab.arms.site_trials import SiteTrials
from lada_lab.arms.study import StudySettings, loss_settings
from lada_lab.baselines.allocator import allocate
from lada_lab.baselines.baseline import Baseline, BaselineState
from lada_lab.baselines.rounds import BaselineTraining, transfer
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.gap import reward
from lada_secure.allocation.selection import AllocationSettings, PoolMap
from lada_secure.allocation.strategies import pick
from lada_secure.arrays import FloatArray
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.evaluation import accuracy, rationale_losses
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.reference_model import scaled_adapters
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.ledger.memory import MemoryLedger

_MANY_EPOCHS = 10**6


@dataclass(slots=True, kw_only=True)
class Party:
    """One site during one arm. `lm` may be shared: its adapters are set before every use.

    ledger: of what this arm alone takes of the site's records; None without privacy. joint:
    releases of its own, for arms whose records and pool paths train one model. trials: of received
    paths, None where the arm has none. host: carries the training out; None for distillation of
    paths.
    """

    arm: Arm
    settings: StudySettings
    releases: SiteReleases
    coordinator: Coordinator
    lm: LanguageModel
    student: AdapterWeights
    book: PathBook
    ledger: MemoryLedger | None
    joint: JointTraining | None = None
    trials: SiteTrials | None = None
    host: Baseline | None = None
    state: BaselineState = field(default_factory=BaselineState)
    reports: list[dict[str, int]] = field(default_factory=list)
    _before: dict[int, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        arm: Arm,
        settings: StudySettings,
        releases: SiteReleases,
        coordinator: Coordinator,
        lm: LanguageModel,
        *,
        epsilon: float,
        host: Baseline | None = None,
    ) -> Party:
        """A site that starts from the reference model."""
        ledger = releases.arm_ledger(arm.name)
        return cls(
            arm=arm,
            settings=settings,
            releases=releases,
            coordinator=coordinator,
            lm=lm,
            student=releases.reference,
            ledger=ledger,
            book=PathBook(coordinator=coordinator, settings=settings, lm=lm, seed=releases.seed),
            joint=None
            if arm.joint is None
            else JointTraining.open(releases, settings, epsilon=epsilon, pool_gradients=arm.joint),
            trials=SiteTrials(releases=releases, lm=lm, ledger=ledger) if arm.trials else None,
            host=host,
        )

    # Allocation

    def choose(self, round_id: int) -> list[int]:
        """Pool indices that this site asks for, at most the quota."""
        if self.arm.strategy == "none":
            return []
        if self.arm.strategy == "all":
            places = range(len(self.coordinator.data.pool)) if round_id == 0 else range(0)
            self.state.allocation.picked.update(places)
            return list(places)
        if self.arm.strategy == "loss-based":
            return self._loss_based()
        return self._allocated(round_id)

    def _allocated(self, round_id: int) -> list[int]:
        settings, arm, coordinator = self.settings, self.arm, self.coordinator
        estimates = self._statistics(round_id)
        return list(
            allocate(
                self.state.allocation,
                PoolMap(grid=coordinator.grid, clusters=coordinator.pool_clusters),
                estimates,
                # In the clear here; under encryption the same numbers, up to 1e-5.
                lambda utilities: coordinator.view.features @ utilities,
                AllocationSettings(
                    strategy=arm.strategy,
                    quota=settings.quota,
                    threshold=settings.threshold,
                    exploration_weight=settings.exploration_weight if arm.exploration else 0.0,
                    clustering_start=arm.clustering_start,
                    loss_clip=settings.loss_clip,
                    seed=self.releases.seed,
                ),
                round_id=round_id,
                agreement=self._agreement(),
            )
        )

    def _agreement(self) -> FloatArray | None:
        """How surely each cell's paths agree with the records, by valuations or by the guide."""
        if self.trials is not None:
            return self.trials.agreement()
        return self.book.agreement() if self.arm.guided else None

    def _statistics(self, round_id: int) -> ClusterEstimates:
        if self.joint is not None:
            return self.joint.statistics(round_id, self.student)
        if not self.arm.late:
            return self.releases.statistics(round_id)
        # The shared ones are measured under a guide, whose steps this arm takes at the end.
        return self.releases.measured(
            round_id,
            under=self.releases.reference,
            noise=self.releases.noise,
            book=self.ledger,
        )

    def _loss_based(self) -> list[int]:
        """Where the LLM's loss on the gold answer is the smaller one, the largest gap first."""
        pool = self.coordinator.data.pool
        load_adapters(self.lm, self.student)
        own = rationale_losses(
            self.lm,
            [
                RationaleExample(
                    example_id=one.sample_id,
                    prompt=prompt_of(one.question, one.choices),
                    path=rationale_of(one.answer, one.choices, None),
                    rejected=None,
                )
                for one in pool
            ],
            batch_size=self.settings.batch_size,
        )
        # As in all other arms, no pick is wasted on a sample that the LLM cannot solve.
        available = self.coordinator.view.solved.copy()
        available[sorted(self.state.allocation.picked)] = False
        chosen = pick(
            own - self.coordinator.view.answer_losses,
            quota=self.settings.quota,
            threshold=1e-9,
            available=available,
            seed=self.releases.seed,
        )
        places = [int(one) for one in np.flatnonzero(chosen)]
        self.state.allocation.picked.update(places)
        return places

    # Training

    def train(self, round_id: int, received: Mapping[int, str]) -> None:
        """Train a student on all paths so far that pass the arm's screens."""
        kept = self.consider(round_id, received)
        rewards: Mapping[int, float] = {}
        if self.joint is not None:
            # What the student would write by itself is drawn under it.
            load_adapters(self.lm, self.student)
            self.student = self.joint.train(
                self.lm,
                self.student,
                self._examples(kept),
                round_id=round_id,
                loss=self.tuning(round_id).loss,
            )
        elif self.host is not None:
            rewards = self._hosted(self.host, round_id, received, kept)
        else:
            self.student = self._taught(round_id, kept)
        self.close(round_id, received, kept, by_host=rewards)

    def start(self, round_id: int) -> AdapterWeights:
        """The adapters that a round's student starts from: the guide's, scaled, if there is one."""
        if self.arm.late:
            return self.releases.reference
        last = round_id if self.arm.strategy == "none" else self.settings.guide_round(round_id)
        return scaled_adapters(self.releases.guide(last), self._private_share)

    def consider(self, round_id: int, received: Mapping[int, str]) -> list[int]:
        """Take new paths in, measure all under the student so far, and say which to train on."""
        book = self.book
        book.take(received)
        if self.arm.guided:
            book.draw_own_paths(list(received), self.releases.reference)
        self._before = book.measure(self.student)
        for place in received:
            self.state.allocation.note(place, cell=book.known[place].cell, loss=self._before[place])
        if self.arm.guided:
            guide = self.releases.guide(self.settings.guide_round(round_id))
            book.judge(reference=self.releases.reference, guide=guide)
        if self.trials is not None:
            self.trials.release(round_id, book.groups_to_value(), self._trial_tuning(round_id))
        if not self.arm.screened:
            return list(book.known)
        return book.passing(
            guided=self.arm.guided, tried=None if self.trials is None else self.trials.found
        )

    def finish(self) -> None:
        """Take the private steps that the guide has left, on top of the student.

        What the pool has taught makes the records easier to learn from: their gradients then point
        at what only they know. Without a pool, or where both streams train one model, all steps
        are taken by now.
        """
        if self.arm.strategy == "none" or self.joint is not None:
            return
        first = 0 if self.arm.late else self.settings.guide_rounds
        for round_id in range(first, self.settings.rounds):
            self.student = self.releases.trained(self.student, round_id=round_id, book=self.ledger)

    def close(
        self,
        round_id: int,
        received: Mapping[int, str],
        kept: Sequence[int],
        *,
        by_host: Mapping[int, float] | None = None,
    ) -> None:
        """Reward what the new student was trained on, and remember it for the reward model.

        Args: by_host: the baseline's own rewards by pool index, where a baseline did the training.
        """
        if self.state.allocation.view is not None:
            after = self.book.measure(self.student)
            new = [place for place in kept if place in received]
            gains = reward(
                [self._before[place] for place in new], [after[place] for place in new]
            ).tolist()
            rewards = dict(zip(new, gains, strict=True)) | {
                place: gain for place, gain in (by_host or {}).items() if place in new
            }
            self.state.allocation.learn(round_id, rewards)
        self._report(kept)

    def _taught(self, round_id: int, kept: Sequence[int]) -> AdapterWeights:
        start = self.start(round_id)
        if not kept:
            return start
        load_adapters(self.lm, start)
        return tune_on_rationales(self.lm, self._examples(kept), (), self.tuning(round_id))

    def _hosted(
        self, host: Baseline, round_id: int, received: Mapping[int, str], kept: Sequence[int]
    ) -> Mapping[int, float]:
        fine = set(kept)
        load_adapters(self.lm, self.start(round_id))
        done = transfer(
            host,
            self.lm,
            self.state,
            received,
            self.baseline_training(round_id),
            keep=lambda place: place in fine,
        )
        self.student = adapter_weights(self.lm)
        return done.rewards

    def _examples(self, places: Sequence[int]) -> list[RationaleExample]:
        if not self.arm.contrast or self.settings.contrastive_weight == 0.0:
            return self.book.examples(places)
        return self.book.contrasted(places)

    @property
    def _private_share(self) -> float:
        if self.arm.strategy == "none":
            return 1.0
        if self.arm.private_share is not None:
            return self.arm.private_share
        return self.settings.private_share

    def tuning(self, round_id: int) -> TuningSettings:
        """How a round's student is trained on pool paths: the same steps in every arm."""
        settings = self.settings
        return TuningSettings(
            steps=settings.pool_steps_of(round_id),
            batch_size=settings.pool_batch_size,
            replay_batch_size=0,
            learning_rate=settings.learning_rate,
            max_epochs=_MANY_EPOCHS,
            seed=self.releases.seed + round_id,
            loss=loss_settings(settings, contrast=self.arm.contrast),
        )

    def _trial_tuning(self, round_id: int) -> TuningSettings:
        """Valuation students take the steps of a round, by cross-entropy alone."""
        return replace(
            self.tuning(round_id),
            steps=self.settings.pool_steps,
            loss=loss_settings(self.settings, contrast=False),
        )

    def baseline_training(self, round_id: int) -> BaselineTraining:
        """The same for a baseline: steps, batch size and rate as without one."""
        tuning = self.tuning(round_id)
        return BaselineTraining(
            steps=tuning.steps,
            batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            seed=tuning.seed,
        )

    def _report(self, kept: Sequence[int]) -> None:
        harmful = self.coordinator.data.harmful
        self.reports.append(
            {
                "asked": len(self.state.allocation.picked),
                "received": len(self.book.known),
                "received_harmful": sum(place in harmful for place in self.book.known),
                "trained": len(kept),
                "trained_harmful": sum(place in harmful for place in kept),
            }
        )

    def accuracy(self) -> float:
        """Share of right answers of the student on the site's held-out records."""
        load_adapters(self.lm, self.student)
        return accuracy(
            self.lm,
            self.releases.site.held_out,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )
