"""The LLM's side of the simulation: the private view of the pool, paths in demand, transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lada_lab.arms.study import StudySettings
from lada_lab.baselines.baseline import check_pool
from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.cells import (
    CellGrid,
    Clusters,
    difficulty_bins,
    fit_clusters,
    pool_features,
)
from lada_secure.arrays import BoolArray, FloatArray, IntArray
from lada_secure.data.prompts import answer_of, prompt_of, rationale_of
from lada_secure.errors import ParameterError
from lada_secure.models.embedding import HASHED_NGRAMS, embedder
from lada_secure.models.evaluation import accuracy, greedy_rationales, rationale_log_probabilities
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import GeneratedRationales, generate_rationales
from lada_secure.models.text_lengths import needed_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolView:
    """The LLM's view of the pool; only the demanded paths and their cells leave it.

    features: (n, d) in [0, 1], the matrix of blind scoring. cells: (n,). losses: (n,) nats per
    token of the LLM on its own path. answer_losses: (n,) on the gold answer alone. solved: (n,)
    whether its path ends in the gold answer.
    """

    features: FloatArray
    cells: IntArray
    losses: FloatArray
    answer_losses: FloatArray
    solved: BoolArray


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """Pool, clusters and LLM of one world."""

    data: BenchData
    settings: StudySettings
    llm: LanguageModel
    clusters: Clusters
    pool_clusters: IntArray
    membership: FloatArray
    grid: CellGrid
    _view: PoolView | None = None
    _paths: dict[int, str | None] = field(default_factory=dict)
    _accuracy: float | None = None

    @classmethod
    def open(cls, data: BenchData, settings: StudySettings, llm: LanguageModel) -> Coordinator:
        """Cluster the pool and publish the clusters.

        Raises: ParameterError: a pool that `check_pool` refuses, a question too long for the LLM.
        """
        check_pool(data.pool)
        needed = max(needed_tokens(llm, data.pool, written=[0] * len(data.pool)))
        if needed > llm.max_tokens:
            raise ParameterError(
                f"the pool's longest question needs {needed} tokens, at most {llm.max_tokens}"
            )
        vectors = embedder(HASHED_NGRAMS).embed([one.question for one in data.pool])
        clusters = fit_clusters(vectors, settings.clusters, seed=0)
        return cls(
            data=data,
            settings=settings,
            llm=llm,
            clusters=clusters,
            pool_clusters=clusters.assign(vectors),
            membership=clusters.membership(vectors),
            grid=CellGrid(clusters=clusters.count, bins=settings.difficulty_bins),
        )

    @property
    def view(self) -> PoolView:
        """What the LLM as it is now thinks of every pool sample."""
        if self._view is None:
            self._view = self._looked()
        return self._view

    def look(self) -> None:
        """Work out now what would be worked out at first use, so that no arm is charged for it."""
        _ = self.view, self.accuracy()

    def forget(self) -> None:
        """The LLM has changed: look at the pool anew and write paths anew."""
        self._view = None
        self._paths.clear()
        self._accuracy = None

    def accuracy(self) -> float:
        """Share of right answers of the LLM on all sites' held-out records in the public's manner.

        Marked questions mean another thing to the public than to the house; they are left out.
        """
        if self._accuracy is None:
            asked = [
                one
                for site in self.data.sites
                for one in site.held_out
                if not one.question.startswith(self.data.mark)
            ]
            self._accuracy = accuracy(
                self.llm,
                asked,
                batch_size=self.settings.batch_size,
                max_new_tokens=self.settings.max_new_tokens,
            )
        return self._accuracy

    def _looked(self) -> PoolView:
        pool = self.data.pool
        prompts = [prompt_of(one.question, one.choices) for one in pool]
        written = greedy_rationales(
            self.llm,
            prompts,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )
        answers = [rationale_of(one.answer, one.choices, None) for one in pool]
        paths = [text or answer for text, answer in zip(written, answers, strict=True)]
        losses = self._losses(prompts, paths)
        right = np.array(
            [
                bool(text) and answer_of(text, one.choices) == one.answer
                for text, one in zip(written, pool, strict=True)
            ],
            dtype=np.bool_,
        )
        bins = difficulty_bins(losses, self.settings.difficulty_bins)
        return PoolView(
            features=pool_features(
                self.grid,
                membership=self.membership,
                difficulty=bins,
                confidence=right.astype(np.float64),
            ),
            cells=self.grid.index(self.pool_clusters, bins),
            losses=losses,
            answer_losses=self._losses(prompts, answers),
            solved=right,
        )

    def _losses(self, prompts: Sequence[str], paths: Sequence[str]) -> FloatArray:
        return rationale_log_probabilities(
            self.llm, prompts, paths, batch_size=self.settings.batch_size
        ).losses

    def write(self, wanted: Sequence[int]) -> dict[int, str]:
        """Paths that reach the gold answer, for the samples in demand that got one."""
        missing = sorted(set(wanted) - set(self._paths))
        if missing:
            numbers = {self.data.pool[place].sample_id: place for place in missing}
            made: GeneratedRationales = generate_rationales(
                self.llm,
                [self.data.pool[place] for place in missing],
                max_new_tokens=self.settings.max_new_tokens,
                attempts=self.settings.attempts,
                batch_size=self.settings.batch_size,
            )
            self._paths.update(dict.fromkeys(missing))
            self._paths.update({numbers[one.sample_id]: one.path for one in made.paths})
        return {place: path for place in wanted if (path := self._paths[place]) is not None}
