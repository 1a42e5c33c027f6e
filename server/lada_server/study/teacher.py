"""The LLM side of a study: private pool features, and rationales for samples in demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS, transfer_of
from lada_secure.canonical import Json, canonical_json, parse_canonical_json
from lada_secure.data.prompts import answer_of, prompt_of, rationale_of
from lada_server.study.inference_cache import InferenceCache, PoolView
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import Study

if TYPE_CHECKING:
    from lada_secure.arrays import FloatArray
    from lada_secure.models.adapters import AdapterWeights
    from lada_secure.models.confidence import Answers
    from lada_secure.models.examples import RationaleExample
    from lada_secure.models.loading import LanguageModel
    from lada_secure.models.tuning import TuningSettings

BATCH_SIZE = 16
GENERATION_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRationales:
    """Rationales of one round, as the payload of `paths`, with counts for its body."""

    payload: bytes
    demanded: int
    written: int
    wrong: int
    dropped: int


class Teacher:
    """The LLM, loaded once; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that an LLM transfer has left;
    `looks` what was computed before a restart, where it is kept.
    """

    def __init__(
        self,
        reference: str,
        *,
        cache_dir: Path,
        threads: int,
        files: LlmFiles,
        looks: InferenceCache | None = None,
    ) -> None:
        self._looks = looks
        self._reference = reference
        self._cache_dir = cache_dir
        self._threads = threads
        self._files = files
        self._model: LanguageModel | None = None
        self._fresh: AdapterWeights | None = None
        # What the adapters hold; None while they are being trained.
        self._version: str | None = NO_ADAPTERS

    @property
    def model(self) -> LanguageModel:
        """The loaded LLM."""
        if self._model is None:
            import torch

            from lada_secure.models.loading import load_language_model

            torch.set_num_threads(self._threads)
            self._model = load_language_model(self._reference, cache_dir=self._cache_dir)
        return self._model

    def use(self, study: Study, version: str) -> None:
        """Let the LLM be this version.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version == self._version:
            return
        from lada_secure.models.adapters import AdapterWeights, load_adapters

        fresh = self._with_adapters(study)
        weights = (
            fresh if version == NO_ADAPTERS else AdapterWeights(data=self._files.read(version))
        )
        load_adapters(self.model, weights)
        self._version = version

    def tune(
        self,
        study: Study,
        version: str,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
        *,
        progress: Callable[[int, int], None],
    ) -> AdapterWeights:
        """Train the LLM of a version; it is the trained one until `use` says otherwise."""
        from lada_secure.models.tuning import tune_on_rationales

        self._with_adapters(study)
        self.use(study, version)
        self._version = None
        return tune_on_rationales(self.model, examples, replay, settings, progress=progress)

    def keep(self, weights: AdapterWeights) -> str:
        """Make what `tune` returned a version, durably. Returns: its name."""
        self._version = self._files.keep(weights.data)
        return self._version

    def answer(self, study: Study, places: Sequence[int]) -> Answers:
        """What the LLM as it is now answers on pool samples, and how sure it is."""
        about = self._about(study, list(places))
        kept = None if self._looks is None or about is None else self._looks.answers(about)
        if kept is not None:
            return kept
        from lada_secure.models.confidence import answer_pool

        answers = answer_pool(
            self.model,
            [study.pool[place] for place in places],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=study.plan.paths.max_new_tokens,
        )
        if self._looks is not None and about is not None:
            self._looks.keep_answers(about, answers)
        return answers

    def _about(self, study: Study, places: list[Json]) -> Json | None:
        """Names a look by all that decides it; None while the LLM is none of its versions."""
        if self._version is None:
            return None
        return [study.plan.hash, self._reference, self._version, places]

    def _with_adapters(self, study: Study) -> AdapterWeights:
        """Attach adapters where there are none yet. Returns: the ones that change nothing."""
        if self._fresh is None:
            from lada_secure.models.adapters import (
                AdapterSettings,
                adapter_weights,
                attach_adapters,
            )

            uplink = transfer_of(study.plan)
            attach_adapters(
                self.model,
                AdapterSettings(
                    rank=uplink.adapter_rank,
                    alpha=2.0 * uplink.adapter_rank,
                    target_modules=uplink.adapter_targets,
                    last_layers=min(
                        uplink.adapter_layers, int(self.model.model.config.num_hidden_layers)
                    ),
                    seed=study.plan.seed,
                ),
            )
            self._fresh = adapter_weights(self.model)
        return self._fresh

    def view_pool(self, study: Study) -> PoolView:
        """Difficulty bins and confidence of the LLM for every pool sample (Guo et al. 2026).

        Difficulty is the LLM's loss on the path it would write or choose. Confidence says how
        likely that path is right: for open questions whether its greedy answer is the gold one;
        1 for multiple choice, where a wrong choice is found and dropped when the path is written.
        """
        about = self._about(study, [])
        kept = None if self._looks is None or about is None else self._looks.view(about)
        if kept is not None:
            return kept
        view = self._viewed(study)
        if self._looks is not None and about is not None:
            self._looks.keep_view(about, view)
        return view

    def _viewed(self, study: Study) -> PoolView:
        from lada_secure.allocation.cells import CellGrid, difficulty_bins, pool_features

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
        from lada_secure.allocation.gap import length_normalised
        from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities

        pool = study.pool
        prompts = [prompt_of(one.question, one.choices) for one in pool]
        open_questions = [number for number, one in enumerate(pool) if not one.choices]
        paths = [rationale_of(one.answer, one.choices, None) for one in pool]
        written = greedy_rationales(
            self.model,
            [prompts[number] for number in open_questions],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=study.plan.paths.max_new_tokens,
        )
        for number, path in zip(open_questions, written, strict=True):
            paths[number] = path or paths[number]
        scored = rationale_log_probabilities(self.model, prompts, paths, batch_size=BATCH_SIZE)
        losses = -length_normalised(scored.total, scored.tokens)
        confidence = np.ones(len(pool), dtype=np.float64)
        for number in open_questions:
            right = answer_of(paths[number], pool[number].choices) == pool[number].answer
            confidence[number] = float(right)
        return losses, confidence

    def write_rationales(
        self,
        study: Study,
        view: PoolView,
        demand: list[int],
        *,
        progress: Callable[[int, int], None],
    ) -> WrittenRationales:
        """Write paths for the samples in demand, most wanted first, within the plan's budget.

        Args: demand: how many sites want each pool sample, in pool order.
        """
        from lada_secure.models.rationales import generate_rationales

        plan: StudyPlan = study.plan
        order = np.lexsort((np.arange(len(demand)), -np.asarray(demand)))
        wanted = [int(one) for one in order if demand[one] > 0]
        chosen = wanted[: plan.paths.budget]
        lines: list[Json] = []
        wrong = dropped = 0
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = {study.pool[one].sample_id: one for one in chosen[start : start + BATCH_SIZE]}
            generated = generate_rationales(
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
        return WrittenRationales(
            payload=canonical_json(lines),
            demanded=len(wanted),
            written=len(lines),
            wrong=wrong,
            dropped=dropped,
        )


def written_rationales(raw: bytes, study: Study) -> dict[int, str]:
    """The paths of a payload that `write_rationales` made, by pool index."""
    places = {sample.sample_id: number for number, sample in enumerate(study.pool)}
    rows = parse_canonical_json(raw, max_bytes=kind_rules(Kind.PATHS).max_payload_bytes)
    return {
        places[str(row["sample_id"])]: str(row["path"])
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }
