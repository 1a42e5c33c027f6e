"""One simulated site during one arm: its picks and its student.

The private side is in `guides`; all that happens here is post-processing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lada_secure.bench.allocation.arms import Arm
from lada_secure.bench.allocation.coordinator import BATCH_SIZE, Coordinator
from lada_secure.bench.allocation.guides import SiteReleases
from lada_secure.bench.allocation.study import StudySettings
from lada_secure.data.prompts import answer_of, path_of, prompt_of
from lada_secure.distillation.adapters import AdapterWeights, load_adapters
from lada_secure.distillation.evaluation import accuracy, greedy_paths, path_log_probabilities
from lada_secure.distillation.examples import PathExample
from lada_secure.distillation.guide import ContrastedPath, lead_gains, own_paths, scaled_adapters
from lada_secure.distillation.loss import LossSettings
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.public_tuning import TuningSettings, tune_on_paths
from lada_secure.learnability.agreement import agreeing_paths, cell_agreement
from lada_secure.learnability.allocation import (
    CellView,
    cell_utilities,
    cluster_quotas,
    cluster_worths,
    path_screen,
    pick,
    pick_by_cluster,
    pick_in_turn,
    sample_priorities,
)
from lada_secure.learnability.arrays import BoolArray, FloatArray
from lada_secure.learnability.data_filter import (
    CellBeliefs,
    FilterHistory,
    FilterSettings,
    feature_count,
    fit_filter,
    observations,
)
from lada_secure.learnability.gap import cell_means, cell_rewards, probability, smoothed
from lada_secure.learnability.statistics import ClusterEstimates

_MANY_EPOCHS = 10**6


@dataclass(slots=True, kw_only=True)
class KnownPath:
    """A path that a site was given.

    p: under the present student; first_p: before it was ever trained on, which says how the student
    does on others of its kind. gain: under the present guide.
    """

    cell: int
    path: str
    own_paths: tuple[str, ...] = ()
    p: float = 0.0
    first_p: float = 0.0
    gain: float | None = None


@dataclass(slots=True, kw_only=True)
class Party:
    """One site during one arm. `lm` may be shared: its adapters are set before every use."""

    arm: Arm
    settings: StudySettings
    releases: SiteReleases
    coordinator: Coordinator
    lm: LanguageModel
    seed: int
    student: AdapterWeights
    history: FilterHistory = field(default_factory=FilterHistory)
    known: dict[int, KnownPath] = field(default_factory=dict)
    picked: set[int] = field(default_factory=set)
    view: CellView | None = None
    reports: list[dict[str, float]] = field(default_factory=list)

    # Allocation

    def choose(self, round_id: int) -> list[int]:
        """Pool indices that this site asks for, at most the quota."""
        if self.arm.strategy == "none":
            return []
        pool = len(self.coordinator.data.pool)
        if self.arm.strategy == "all":
            return list(range(pool)) if round_id == 0 else []
        load_adapters(self.lm, self.student)
        fresh = np.ones(pool, dtype=np.bool_)
        fresh[sorted(self.picked)] = False
        if self.arm.strategy == "loss-based":
            chosen = self._loss_based(fresh)
        else:
            chosen = self._by_cells(round_id, self.releases.statistics(round_id), fresh)
        places = [int(one) for one in np.flatnonzero(chosen)]
        self.picked.update(places)
        return places

    def _loss_based(self, fresh: BoolArray) -> BoolArray:
        """Dual minimum cross-entropy: where the LLM's loss on the gold answer is the smaller."""
        pool = self.coordinator.data.pool
        load_adapters(self.lm, self.student)
        own = self._losses(
            [
                PathExample(
                    example_id=one.sample_id,
                    prompt=prompt_of(one.question, one.choices),
                    path=path_of(one.answer, one.choices, None),
                    own_path=None,
                )
                for one in pool
            ]
        )
        return pick(
            own - self.coordinator.view.answer_losses,
            quota=self.settings.quota,
            threshold=1e-9,
            available=fresh,
            seed=self.seed,
        )

    def _by_cells(self, round_id: int, estimates: ClusterEstimates, fresh: BoolArray) -> BoolArray:
        settings, arm = self.settings, self.arm
        coordinator = self.coordinator
        alpha = settings.exploration_weight if arm.exploration else 0.0
        self.view = self._look(estimates)
        utilities = cell_utilities(arm.strategy, self.view, alpha=alpha)
        scores: FloatArray = coordinator.view.features @ utilities
        priorities = sample_priorities(arm.strategy, scores, seed=self.seed + round_id)
        by_cluster = arm.strategy in ("guided", "domain")
        if (round_id == 0 and arm.clustering_start and arm.strategy != "random") or by_cluster:
            shares = (
                estimates.shares
                if round_id == 0 and arm.clustering_start
                else cluster_worths(utilities, coordinator.grid)
            )
            good = fresh & (scores >= settings.threshold)
            rooms = np.bincount(
                coordinator.pool_clusters[good], minlength=coordinator.clusters.count
            )
            return pick_by_cluster(
                scores,
                coordinator.pool_clusters,
                cluster_quotas(shares, settings.quota, available=rooms),
                threshold=settings.threshold,
                available=fresh,
                priorities=priorities,
                seed=self.seed,
            )
        return pick_in_turn(
            scores,
            (fresh,),
            quota=settings.quota,
            threshold=settings.threshold,
            priorities=priorities,
            seed=self.seed + round_id,
        )

    def _look(self, estimates: ClusterEstimates) -> CellView:
        grid = self.coordinator.grid
        paths = list(self.known.values())
        prior = probability(estimates.mean_losses)
        known = smoothed(
            cell_means(
                [one.first_p for one in paths], [one.cell for one in paths], cells=grid.cells
            ),
            grid.clusters_of_cells(),
            prior=float(np.dot(estimates.shares, prior)),
        )
        beliefs = CellBeliefs(
            grid=grid,
            mass_share=grid.spread(estimates.shares),
            mean_loss=grid.spread(np.clip(estimates.mean_losses / self.settings.loss_clip, 0, 1)),
            probability=known if paths else grid.spread(prior),
            last_reward=self.history.last_rewards(grid.cells),
            picks=self.history.picks(grid.cells),
        )
        fitted = fit_filter(self.history, FilterSettings(seed=self.seed), width=feature_count(grid))
        return CellView(
            beliefs=beliefs,
            forecast=fitted.forecast(beliefs.features()),
            agreement=self._agreement(),
        )

    def _agreement(self) -> FloatArray | None:
        judged = [one for one in self.known.values() if one.gain is not None]
        if not self.arm.guided or not judged:
            return None
        return cell_agreement(
            [one.gain or 0.0 for one in judged],
            [one.cell for one in judged],
            cells=self.coordinator.grid.cells,
        )

    # Training

    def train(self, round_id: int, received: dict[int, str]) -> None:
        """Train a student on all paths so far that pass the arm's screens."""
        start = scaled_adapters(self.releases.guide(round_id), self._private_share)
        if self.arm.strategy == "none":
            self.student = start
            return
        self._receive(received)
        places = list(self.known)
        load_adapters(self.lm, self.student)
        examples = {place: self._pool_example(place) for place in places}
        before = self._measure(examples)
        for place in received:
            self.known[place].first_p = self.known[place].p
        if self.arm.guided:
            self._judge(round_id)
        kept = self._passing()
        load_adapters(self.lm, start)
        if kept:
            self.student = tune_on_paths(
                self.lm,
                self._with_own_paths({place: examples[place] for place in kept}),
                (),
                self._tuning(round_id),
            )
        else:
            self.student = start
        after = self._measure(examples)
        self._learn(round_id, [one for one in kept if one in received], before, after)
        self._report(received, kept)

    @property
    def _private_share(self) -> float:
        if self.arm.strategy == "none":
            return 1.0
        if self.arm.private_share is not None:
            return self.arm.private_share
        return self.settings.private_share

    def _tuning(self, round_id: int) -> TuningSettings:
        settings = self.settings
        return TuningSettings(
            steps=settings.final_steps if round_id + 1 == settings.rounds else settings.pool_steps,
            batch_size=settings.pool_batch_size,
            replay_batch_size=0,
            learning_rate=settings.learning_rate,
            max_epochs=_MANY_EPOCHS,
            seed=self.seed + round_id,
            loss=LossSettings(
                contrastive_form="dpo" if settings.contrastive_form == "dpo" else "margin",
                contrastive_weight=settings.contrastive_weight if self.arm.contrast else 0.0,
            ),
        )

    def _receive(self, received: dict[int, str]) -> None:
        cells = self.coordinator.view.cells
        drawn: list[tuple[str, ...]] = [()] * len(received)
        if self.arm.guided and received:
            load_adapters(self.lm, self.releases.reference)
            drawn = own_paths(
                self.lm,
                [self._prompt(place) for place in received],
                count=self.settings.own_paths,
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=BATCH_SIZE,
                seed=self.seed,
            )
        for (place, path), own in zip(received.items(), drawn, strict=True):
            self.known[place] = KnownPath(cell=int(cells[place]), path=path, own_paths=own)

    def _judge(self, round_id: int) -> None:
        """Measure all known paths against the guide as it is now."""
        gains = lead_gains(
            self.lm,
            [
                ContrastedPath(prompt=self._prompt(place), path=one.path, own_paths=one.own_paths)
                for place, one in self.known.items()
            ],
            reference=self.releases.reference,
            guide=self.releases.guide(round_id),
            batch_size=BATCH_SIZE,
        )
        for one, gain in zip(self.known.values(), gains, strict=True):
            one.gain = float(gain)

    def _passing(self) -> list[int]:
        places = list(self.known)
        if not self.arm.screened or not places:
            return places
        paths = [self.known[place] for place in places]
        settings = self.settings
        good = path_screen([one.p for one in paths], settings.screen_low, 1.0)
        if self.arm.guided:
            good &= agreeing_paths(
                [one.gain or 0.0 for one in paths],
                [one.cell for one in paths],
                cells=self.coordinator.grid.cells,
                least_share=settings.least_share,
            )
        return [place for place, fine in zip(places, good, strict=True) if fine]

    def _learn(
        self,
        round_id: int,
        kept: Sequence[int],
        before: dict[int, float],
        after: dict[int, float],
    ) -> None:
        if not kept or self.view is None:
            return
        rewards = cell_rewards(
            [before[place] for place in kept],
            [after[place] for place in kept],
            [self.known[place].cell for place in kept],
            cells=self.coordinator.grid.cells,
        )
        self.history = self.history.with_round(
            observations(self.view.beliefs, rewards, round_id=round_id)
        )

    def _report(self, received: dict[int, str], kept: Sequence[int]) -> None:
        harmful = self.coordinator.data.harmful
        self.reports.append(
            {
                "asked": float(len(self.picked)),
                "received": float(len(received)),
                "received_harmful": float(sum(place in harmful for place in received)),
                "trained": float(len(kept)),
                "trained_harmful": float(sum(place in harmful for place in kept)),
            }
        )

    def _measure(self, examples: dict[int, PathExample]) -> dict[int, float]:
        losses = self._losses(list(examples.values()))
        for place, loss in zip(examples, losses, strict=True):
            self.known[place].p = float(np.exp(-loss))
        return {place: float(loss) for place, loss in zip(examples, losses, strict=True)}

    def _prompt(self, place: int) -> str:
        sample = self.coordinator.data.pool[place]
        return prompt_of(sample.question, sample.choices)

    def _pool_example(self, place: int) -> PathExample:
        return PathExample(
            example_id=self.coordinator.data.pool[place].sample_id,
            prompt=self._prompt(place),
            path=self.known[place].path,
            own_path=None,
        )

    def _with_own_paths(self, examples: dict[int, PathExample]) -> list[PathExample]:
        if not self.arm.contrast or self.settings.contrastive_weight == 0.0:
            return list(examples.values())
        own = greedy_paths(
            self.lm,
            [one.prompt for one in examples.values()],
            batch_size=BATCH_SIZE,
            max_new_tokens=self.settings.max_new_tokens,
        )
        pool = self.coordinator.data.pool
        return [
            replace(
                one,
                own_path=text if text and answer_of(text, ()) != pool[place].answer else None,
            )
            for (place, one), text in zip(examples.items(), own, strict=True)
        ]

    def accuracy(self) -> float:
        """Share of right answers of the student on the site's held-out records."""
        load_adapters(self.lm, self.student)
        return accuracy(
            self.lm,
            self.releases.site.held_out,
            batch_size=BATCH_SIZE,
            max_new_tokens=self.settings.max_new_tokens,
        )

    def _losses(self, examples: Sequence[PathExample]) -> FloatArray:
        if not examples:
            return np.zeros(0, dtype=np.float64)
        scored = path_log_probabilities(
            self.lm,
            [one.prompt for one in examples],
            [one.path for one in examples],
            batch_size=BATCH_SIZE,
        )
        losses: FloatArray = np.maximum(-scored.mean, 0.0)
        return losses
