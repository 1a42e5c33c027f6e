"""The coordinator's LLM in one study: loaded once, in one of its versions, with what it remembers.

What it computes, `lada_secure.method.llm_round` says; here are versions, caches and payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS
from lada_secure.arrays import IntArray
from lada_secure.canonical import Json, canonical_json, parse_canonical_json
from lada_secure.method.llm_round import (
    GENERATION_BATCH_SIZE,
    PoolView,
    WrittenRationales,
    view_pool,
    write_rationales,
)
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.plan import transfer_of
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_language_model
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_server.study.llm_files import ANSWERS, VIEW, InferenceCache, LlmFiles, Look
from lada_server.study.proposal import Study

T = TypeVar("T")


class Teacher:
    """The LLM in one study; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that a transfer has left;
    `looks` what was computed before a restart, where it is kept. `progress` is told how much is
    done of how much while it writes or trains.
    """

    def __init__(
        self,
        study: Study,
        reference: str,
        *,
        cache_dir: Path,
        threads: int,
        files: LlmFiles,
        progress: Callable[[int, int], None],
        looks: InferenceCache | None = None,
    ) -> None:
        self.study = study
        self._looks = looks
        self._reference = reference
        self._cache_dir = cache_dir
        self._threads = threads
        self._files = files
        self._progress = progress
        self._fresh: AdapterWeights | None = None
        self._version = NO_ADAPTERS
        # What the adapters hold; None once they are trained further than any version.
        self._held: str | None = NO_ADAPTERS

    @cached_property
    def model(self) -> LanguageModel:
        """The loaded LLM."""
        torch.set_num_threads(self._threads)
        return load_language_model(self._reference, cache_dir=self._cache_dir)

    def use(self, version: str) -> None:
        """Let the LLM be this version, which `tune` will start from.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version != self._held:
            weights = self._with_adapters()
            if version != NO_ADAPTERS:
                weights = AdapterWeights(data=self._files.read(version))
            load_adapters(self.model, weights)
        self._version = self._held = version

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> AdapterWeights:
        """Train the LLM of the version in use, until `use` or `keep` says what it then is."""
        self._with_adapters()
        self.use(self._version)
        self._held = None
        return tune_on_rationales(self.model, examples, replay, settings, progress=self._progress)

    def keep(self, weights: AdapterWeights) -> str:
        """Make what `tune` returned the version in use, durably. Returns: its name."""
        self._version = self._held = self._files.keep(weights.data)
        return self._version

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        """What the LLM of the version in use answers on pool samples, and how sure it is."""
        self.use(self._version)
        return self._remembered(
            ANSWERS, list(pool_indices), lambda: self.answer_tuned(pool_indices)
        )

    def answer_tuned(self, pool_indices: Sequence[int]) -> Answers:
        """What the LLM answers as `tune` left it."""
        return answer_pool(
            self.model,
            [self.study.pool[index] for index in pool_indices],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=self.study.plan.paths.max_new_tokens,
        )

    def view_pool(self) -> PoolView:
        """What the LLM of the version in use thinks of every pool sample."""
        study = self.study
        self.use(self._version)
        return self._remembered(
            VIEW,
            [],
            lambda: view_pool(self.model, study.plan, study.pool, study.clusters, study.embeddings),
        )

    def write(self, demand: Sequence[int]) -> WrittenRationales:
        """What the LLM of the version in use writes for the samples in demand."""
        study = self.study
        self.use(self._version)
        return write_rationales(self.model, study.plan, study.pool, demand, progress=self._progress)

    def _remembered(self, look: Look[T], pool_indices: list[Json], compute: Callable[[], T]) -> T:
        """A look of the version in use, under the name of all that decides it."""
        if self._looks is None:
            return compute()
        about: Json = [self.study.plan.hash, self._reference, self._version, pool_indices]
        return self._looks.remembered(look, about, compute)

    def _with_adapters(self) -> AdapterWeights:
        """Attach adapters where there are none yet. Returns: the ones that change nothing."""
        if self._fresh is None:
            plan = self.study.plan
            settings = adapter_settings(transfer_of(plan), self.model, seed=plan.seed)
            attach_adapters(self.model, settings)
            self._fresh = adapter_weights(self.model)
        return self._fresh


def rationales_payload(study: Study, texts: Mapping[int, str], cells: IntArray) -> bytes:
    """The payload of `paths`.

    Args: texts: by pool index, in the order of writing. cells: (n,) of the pool.
    """
    return canonical_json(
        [
            {"sample_id": study.pool[index].sample_id, "path": text, "cell": int(cells[index])}
            for index, text in texts.items()
        ]
    )


def parse_rationales(raw: bytes, study: Study) -> dict[int, str]:
    """The rationales of a payload that `rationales_payload` made, by pool index."""
    indices = {sample.sample_id: index for index, sample in enumerate(study.pool)}
    rows = parse_canonical_json(raw, max_bytes=Kind.PATHS.rules.max_payload_bytes)
    return {
        indices[str(row["sample_id"])]: str(row["path"])
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }
