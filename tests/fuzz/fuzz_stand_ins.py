"""What stands for language models in the recorded study; every parser is the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from protocol_world import training_spec

from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import SiteMemory
from lada_clients.site.received_paths import ReceivedRationale
from lada_clients.site.service import Site
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import SiteRationale
from lada_secure.allocation.cells import CellGrid, Clusters
from lada_secure.allocation.statistics import (
    NoisedStatistics,
    UnitStatistics,
    release_statistics,
    statistics_spec,
)
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.canonical import canonical_json
from lada_secure.data.records import PoolSample
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import Answers
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.released import Released
from lada_server.study.proposal import Study
from lada_server.study.teacher import PoolView, Teacher, WrittenRationales


class TeacherWithoutModel(Teacher):
    """Sees a fixed matrix in the pool and writes fixed paths."""

    def __init__(self) -> None:
        """There is nothing to load."""

    def view_pool(self, study: Study) -> PoolView:
        """One hot rows: every sample belongs to one cell."""
        allocation = study.plan.allocation
        cells = np.arange(len(study.pool)) % allocation.cells
        features = np.eye(allocation.cells)[cells]
        return PoolView(features=features, cells=cells)

    def use(self, study: Study, version: str) -> None:
        """One version is as good as another."""

    def answer(self, study: Study, places: Sequence[int]) -> Answers:
        """Knows nothing."""
        count = len(places)
        return Answers(
            paths=("no",) * count, right=np.zeros(count, dtype=np.bool_), confidence=np.zeros(count)
        )

    def tune(self, *_study: object, **_progress: object) -> AdapterWeights:
        """Learns nothing."""
        return AdapterWeights(data=b"adapters")

    def write_rationales(
        self,
        study: Study,
        view: PoolView,
        demand: list[int],
        *,
        progress: Callable[[int, int], None],
    ) -> WrittenRationales:
        """The same words for every sample in demand."""
        lines = [
            {"sample_id": study.pool[one].sample_id, "path": "so yes", "cell": int(view.cells[one])}
            for one, count in enumerate(demand)
            if count > 0
        ]
        return WrittenRationales(
            payload=canonical_json(lines),
            demanded=len(lines),
            written=len(lines),
            wrong=0,
            dropped=0,
        )


@dataclass(slots=True, kw_only=True)
class LearnerWithoutModel:
    """What a site asks of its learner; foreign bytes are read by the real one's parser."""

    plan: StudyPlan
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    memory: SiteMemory
    grid: CellGrid
    held_out: tuple[()] = ()

    def release_statistics(self, round_id: int, book: LedgerBook) -> Released[NoisedStatistics]:
        """Noised zeros, paid for."""
        plan = self.plan
        parameters = StatisticsParameters(
            clusters=plan.allocation.clusters,
            loss_clip=plan.statistics.loss_clip,
            noise_multiplier=plan.statistics.noise_multiplier,
            max_units=plan.privacy.max_units,
            scale=plan.statistics.integer_scale,
        )
        nothing = UnitStatistics(
            vector=np.zeros(parameters.length, dtype=np.int64),
            clusters=parameters.clusters,
            loss_clip=parameters.loss_clip,
            scale=parameters.scale,
        )
        spec = statistics_spec(
            parameters,
            study_id=plan.study_id,
            plan_hash=plan.hash,
            round_id=round_id,
            unit=plan.privacy.unit,
        )
        return release_statistics(
            lambda _paid: nothing, parameters=parameters, book=book, spec=spec
        )

    def utilities(self, round_id: int, noised: NoisedStatistics) -> np.ndarray:
        """Every cell is worth half."""
        return np.full(self.grid.cells, 0.5)

    def picks(self, round_id: int, noised: NoisedStatistics, scores: np.ndarray) -> list[int]:
        """The best samples."""
        return [int(one) for one in np.argsort(-scores)[: self.plan.allocation.quota]]

    def parse_paths(self, raw: bytes) -> tuple[ReceivedRationale, ...]:
        """The real parser."""
        return SiteLearner.parse_paths(cast(SiteLearner, self), raw)

    def train(
        self,
        round_id: int,
        noised: NoisedStatistics,
        received: Sequence[ReceivedRationale],
        *,
        book: LedgerBook,
        **_watchers: Callable[..., None],
    ) -> None:
        """Pay, and keep what stands for adapters."""
        self.memory.keep_adapters(round_id, self.released_adapters(round_id, book).value)

    def released_adapters(self, round_id: int, book: LedgerBook) -> Released[bytes]:
        """What stands for adapters, paid for once."""
        return book.release(
            training_spec(self.plan, round_id),
            compute=lambda _paid: b"adapters",
            encode=bytes,
            decode=bytes,
        )

    def confidence(self, places: Sequence[int]) -> np.ndarray:
        """Sure of everything."""
        return np.ones(len(places))

    def solved(self, places: Sequence[int]) -> list[SiteRationale]:
        """Knows every answer."""
        return [SiteRationale(sample=one, path="so yes") for one in places]


class SiteWithoutModel(Site):
    """The real service; its learner has no model."""

    def _check_with_model(self) -> None:
        """There is no model to check records with."""

    @property
    def learner(self) -> SiteLearner:
        """Made once pool and clusters were read, as the real one."""
        if self._learner is None:
            plan = self.participant.plan
            pool, clusters = self._public_material()
            made = LearnerWithoutModel(
                plan=plan,
                pool=pool,
                clusters=clusters,
                memory=self.memory,
                grid=CellGrid(
                    clusters=plan.allocation.clusters, bins=plan.allocation.difficulty_bins
                ),
            )
            self._learner = cast(SiteLearner, made)
        return cast(SiteLearner, self._learner)
