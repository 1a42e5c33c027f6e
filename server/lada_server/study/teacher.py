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
    llm_adapters,
    view_pool,
    write_rationales,
)
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
from lada_server.study.inference_cache import ANSWERS, VIEW, InferenceCache, Look
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import Study

T = TypeVar("T")


class Teacher:
    """The LLM in one study; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that a transfer has left;
    `looks` what was computed before a restart, where it is kept.
    """

    def __init__(
        self,
        study: Study,
        reference: str,
        *,
        cache_dir: Path,
        threads: int,
        files: LlmFiles,
        looks: InferenceCache | None = None,
    ) -> None:
        self.study = study
        self._looks = looks
        self._reference = reference
        self._cache_dir = cache_dir
        self._threads = threads
        self._files = files
        self._fresh: AdapterWeights | None = None
        # What the adapters hold; None while they are being trained.
        self._version: str | None = NO_ADAPTERS

    @cached_property
    def model(self) -> LanguageModel:
        """The loaded LLM."""
        torch.set_num_threads(self._threads)
        return load_language_model(self._reference, cache_dir=self._cache_dir)

    def use(self, version: str) -> None:
        """Let the LLM be this version.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version == self._version:
            return
        fresh = self._with_adapters()
        weights = (
            fresh if version == NO_ADAPTERS else AdapterWeights(data=self._files.read(version))
        )
        load_adapters(self.model, weights)
        self._version = version

    def tune(
        self,
        version: str,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
        *,
        progress: Callable[[int, int], None],
    ) -> AdapterWeights:
        """Train the LLM of a version; it is the trained one until `use` says otherwise."""
        self._with_adapters()
        self.use(version)
        self._version = None
        return tune_on_rationales(self.model, examples, replay, settings, progress=progress)

    def keep(self, weights: AdapterWeights) -> str:
        """Make what `tune` returned a version, durably. Returns: its name."""
        self._version = self._files.keep(weights.data)
        return self._version

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        """What the LLM as it is now answers on pool samples, and how sure it is."""
        return self._remembered(
            ANSWERS,
            list(pool_indices),
            lambda: answer_pool(
                self.model,
                [self.study.pool[index] for index in pool_indices],
                batch_size=GENERATION_BATCH_SIZE,
                max_new_tokens=self.study.plan.paths.max_new_tokens,
            ),
        )

    def view_pool(self) -> PoolView:
        """What the LLM as it is now thinks of every pool sample."""
        study = self.study
        return self._remembered(
            VIEW,
            [],
            lambda: view_pool(self.model, study.plan, study.pool, study.clusters, study.embeddings),
        )

    def write(
        self, demand: Sequence[int], *, progress: Callable[[int, int], None]
    ) -> WrittenRationales:
        """What the LLM as it is now writes for the samples in demand."""
        return write_rationales(
            self.model, self.study.plan, self.study.pool, demand, progress=progress
        )

    def _remembered(self, look: Look[T], pool_indices: list[Json], compute: Callable[[], T]) -> T:
        """A look under the name of all that decides it; the LLM has none while it is trained."""
        if self._looks is None or self._version is None:
            return compute()
        about: Json = [self.study.plan.hash, self._reference, self._version, pool_indices]
        return self._looks.remembered(look, about, compute)

    def _with_adapters(self) -> AdapterWeights:
        """Attach adapters where there are none yet. Returns: the ones that change nothing."""
        if self._fresh is None:
            layers = int(self.model.model.config.num_hidden_layers)
            attach_adapters(self.model, llm_adapters(self.study.plan, layers=layers))
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
