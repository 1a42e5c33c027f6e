"""The coordinator's LLM in one study: in one of its versions, with what it remembers.

What it computes, `lada_secure.method.llm_round` says; here are versions, caches and payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

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
from lada_secure.method.plan import MethodPlan
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import TextModel
from lada_secure.models.tuning import TuningSettings
from lada_server.study.inference_cache import InferenceCache
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import Study


class CoordinatorLlm(Protocol):
    """The LLM's weights, here or behind a server, as they are or with adapters."""

    @property
    def reference(self) -> str:
        """Names the LLM in what is remembered of it."""
        ...

    @property
    def model(self) -> TextModel:
        """The LLM as it is now; opened at first use."""
        ...

    def check_length(self, tokens: int) -> None:
        """Raises: ParameterError: it does not take so many tokens at once."""
        ...

    def check_transfer(self, plan: MethodPlan) -> None:
        """Raises: ParameterError: it cannot learn from sites as the plan says."""
        ...

    def become(self, plan: MethodPlan, weights: AdapterWeights | None) -> None:
        """Take these adapters, or none."""
        ...

    def tune(
        self,
        plan: MethodPlan,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
        *,
        progress: Callable[[int, int], None],
    ) -> AdapterWeights:
        """Train from what it is now; afterwards it is what was trained."""
        ...

    def watch(self, progress: Callable[[int, int], None]) -> None:
        """Tell how far long work is, (done, all), from now on."""
        ...


class Teacher:
    """The LLM; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that a transfer has left;
    `looks` what was computed before a restart, where it is kept.
    """

    def __init__(
        self,
        llm: CoordinatorLlm,
        *,
        files: LlmFiles,
        looks: InferenceCache | None = None,
    ) -> None:
        self._llm = llm
        self._looks = looks
        self._files = files
        # What the adapters hold; None while they are being trained.
        self._version: str | None = NO_ADAPTERS

    @property
    def model(self) -> TextModel:
        """The LLM as it is now."""
        return self._llm.model

    def check_length(self, tokens: int) -> None:
        """Raises: ParameterError: the LLM does not take so many tokens at once."""
        self._llm.check_length(tokens)

    def check_transfer(self, study: Study) -> None:
        """Raises: ParameterError: the LLM cannot learn from sites as the plan says."""
        self._llm.check_transfer(study.plan)

    def use(self, study: Study, version: str) -> None:
        """Let the LLM be this version.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version == self._version:
            return
        weights = None
        if version != NO_ADAPTERS:
            weights = AdapterWeights(data=self._files.read(version))
        self._llm.become(study.plan, weights)
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
        self.use(study, version)
        self._version = None
        return self._llm.tune(study.plan, examples, replay, settings, progress=progress)

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
            self.model,
            [study.pool[index] for index in pool_indices],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=study.plan.paths.max_new_tokens,
        )
        if self._looks is not None and about is not None:
            self._looks.keep_answers(about, answers)
        return answers

    def view_pool(
        self, study: Study, *, progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> PoolView:
        """What the LLM as it is now thinks of every pool sample."""
        about = self._about(study, [])
        kept = None if self._looks is None or about is None else self._looks.view(about)
        if kept is not None:
            return kept
        self._llm.watch(progress)
        view = view_pool(self.model, study.plan, study.pool, study.clusters, study.embeddings)
        if self._looks is not None and about is not None:
            self._looks.keep_view(about, view)
        return view

    def write(
        self, study: Study, demand: Sequence[int], *, progress: Callable[[int, int], None]
    ) -> WrittenRationales:
        """What the LLM as it is now writes for the samples in demand."""
        return write_rationales(self.model, study.plan, study.pool, demand, progress=progress)

    def _about(self, study: Study, pool_indices: list[Json]) -> Json | None:
        """Names a look by all that decides it; None while the LLM is none of its versions."""
        if self._version is None:
            return None
        return [study.plan.hash, self._llm.reference, self._version, pool_indices]


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
