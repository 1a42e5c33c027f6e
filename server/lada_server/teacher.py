"""The LLM side of a study: private pool features, and reasoning paths for samples in demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lada_protocol.plan import StudyPlan
from lada_secure.canonical import Json, canonical_json
from lada_secure.data.prompts import answer_of, path_of, prompt_of
from lada_server.study import Study

if TYPE_CHECKING:
    from lada_secure.distillation.models import LanguageModel
    from lada_secure.learnability.arrays import FloatArray, IntArray

BATCH_SIZE = 16
GENERATION_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """What the coordinator knows of its pool and keeps to itself.

    features: (n, d) float64 in [0, 1], the private matrix of blind scoring.
    cells: (n,) int64, each sample's own cell.
    """

    features: FloatArray
    cells: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPaths:
    """Reasoning paths of one round, as the payload of `paths`, with counts for its body."""

    payload: bytes
    demanded: int
    written: int
    wrong: int
    dropped: int


class Teacher:
    """The LLM, loaded once; everything here is computed on public samples only."""

    def __init__(self, reference: str, *, cache_dir: Path, threads: int) -> None:
        self._reference = reference
        self._cache_dir = cache_dir
        self._threads = threads
        self._model: LanguageModel | None = None

    @property
    def model(self) -> LanguageModel:
        """The loaded LLM."""
        if self._model is None:
            import torch

            from lada_secure.distillation.models import load_language_model

            torch.set_num_threads(self._threads)
            self._model = load_language_model(self._reference, cache_dir=self._cache_dir)
        return self._model

    def view_pool(self, study: Study) -> PoolView:
        """Difficulty bins and confidence of the LLM for every pool sample (Guo et al. 2026).

        Difficulty is the LLM's loss on the path it would write or choose. Confidence says how
        likely that path is right: for open questions whether its greedy answer is the gold one;
        1 for multiple choice, where a wrong choice is found and dropped when the path is written.
        """
        from lada_secure.learnability.cells import CellGrid, difficulty_bins, pool_features

        plan = study.plan
        grid = CellGrid(clusters=plan.allocation.clusters, bins=plan.allocation.difficulty_bins)
        losses, confidence = self._judge(study)
        bins = difficulty_bins(losses, plan.allocation.difficulty_bins)
        features = pool_features(
            grid,
            membership=study.clusters.membership(study.embeddings),
            difficulty=bins,
            confidence=confidence,
        )
        cells = grid.index(study.clusters.assign(study.embeddings), bins)
        return PoolView(features=features, cells=cells)

    def _judge(self, study: Study) -> tuple[FloatArray, FloatArray]:
        """Loss (n,) >= 0 in nats per token, and confidence (n,) in [0, 1]."""
        from lada_secure.distillation.evaluation import greedy_paths, path_log_probabilities
        from lada_secure.learnability.gap import length_normalised

        pool = study.pool
        prompts = [prompt_of(one.question, one.choices) for one in pool]
        open_questions = [number for number, one in enumerate(pool) if not one.choices]
        paths = [path_of(one.answer, one.choices, None) for one in pool]
        written = greedy_paths(
            self.model,
            [prompts[number] for number in open_questions],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=study.plan.paths.max_new_tokens,
        )
        for number, path in zip(open_questions, written, strict=True):
            paths[number] = path or paths[number]
        scored = path_log_probabilities(self.model, prompts, paths, batch_size=BATCH_SIZE)
        losses = -length_normalised(scored.total, scored.tokens)
        confidence = np.ones(len(pool), dtype=np.float64)
        for number in open_questions:
            right = answer_of(paths[number], pool[number].choices) == pool[number].answer
            confidence[number] = float(right)
        return losses, confidence

    def write_paths(
        self,
        study: Study,
        view: PoolView,
        demand: list[int],
        *,
        progress: Callable[[int, int], None],
    ) -> WrittenPaths:
        """Write paths for the samples in demand, most wanted first, within the plan's budget.

        Args: demand: how many sites want each pool sample, in pool order.
        """
        from lada_secure.distillation.paths import generate_paths

        plan: StudyPlan = study.plan
        order = np.lexsort((np.arange(len(demand)), -np.asarray(demand)))
        wanted = [int(one) for one in order if demand[one] > 0]
        chosen = wanted[: plan.paths.budget]
        lines: list[Json] = []
        wrong = dropped = 0
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = {study.pool[one].sample_id: one for one in chosen[start : start + BATCH_SIZE]}
            generated = generate_paths(
                self.model,
                [study.pool[one] for one in batch.values()],
                max_new_tokens=plan.paths.max_new_tokens,
                attempts=plan.paths.attempts,
                batch_size=BATCH_SIZE,
            )
            wrong += generated.wrong + generated.unreadable
            dropped += len(generated.dropped)
            for one in generated.paths:
                cell = int(view.cells[batch[one.sample_id]])
                lines.append({"sample_id": one.sample_id, "path": one.path, "cell": cell})
            progress(min(start + BATCH_SIZE, len(chosen)), len(chosen))
        return WrittenPaths(
            payload=canonical_json(lines),
            demanded=len(wanted),
            written=len(lines),
            wrong=wrong,
            dropped=dropped,
        )
