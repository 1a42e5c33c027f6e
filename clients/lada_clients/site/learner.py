"""The site's small model and what it computes with it: statistics, utilities, picks, training.

Everything here stays on this machine. What may leave is `Released`; the service sends nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lada_clients.site.allocator import SiteAllocator
from lada_clients.site.memory import KnownPath, SiteMemory
from lada_clients.site.settings import SiteSettings
from lada_clients.site.training import (
    adapter_settings,
    privacy_parameters,
    private_unit,
    record_example,
    trainer_settings,
)
from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.plan import StudyPlan
from lada_protocol.uplink import MAX_PATH_CHARACTERS, SitePath
from lada_secure.canonical import Json, parse_canonical_json
from lada_secure.data.prompts import answer_of, path_of, prompt_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.distillation.adapters import (
    AdapterWeights,
    attach_adapters,
    load_adapters,
)
from lada_secure.distillation.certainty import answer_pool
from lada_secure.distillation.evaluation import (
    accuracy,
    choose,
    greedy_paths,
    path_log_probabilities,
)
from lada_secure.distillation.examples import PathExample
from lada_secure.distillation.models import LanguageModel, load_language_model
from lada_secure.distillation.outlook import TrainingOutlook
from lada_secure.distillation.paths import generate_paths
from lada_secure.distillation.released_adapters import released_adapters
from lada_secure.distillation.training import Distilled, StepReport, distil, training_spec
from lada_secure.errors import PeerError
from lada_secure.learnability.arrays import FloatArray
from lada_secure.learnability.cells import CellGrid, Clusters
from lada_secure.learnability.data_filter import (
    observations,
)
from lada_secure.learnability.embedding import embedder
from lada_secure.learnability.explanation import explain_cells
from lada_secure.learnability.gap import cell_rewards, probability
from lada_secure.learnability.statistics import (
    NoisedStatistics,
    StatisticsParameters,
    UnitStatistics,
    release_statistics,
    statistics_spec,
    unit_statistics,
)
from lada_secure.privacy.ledger import LedgerBook, ReleaseSpec
from lada_secure.privacy.released import Released
from lada_secure.privacy.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedPath:
    """One reasoning path of the LLM, checked against the pool."""

    sample: int
    cell: int
    path: str


@dataclass(slots=True, kw_only=True)
class SiteLearner:
    """One site's model during one study; `load` first."""

    plan: StudyPlan
    settings: SiteSettings
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    units: tuple[Unit, ...]
    held_out: tuple[Record, ...]
    memory: SiteMemory
    model: LanguageModel
    grid: CellGrid
    allocator: SiteAllocator

    @classmethod
    def load(
        cls,
        *,
        plan: StudyPlan,
        settings: SiteSettings,
        pool: tuple[PoolSample, ...],
        clusters: Clusters,
        units: tuple[Unit, ...],
        held_out: tuple[Record, ...],
        memory: SiteMemory,
    ) -> SiteLearner:
        """Load the SLM, attach its adapters, and go on from the last round that was trained."""
        import torch

        torch.set_num_threads(settings.threads)
        model = load_language_model(plan.slm, cache_dir=settings.cache_dir)
        layers = int(model.model.config.num_hidden_layers)
        attach_adapters(model, adapter_settings(plan, layers=layers))
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
            units=units,
            held_out=held_out,
            memory=memory,
            model=model,
            grid=grid,
            allocator=SiteAllocator(
                plan=plan, grid=grid, pool_clusters=clusters.assign(vectors), memory=memory
            ),
        )

    @property
    def statistics_parameters(self) -> StatisticsParameters:
        """Clipping, scale, noise and bound of the statistics, all from the plan."""
        return StatisticsParameters(
            clusters=self.plan.allocation.clusters,
            loss_clip=self.plan.statistics.loss_clip,
            noise_multiplier=self.plan.statistics.noise_multiplier,
            max_units=self.plan.privacy.max_units,
            scale=self.plan.statistics.integer_scale,
        )

    def release_statistics(self, round_id: int, book: LedgerBook) -> Released[NoisedStatistics]:
        """This round's noised statistics; paid for once, the same value at every call."""
        parameters = self.statistics_parameters
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

    def _exact_statistics(self) -> UnitStatistics:
        records = [record for unit in self.units for record in unit.records]
        vectors = embedder(self.plan.embedder).embed([one.question for one in records])
        assigned = self.clusters.assign(vectors) if records else np.zeros(0, dtype=np.int64)
        # The stated answer alone: some records have reasons and some do not, and their losses
        # are to be comparable.
        losses = self._losses([record_example(one, reasons=False) for one in records])
        ids = [one.record_id for one in records]
        return unit_statistics(
            self.units,
            {one: int(cluster) for one, cluster in zip(ids, assigned, strict=True)},
            {one: float(loss) for one, loss in zip(ids, losses, strict=True)},
            clusters=self.plan.allocation.clusters,
            loss_clip=self.plan.statistics.loss_clip,
            scale=self.plan.statistics.integer_scale,
        )

    def utilities(self, round_id: int, noised: NoisedStatistics) -> FloatArray:
        """See `SiteAllocator.utilities`."""
        return self.allocator.utilities(round_id, noised)

    def picks(self, round_id: int, noised: NoisedStatistics, scores: FloatArray) -> list[int]:
        """See `SiteAllocator.picks`."""
        return self.allocator.picks(round_id, noised, scores)

    def parse_paths(self, raw: bytes) -> tuple[ReceivedPath, ...]:
        """Read the payload of `paths`.

        Raises: PeerError(reason="malformed"): anything but known samples, cells and texts.
        """
        places = {sample.sample_id: number for number, sample in enumerate(self.pool)}
        value = parse_canonical_json(raw, max_bytes=kind_rules(Kind.PATHS).max_payload_bytes)
        received: list[ReceivedPath] = []
        if not isinstance(value, list):
            raise PeerError("paths: expected a list")
        for row in value:
            if not isinstance(row, dict) or set(row) != {"sample_id", "path", "cell"}:
                raise PeerError("paths: expected objects with sample_id, path and cell")
            sample, path, cell = row["sample_id"], row["path"], row["cell"]
            known = isinstance(sample, str) and sample in places
            if not known or type(cell) is not int or not 0 <= cell < self.grid.cells:
                raise PeerError("paths: a sample or cell that the study does not have")
            if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH_CHARACTERS:
                raise PeerError(f"paths: expected texts of 1 to {MAX_PATH_CHARACTERS} characters")
            received.append(ReceivedPath(sample=places[sample], cell=cell, path=path))
        if len({one.sample for one in received}) != len(received):
            raise PeerError("paths: two paths for one sample")
        return tuple(received)

    def train(
        self,
        round_id: int,
        noised: NoisedStatistics,
        received: Sequence[ReceivedPath],
        *,
        book: LedgerBook,
        progress: Callable[[StepReport], None],
        announce: Callable[[TrainingOutlook], None] | None = None,
    ) -> Distilled:
        """Distil the picked paths and the private records, then learn what each cell brought."""
        view, worth = self.allocator.view(round_id, noised)
        wanted = set(self.memory.picks(round_id) or ())
        mine = [one for one in received if one.sample in wanted]
        examples = [self._path_example(one) for one in mine]
        before = self._losses(examples)
        kept = self.allocator.screen(probability(before))
        pool = [examples[number] for number in kept]
        result = distil(
            self.model,
            units=[private_unit(unit) for unit in self.units],
            pool=self._with_own_paths(pool, [mine[number].sample for number in kept]),
            privacy=privacy_parameters(self.plan),
            settings=trainer_settings(self.plan, self.settings, round_id=round_id),
            book=book,
            spec=self._training_spec(round_id),
            progress=progress,
            announce=announce,
        )
        after = self._losses(examples)
        cells = np.array([one.cell for one in mine], dtype=np.int64)
        rewards = cell_rewards(before[kept], after[kept], cells[kept], cells=self.grid.cells)
        rows: list[Json] = [
            one.to_json() for one in explain_cells(view, worth, picked_cells=cells, rewards=rewards)
        ]
        # First, and once: after a crash below, the view would know of this round's own rewards.
        self.memory.keep_allocation(round_id, rows)
        history = self.memory.history()
        if not history.rounds or history.rounds[-1].round_id < round_id:
            history = history.with_round(observations(view.beliefs, rewards, round_id=round_id))
            self.memory.keep_history(history)
        self.memory.keep_known_paths(
            [
                KnownPath(sample=one.sample, cell=one.cell, p=float(p))
                for one, p in zip(mine, probability(after), strict=True)
            ]
        )
        self.memory.keep_adapters(round_id, result.adapters.value.data)
        return result

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

    def certainty(self, places: Sequence[int]) -> FloatArray:
        """How sure the released SLM is of the gold answers of pool samples, (m,) in [0, 1]."""
        return answer_pool(
            self.model,
            [self.pool[place] for place in places],
            batch_size=self.settings.physical_batch_size,
            max_new_tokens=self.plan.paths.max_new_tokens,
        ).certainty

    def solved(self, places: Sequence[int]) -> list[SitePath]:
        """Greedy paths of the released SLM on pool samples, where they reach the gold answer."""
        numbers = {self.pool[place].sample_id: place for place in places}
        written = generate_paths(
            self.model,
            [self.pool[place] for place in places],
            max_new_tokens=self.plan.paths.max_new_tokens,
            attempts=1,
            batch_size=self.settings.physical_batch_size,
        )
        return [
            SitePath(sample=numbers[one.sample_id], path=one.path[:MAX_PATH_CHARACTERS])
            for one in written.paths
        ]

    def held_out_accuracy(self) -> float | None:
        """Share of right answers on the site's own held-out records; never leaves the site."""
        if not self.held_out:
            return None
        return accuracy(self.model, self.held_out, batch_size=self.settings.physical_batch_size)

    def _losses(self, examples: Sequence[PathExample]) -> FloatArray:
        """Loss of each path under the present model, nats per token, (n,)."""
        if not examples:
            return np.zeros(0, dtype=np.float64)
        scored = path_log_probabilities(
            self.model,
            [one.prompt for one in examples],
            [one.path for one in examples],
            batch_size=self.settings.physical_batch_size,
        )
        losses: FloatArray = np.maximum(-scored.mean, 0.0)
        return losses

    def _path_example(self, received: ReceivedPath) -> PathExample:
        sample = self.pool[received.sample]
        return PathExample(
            example_id=sample.sample_id,
            prompt=prompt_of(sample.question, sample.choices),
            path=received.path,
            own_path=None,
        )

    def _with_own_paths(
        self, examples: Sequence[PathExample], places: Sequence[int]
    ) -> list[PathExample]:
        """Add what the SLM says today, where that is wrong: the other side of the contrast.

        For multiple choice that is the option it would choose, for open questions its own greedy
        path. A right own path has nothing to be told apart from.
        """
        if self.plan.distillation.contrastive_weight == 0.0 or not examples:
            return list(examples)
        samples = [self.pool[place] for place in places]
        size = self.settings.physical_batch_size
        if all(one.choices for one in samples):
            said = choose(self.model, samples, batch_size=size)
            own = [
                path_of(one.choices[int(letter)], one.choices, None)
                for one, letter in zip(samples, said, strict=True)
            ]
        else:
            own = greedy_paths(
                self.model,
                [one.prompt for one in examples],
                batch_size=size,
                max_new_tokens=self.plan.paths.max_new_tokens,
            )
        return [
            PathExample(
                example_id=example.example_id,
                prompt=example.prompt,
                path=example.path,
                own_path=text if text and is_wrong(text, sample) else None,
            )
            for example, text, sample in zip(examples, own, samples, strict=True)
        ]


def is_wrong(path: str, sample: PoolSample) -> bool:
    """Whether a path ends in another answer than the public gold answer."""
    return answer_of(path, sample.choices) != sample.answer
