"""What stands for language models in the recorded study; every parser is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from protocol_world import training_spec

from lada_clients.site.learner import SiteLearner
from lada_clients.site.public_material import parse_received_rationales, read_public_material
from lada_clients.site.service import Site
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import SiteRationale
from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.statistics import (
    NoisedStatistics,
    release_statistics,
    statistics_spec,
)
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.data.records import PoolSample
from lada_secure.method.llm_round import PoolView, WrittenRationales
from lada_secure.method.plan import split_pool, transfer_of
from lada_secure.method.site_state import ReceivedRationale, SiteState
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import Answers
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.released import Released
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher


class TeacherWithoutModel(Teacher):
    """Sees a fixed matrix in the pool and writes fixed paths."""

    def __init__(self, study: Study) -> None:
        """There is nothing to load."""
        self.study = study

    def view_pool(self) -> PoolView:
        """One hot rows: every sample belongs to one cell."""
        allocation = self.study.plan.allocation
        cells = np.arange(len(self.study.pool)) % allocation.cells
        features = np.eye(allocation.cells)[cells]
        return PoolView(features=features, cells=cells)

    def use(self, version: str) -> None:
        """One version is as good as another."""

    def answer(self, places: Sequence[int]) -> Answers:
        """Knows nothing."""
        count = len(places)
        return Answers(
            paths=("no",) * count, right=np.zeros(count, dtype=np.bool_), confidence=np.zeros(count)
        )

    def answer_tuned(self, places: Sequence[int]) -> Answers:
        """Knows no more."""
        return self.answer(places)

    def tune(self, *_study: object, **_progress: object) -> AdapterWeights:
        """Learns nothing."""
        return AdapterWeights(data=b"adapters")

    def write(self, demand: Sequence[int]) -> WrittenRationales:
        """One rationale for every sample in demand, most wanted first."""
        order = sorted(range(len(demand)), key=lambda index: (-demand[index], index))
        wanted = [index for index in order if demand[index] > 0]
        chosen = wanted[: self.study.plan.paths.budget]
        texts = {index: f"so {self.study.pool[index].answer}" for index in chosen}
        return WrittenRationales(texts=texts, demanded=len(wanted), wrong=0, dropped=0)


@dataclass(slots=True, kw_only=True)
class LearnerWithoutModel:
    """What a site asks of its learner; foreign bytes are read by the real one's parser."""

    plan: StudyPlan
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    book: LedgerBook
    state: SiteState = field(default_factory=SiteState)
    held_out: tuple[()] = ()

    def release_statistics(self, round_id: int) -> Released[NoisedStatistics]:
        """Noised zeros, paid for."""
        plan = self.plan
        parameters = StatisticsParameters(
            clusters=plan.allocation.clusters,
            loss_clip=plan.statistics.loss_clip,
            noise_multiplier=plan.statistics.noise_multiplier,
            max_units=plan.privacy.max_units,
            scale=plan.statistics.integer_scale,
        )
        spec = statistics_spec(
            parameters,
            study_id=plan.study_id,
            plan_hash=plan.hash,
            round_id=round_id,
            unit=plan.privacy.unit,
        )
        return release_statistics(
            lambda _paid: (), parameters=parameters, book=self.book, spec=spec
        )

    def utilities(self, noised: NoisedStatistics) -> np.ndarray:
        """Half for every cell."""
        return np.full(self.plan.allocation.cells, 0.5)

    def picks(self, round_id: int, noised: NoisedStatistics, scores: np.ndarray) -> list[int]:
        """The best samples."""
        return [int(one) for one in np.argsort(-scores)[: self.plan.allocation.quota]]

    def parse_paths(self, raw: bytes) -> tuple[ReceivedRationale, ...]:
        """The real parser."""
        return parse_received_rationales(raw, pool=self.pool, cells=self.plan.allocation.cells)

    def train(self, round_id: int, *_inputs: object, **_named: object) -> None:
        """Pay, and remember it."""
        self.released_adapters(round_id)
        self.state = replace(self.state, trained=(*self.state.trained, round_id))

    def released_adapters(self, round_id: int) -> Released[bytes]:
        """What stands for adapters, paid for once."""
        return self.book.release(
            training_spec(self.plan, round_id),
            compute=lambda _paid: b"adapters",
            encode=bytes,
            decode=bytes,
        )

    def confidence_excess(self, round_id: int) -> list[int]:
        """Sure of every candidate."""
        excess = np.zeros(self.plan.pool_size, dtype=np.int64)
        excess[list(split_pool(self.plan).candidates)] = transfer_of(self.plan).site_bound
        return [int(value) for value in excess]

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
            pool, clusters = read_public_material(self.participant)
            made = LearnerWithoutModel(
                plan=plan,
                pool=pool,
                clusters=clusters,
                book=self.book,
            )
            self._learner = cast(SiteLearner, made)
        return cast(SiteLearner, self._learner)
