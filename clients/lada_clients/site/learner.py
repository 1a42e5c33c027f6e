"""The site's small model and what it computes with it: statistics, utilities, picks, training.

Everything here stays on this machine. What may leave is `Released`; the service sends nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from lada_clients.site.allocator import SiteAllocator
from lada_clients.site.contrast import with_own_paths
from lada_clients.site.guidance import Guidance
from lada_clients.site.memory import JudgedRationale, KnownRationale, SiteMemory
from lada_clients.site.received_paths import ReceivedRationale, parse_received_rationales
from lada_clients.site.settings import SiteSettings
from lada_clients.site.training import adapter_settings, private_units, trainer_settings
from lada_protocol.plan import StudyPlan
from lada_protocol.plan_mechanisms import privacy_parameters, statistics_parameters
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS, SiteRationale
from lada_secure.allocation.cells import CellGrid, Clusters
from lada_secure.allocation.explanation import explain_cells
from lada_secure.allocation.gap import cell_rewards, probability
from lada_secure.allocation.measured_statistics import measured_statistics
from lada_secure.allocation.reward_model import (
    observations,
)
from lada_secure.allocation.statistics import (
    NoisedStatistics,
    UnitStatistics,
    release_statistics,
    statistics_spec,
)
from lada_secure.arrays import FloatArray
from lada_secure.canonical import Json
from lada_secure.data.prompts import prompt_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.dpsgd.distillation import Distilled, StepReport, distil, training_spec
from lada_secure.dpsgd.released_adapters import released_adapters
from lada_secure.dpsgd.signal_to_noise import SignalToNoiseEstimate
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.confidence import answer_pool
from lada_secure.models.embedding import embedder
from lada_secure.models.evaluation import (
    accuracy,
    rationale_losses,
)
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel, load_language_model
from lada_secure.models.rationales import generate_rationales
from lada_secure.privacy.ledger.book import LedgerBook, ReleaseSpec, Reservation
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.released import Released

Distilling: TypeAlias = Callable[..., Distilled]


@dataclass(slots=True, kw_only=True)
class SiteLearner:
    """One site's model during one study; `load` first."""

    plan: StudyPlan
    settings: SiteSettings
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    records: PrivateRecords
    held_out: tuple[Record, ...]
    memory: SiteMemory
    model: LanguageModel
    grid: CellGrid
    allocator: SiteAllocator
    guidance: Guidance | None = None

    @classmethod
    def load(
        cls,
        *,
        plan: StudyPlan,
        settings: SiteSettings,
        pool: tuple[PoolSample, ...],
        clusters: Clusters,
        records: PrivateRecords,
        held_out: tuple[Record, ...],
        memory: SiteMemory,
    ) -> SiteLearner:
        """Load the SLM, attach its adapters, and go on from the last round that was trained."""
        import torch

        torch.set_num_threads(settings.threads)
        model = load_language_model(plan.slm, cache_dir=settings.cache_dir)
        layers = int(model.model.config.num_hidden_layers)
        attach_adapters(model, adapter_settings(plan, layers=layers))
        reference = adapter_weights(model)
        for round_id in reversed(range(plan.rounds)):
            kept = memory.adapters(round_id)
            if kept is not None:
                load_adapters(model, AdapterWeights(data=kept))
                break
        vectors = embedder(plan.embedder).embed([one.question for one in pool])
        grid = CellGrid(clusters=plan.allocation.clusters, bins=plan.allocation.difficulty_bins)
        return cls(
            plan=plan,
            settings=settings,
            pool=pool,
            clusters=clusters,
            records=records,
            held_out=held_out,
            memory=memory,
            model=model,
            grid=grid,
            allocator=SiteAllocator(
                plan=plan, grid=grid, pool_clusters=clusters.assign(vectors), memory=memory
            ),
            guidance=None
            if plan.guide is None
            else Guidance(
                plan=plan,
                settings=plan.guide,
                pool=pool,
                memory=memory,
                model=model,
                reference=reference,
                batch_size=settings.physical_batch_size,
                grid=grid,
            ),
        )

    def release_statistics(self, round_id: int, book: LedgerBook) -> Released[NoisedStatistics]:
        """This round's noised statistics; paid for once, the same value at every call."""
        parameters = statistics_parameters(self.plan)
        return release_statistics(
            self._exact_statistics,
            parameters=parameters,
            book=book,
            spec=statistics_spec(
                parameters,
                study_id=self.plan.study_id,
                plan_hash=self.plan.hash,
                round_id=round_id,
                unit=self.plan.privacy.unit,
            ),
        )

    def _exact_statistics(self, paid: Reservation) -> UnitStatistics:
        return measured_statistics(
            self.model,
            self.records.units(paid),
            clusters=self.clusters,
            embedder=embedder(self.plan.embedder),
            loss_clip=self.plan.statistics.loss_clip,
            scale=self.plan.statistics.integer_scale,
            batch_size=self.settings.physical_batch_size,
        )

    def utilities(self, round_id: int, noised: NoisedStatistics) -> FloatArray:
        """See `SiteAllocator.utilities`."""
        return self.allocator.utilities(round_id, noised)

    def picks(self, round_id: int, noised: NoisedStatistics, scores: FloatArray) -> list[int]:
        """See `SiteAllocator.picks`."""
        return self.allocator.picks(round_id, noised, scores)

    def parse_paths(self, raw: bytes) -> tuple[ReceivedRationale, ...]:
        """See `parse_received_rationales`."""
        return parse_received_rationales(raw, pool=self.pool, cells=self.grid.cells)

    def train(
        self,
        round_id: int,
        noised: NoisedStatistics,
        received: Sequence[ReceivedRationale],
        *,
        book: LedgerBook,
        progress: Callable[[StepReport], None],
        announce: Callable[[SignalToNoiseEstimate], None] | None = None,
    ) -> Distilled:
        """Distil the picked paths and the private records, then learn what each cell brought.

        With a guide, DP-SGD reads the private records alone, and the paths that agree with what it
        released are learned from afterwards.
        """
        view, utility = self.allocator.view(round_id, noised)
        wanted = set(self.memory.picks(round_id) or ())
        mine = [one for one in received if one.sample in wanted]
        examples = [self._path_example(one) for one in mine]
        before = self._losses(examples)
        distilling = partial(
            distil,
            self.model,
            privacy=privacy_parameters(self.plan),
            book=book,
            spec=self._training_spec(round_id),
            progress=progress,
            announce=announce,
        )
        judged: list[JudgedRationale] = []
        if self.guidance is None:
            kept = self.allocator.screen(probability(before))
            result = self._trained_together(
                [mine[number] for number in kept], distilling, round_id=round_id
            )
        else:
            judged, places, result = self._guided(
                self.guidance, mine, distilling, book=book, round_id=round_id
            )
            trained_on = {judged[place].sample for place in places}
            kept = [number for number, one in enumerate(mine) if one.sample in trained_on]
        after = self._losses(examples)
        cells = np.array([one.cell for one in mine], dtype=np.int64)
        rewards = cell_rewards(before[kept], after[kept], cells[kept], cells=self.grid.cells)
        rows: list[Json] = [
            one.to_json()
            for one in explain_cells(view, utility, picked_cells=cells, rewards=rewards)
        ]
        # First, and once: after a crash below, the view would know of this round's own rewards.
        self.memory.keep_allocation(round_id, rows)
        history = self.memory.history()
        if not history.rounds or history.rounds[-1].round_id < round_id:
            history = history.with_round(observations(view.beliefs, rewards, round_id=round_id))
            self.memory.keep_history(history)
        self.memory.keep_known_paths(
            [
                KnownRationale(sample=one.sample, cell=one.cell, p=float(p))
                for one, p in zip(mine, probability(after), strict=True)
            ]
        )
        if judged:
            self.memory.keep_judged_paths(judged)
        self.memory.keep_adapters(round_id, adapter_weights(self.model).data)
        return result

    def _trained_together(
        self, paths: Sequence[ReceivedRationale], distilling: Distilling, *, round_id: int
    ) -> Distilled:
        """One training of private records and pool paths, DESIGN step 9."""
        return distilling(
            units=partial(self._private_units, round_id),
            pool=self._contrasted(
                [self._path_example(one) for one in paths], [one.sample for one in paths]
            ),
            settings=trainer_settings(self.plan, self.settings, round_id=round_id),
        )

    def _guided(
        self,
        guidance: Guidance,
        received: Sequence[ReceivedRationale],
        distilling: Distilling,
        *,
        book: LedgerBook,
        round_id: int,
    ) -> tuple[list[JudgedRationale], list[int], Distilled]:
        """Train the guide, then a student on the paths that agree with it.

        In a round that finishes, the guide is the newest one before, and the student is what the
        private steps go on from.

        Returns: all paths so far as the guide judges them, the places among them of those that
        were trained on, and what DP-SGD released.
        """
        student = adapter_weights(self.model)
        paths = guidance.take(received)
        load_adapters(self.model, student)
        examples = [self._path_example(one) for one in paths]
        probabilities = probability(self._losses(examples))
        guide = guidance.guide_before(round_id)
        load_adapters(self.model, guide)
        settings = trainer_settings(self.plan, self.settings, round_id=round_id)

        def private_steps() -> Distilled:
            return distilling(
                units=partial(self._private_units, round_id),
                pool=(),
                settings=settings,
            )

        result = None if guidance.finishes(round_id) else private_steps()
        if result is not None:
            guide = result.adapters.value
            self.memory.keep_guide(round_id, guide.data)
        judged = guidance.judge(paths, guide)
        guidance.try_out(judged, examples, self.records, book=book, round_id=round_id)
        places = guidance.passing(judged, probabilities)
        guidance.start(guide)
        guidance.teach(
            self._contrasted(
                [examples[place] for place in places], [paths[place].sample for place in places]
            ),
            round_id=round_id,
            loss=settings.loss,
        )
        return judged, places, private_steps() if result is None else result

    def _private_units(self, round_id: int, paid: Reservation) -> list[PrivateUnit]:
        return private_units(
            self.plan,
            self.model,
            self.records.units(paid),
            round_id=round_id,
            batch_size=self.settings.physical_batch_size,
        )

    def _training_spec(self, round_id: int) -> ReleaseSpec:
        return training_spec(
            privacy_parameters(self.plan),
            study_id=self.plan.study_id,
            plan_hash=self.plan.hash,
            round_id=round_id,
            unit=self.plan.privacy.unit,
        )

    def released_adapters(self, round_id: int, book: LedgerBook) -> Released[AdapterWeights]:
        """This round's adapters, after training; the same release at every call, also later.

        Raises: LedgerError: the round was not trained.
        """
        return released_adapters(
            self.model,
            privacy=privacy_parameters(self.plan),
            settings=trainer_settings(self.plan, self.settings, round_id=round_id),
            book=book,
            spec=self._training_spec(round_id),
        )

    def confidence(self, places: Sequence[int]) -> FloatArray:
        """How sure the released SLM is of the gold answers of pool samples, (m,) in [0, 1]."""
        return answer_pool(
            self.model,
            [self.pool[place] for place in places],
            batch_size=self.settings.physical_batch_size,
            max_new_tokens=self.plan.paths.max_new_tokens,
        ).confidence

    def solved(self, places: Sequence[int]) -> list[SiteRationale]:
        """Greedy paths of the released SLM on pool samples, where they reach the gold answer."""
        numbers = {self.pool[place].sample_id: place for place in places}
        written = generate_rationales(
            self.model,
            [self.pool[place] for place in places],
            max_new_tokens=self.plan.paths.max_new_tokens,
            attempts=1,
            batch_size=self.settings.physical_batch_size,
        )
        return [
            SiteRationale(sample=numbers[one.sample_id], path=one.path[:MAX_RATIONALE_CHARACTERS])
            for one in written.paths
        ]

    def held_out_accuracy(self) -> float | None:
        """Share of right answers on the site's own held-out records; never leaves the site."""
        if not self.held_out:
            return None
        return accuracy(self.model, self.held_out, batch_size=self.settings.physical_batch_size)

    def _losses(self, examples: Sequence[RationaleExample]) -> FloatArray:
        """Loss of each path under the present model, nats per token, (n,)."""
        return rationale_losses(self.model, examples, batch_size=self.settings.physical_batch_size)

    def _path_example(self, received: ReceivedRationale | JudgedRationale) -> RationaleExample:
        sample = self.pool[received.sample]
        return RationaleExample(
            example_id=sample.sample_id,
            prompt=prompt_of(sample.question, sample.choices),
            path=received.path,
            rejected=None,
        )

    def _contrasted(
        self, examples: Sequence[RationaleExample], places: Sequence[int]
    ) -> list[RationaleExample]:
        return with_own_paths(
            self.model,
            self.plan,
            examples,
            [self.pool[place] for place in places],
            batch_size=self.settings.physical_batch_size,
        )
