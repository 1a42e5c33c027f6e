"""The coordinator's LLM in one study: loaded once, in one of its versions, with what it remembers.

What it computes, `lada_secure.method.llm_round` says; here are versions, caches and payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS, NO_ADAPTERS
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
from lada_secure.models.calling_settings import Calling
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_language_model
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_server.study.inference_cache import InferenceCache
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import Study


class Teacher:
    """The LLM; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that a transfer has left;
    `looks` what was computed before a restart, where it is kept.
    """

    def __init__(
        self,
        reference: str,
        *,
        cache_dir: Path,
        threads: int,
        files: LlmFiles,
        calling: Calling | None = None,
        looks: InferenceCache | None = None,
    ) -> None:
        self._looks = looks
        self._reference = reference
        self._cache_dir = cache_dir
        self._threads = threads
        self._calling = calling or Calling()
        self._calling_sha256 = self._calling.sha256
        self._files = files
        self._model: LanguageModel | None = None
        self._fresh: AdapterWeights | None = None
        # What the adapters hold; None while they are being trained.
        self._version: str | None = NO_ADAPTERS

    @property
    def model(self) -> LanguageModel:
        """The loaded LLM."""
        if self._model is None:
            torch.set_num_threads(self._threads)
            self._model = load_language_model(
                self._reference, cache_dir=self._cache_dir, calling=self._calling
            )
        return self._model

    def _asked(self, study: Study) -> LanguageModel:
        """The LLM in the study's answer form."""
        return self.model.with_form(study.plan.form)

    def use(self, study: Study, version: str) -> None:
        """Let the LLM be this version.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version == self._version:
            return
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
        self._with_adapters(study)
        self.use(study, version)
        self._version = None
        return tune_on_rationales(self.model, examples, replay, settings, progress=progress)

    def keep(self, weights: AdapterWeights) -> str:
        """Make what `tune` returned a version, durably. Returns: its name."""
        self._version = self._files.keep(weights.data)
        return self._version

    def answer(self, study: Study, pool_indices: Sequence[int]) -> Answers:
        """What the LLM as it is now answers on pool samples, and how sure it is."""
        about = self._about(study, list(pool_indices))
        kept = None if self._looks is None or about is None else self._looks.answers(about)
        if kept is not None:
            return kept
        answers = answer_pool(
            self._asked(study),
            [study.pool[index] for index in pool_indices],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=study.plan.paths.max_new_tokens,
        )
        if self._looks is not None and about is not None:
            self._looks.keep_answers(about, answers)
        return answers

    def view_pool(self, study: Study) -> PoolView:
        """What the LLM as it is now thinks of every pool sample."""
        about = self._about(study, [])
        kept = None if self._looks is None or about is None else self._looks.view(about)
        if kept is not None:
            return kept
        view = view_pool(
            self._asked(study), study.plan, study.pool, study.clusters, study.embeddings
        )
        if self._looks is not None and about is not None:
            self._looks.keep_view(about, view)
        return view

    def write(
        self, study: Study, demand: Sequence[int], *, progress: Callable[[int, int], None]
    ) -> WrittenRationales:
        """What the LLM as it is now writes for the samples in demand."""
        lm = self._asked(study)
        written = write_rationales(lm, study.plan, study.pool, demand, progress=progress)
        return _short_enough(written)

    def _about(self, study: Study, pool_indices: list[Json]) -> Json | None:
        """Names a look by all that decides it; None while the LLM is none of its versions."""
        if self._version is None:
            return None
        called = self._calling_sha256
        return [study.plan.hash, self._reference, called, self._version, pool_indices]

    def _with_adapters(self, study: Study) -> AdapterWeights:
        """Attach adapters where there are none yet. Returns: the ones that change nothing."""
        if self._fresh is None:
            layers = int(self.model.model.config.num_hidden_layers)
            attach_adapters(self.model, llm_adapters(study.plan, layers=layers))
            self._fresh = adapter_weights(self.model)
        return self._fresh


def _short_enough(written: WrittenRationales) -> WrittenRationales:
    """Without texts that sites would refuse: one of them would end the round for everybody."""
    texts = {
        at: text for at, text in written.texts.items() if len(text) <= MAX_RATIONALE_CHARACTERS
    }
    lost = len(written.texts) - len(texts)
    return replace(written, texts=texts, dropped=written.dropped + lost)


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
