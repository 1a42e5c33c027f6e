"""The coordinator's LLM in one study: in one of its versions, with what it remembers.

What it computes, `lada_secure.method.llm_round` says; here are versions, caches and payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS, NO_ADAPTERS
from lada_secure.arrays import IntArray
from lada_secure.canonical import Json, canonical_json, parse_canonical_json
from lada_secure.data.records import PoolSample
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
from lada_secure.models.preflight import needed_tokens
from lada_secure.models.text_model import TextModel
from lada_secure.models.tuning import TuningSettings
from lada_server.study.llm_files import ANSWERS, VIEW, InferenceCache, LlmFiles, Look
from lada_server.study.proposal import Study

T = TypeVar("T")


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

    def check_memory(self, plan: MethodPlan, pool: Sequence[PoolSample]) -> None:
        """Raises: ParameterError: its weights will not fit into this machine; none was loaded."""
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
    """The LLM in one study; everything here is computed on public samples only.

    It starts without adapters. `files` holds those of every version that a transfer has left;
    `looks` what was computed before a restart, where it is kept. `progress` is told how much is
    done of how much while it writes or trains.
    """

    def __init__(
        self,
        study: Study,
        llm: CoordinatorLlm,
        *,
        files: LlmFiles,
        progress: Callable[[int, int], None],
        looks: InferenceCache | None = None,
    ) -> None:
        self.study = study
        self._looks = looks
        self._llm = llm
        self._files = files
        self._progress = progress
        llm.watch(progress)
        self._version = NO_ADAPTERS
        # What the adapters hold; None once they are trained further than any version.
        self._held: str | None = NO_ADAPTERS

    @property
    def model(self) -> TextModel:
        """The LLM as it is now, asked in the study's form."""
        return self._llm.model.with_form(self.study.plan.form)

    def check_memory(self) -> None:
        """Raises: ParameterError: the LLM will not fit into memory; nothing was loaded."""
        self._llm.check_memory(self.study.plan, self.study.pool)

    def check_abilities(self) -> None:
        """Try what the study will need of the LLM besides its model.

        Raises: ParameterError: it does not take the longest sample, or cannot learn from sites.
        """
        plan, pool = self.study.plan, self.study.pool
        written = [plan.paths.max_new_tokens] * len(pool)
        self._llm.check_length(max(needed_tokens(self.model, pool, written=written)))
        if plan.uplink is not None:
            self._llm.check_transfer(plan)

    def use(self, version: str) -> None:
        """Let the LLM be this version, which `tune` will start from.

        Raises: TransportError: its adapters are missing or damaged.
        """
        if version != self._held:
            weights = None
            if version != NO_ADAPTERS:
                weights = AdapterWeights(data=self._files.read(version))
            self._llm.become(self.study.plan, weights)
        self._version = self._held = version

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> AdapterWeights:
        """Train the LLM of the version in use, until `use` or `keep` says what it then is."""
        self.use(self._version)
        self._held = None
        return self._llm.tune(self.study.plan, examples, replay, settings, progress=self._progress)

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
        """What the LLM of the version in use writes for the samples in demand.

        Texts that sites would refuse are dropped: one of them would end the round for everybody.
        """
        study = self.study
        self.use(self._version)
        written = write_rationales(
            self.model, study.plan, study.pool, demand, progress=self._progress
        )
        texts = {
            at: text for at, text in written.texts.items() if len(text) <= MAX_RATIONALE_CHARACTERS
        }
        lost = len(written.texts) - len(texts)
        return replace(written, texts=texts, dropped=written.dropped + lost)

    def _remembered(self, look: Look[T], pool_indices: list[Json], compute: Callable[[], T]) -> T:
        """A look of the version in use, under the name of all that decides it."""
        if self._looks is None:
            return compute()
        about: Json = [self.study.plan.hash, self._llm.reference, self._version, pool_indices]
        return self._looks.remembered(look, about, compute)


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
