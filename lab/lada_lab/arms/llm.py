"""The LLM of a simulated study, by the functions that a coordinator runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.cells import Clusters
from lada_secure.arrays import BoolArray, Float32Array, FloatArray
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.errors import ParameterError
from lada_secure.method.llm_round import (
    BATCH_SIZE,
    GENERATION_BATCH_SIZE,
    PoolView,
    most_wanted,
    view_pool,
    write_rationales,
)
from lada_secure.method.llm_transfer import Decision, improve, samples_to_inquire
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.plan import MethodPlan, split_pool
from lada_secure.method.site_state import ReceivedRationale
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.evaluation import accuracy, rationale_log_probabilities
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.preflight import needed_tokens
from lada_secure.models.rationales import GREEDY, generate_rationales
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

# As the protocol has it: a row of the matrix adds up to 1 at most.
_ROW_BOUND = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LlmPaths:
    """What the LLM writes for every sample that it solves, asked for or not.

    texts: by pool index, greedy. losses: (n,) of the LLM on them, nats per token, +inf for all
    others. cpu_s: seconds of computing that it took.
    """

    texts: Mapping[int, str]
    losses: FloatArray
    cpu_s: float

    @property
    def solved(self) -> BoolArray:
        """(n,) samples that have a rationale; a choice among options may have turned out wrong."""
        written: BoolArray = np.isfinite(self.losses)
        return written


@dataclass(slots=True, kw_only=True)
class _Looks:
    """What follows from the LLM as it is; computed at first use, forgotten when it changes.

    greedy: by pool index, the rationale or None where it is wrong, and the seconds that it took.
    """

    view: PoolView | None = None
    rows: FloatArray | None = None
    accuracy: float | None = None
    answer_losses: FloatArray | None = None
    paths: LlmPaths | None = None
    written: dict[int, str] = field(default_factory=dict)
    greedy: dict[int, tuple[str | None, float]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class LabLlm:
    """One LLM with its pool. spared_s: seconds of looking and writing that others had spent."""

    plan: MethodPlan
    lm: LanguageModel
    data: BenchData
    clusters: Clusters
    embeddings: Float32Array
    spared_s: float = 0.0
    # Of one arm: every arm has an instance of its own.
    _paths_counted: bool = field(default=False, init=False)
    _written_here: set[int] = field(default_factory=set, init=False)
    _looks: _Looks = field(default_factory=_Looks)

    @classmethod
    def open(
        cls,
        plan: MethodPlan,
        lm: LanguageModel,
        data: BenchData,
        clusters: Clusters,
        embeddings: Float32Array,
        *,
        learns: bool,
    ) -> LabLlm:
        """Attach adapters, which change nothing yet, where the LLM will learn.

        Raises: ParameterError: a question that is too long for the LLM.
        """
        lm = lm.with_form(plan.form)
        needed = max(needed_tokens(lm, data.pool, written=[0] * len(data.pool)))
        if needed > lm.max_tokens:
            raise ParameterError(
                f"the pool's longest question needs {needed} tokens, at most {lm.max_tokens}"
            )
        if learns:
            part = plan.distillation if plan.uplink is None else plan.uplink
            attach_adapters(lm, adapter_settings(part, lm, seed=plan.seed))
        return cls(plan=plan, lm=lm, data=data, clusters=clusters, embeddings=embeddings)

    def forget(self) -> None:
        """The LLM has changed."""
        self._looks = _Looks()
        self._written_here.clear()

    @property
    def view(self) -> PoolView:
        """What the LLM as it is now thinks of every pool sample."""
        if self._looks.view is None:
            self._looks.view = view_pool(
                self.lm, self.plan, self.data.pool, self.clusters, self.embeddings
            )
        return self._looks.view

    @property
    def solved(self) -> BoolArray:
        """(n,) samples that the LLM's greedy rationale solves."""
        right: BoolArray = self.view.features.sum(axis=1) > 0.0
        return right

    def scores(self, utilities: FloatArray) -> FloatArray:
        """(n,) scores, from the matrix in the form that a coordinator commits to."""
        if self._looks.rows is None:
            matrix = encode_matrix(self.view.features, row_bound=_ROW_BOUND)
            blocks = [matrix.rows(block) for block in range(len(matrix.columns))]
            self._looks.rows = np.concatenate(blocks)[: len(self.data.pool)]
        found: FloatArray = self._looks.rows @ utilities
        return found

    def write(self, demand: Sequence[int]) -> list[ReceivedRationale]:
        """What all sites are sent for a round's demand."""
        if self.plan.paths.attempts == 1:
            texts = self._greedy(most_wanted(self.plan, demand))
        else:
            texts = dict(write_rationales(self.lm, self.plan, self.data.pool, demand).texts)
        self._looks.written = dict(texts)
        cells = self.view.cells
        return [
            ReceivedRationale(pool_index=index, cell=int(cells[index]), text=text)
            for index, text in texts.items()
        ]

    def losses_on(self, texts: Mapping[int, str]) -> FloatArray:
        """Of rationales by pool index, nats per token, (m,), as the LLM is now."""
        pool = self.data.pool
        return rationale_log_probabilities(
            self.lm,
            [self.lm.form.prompt(pool[at].question, pool[at].choices) for at in texts],
            list(texts.values()),
            batch_size=BATCH_SIZE,
        ).losses

    def _greedy(self, chosen: Sequence[int]) -> dict[int, str]:
        """What the LLM writes for samples, where that is right.

        One greedy attempt is a function of a sample alone, up to rounding in other company; drawn
        ones depend on what is drawn beside them. So arms that ask for the same get it again.
        """
        known = self._looks.greedy
        others = [index for index in chosen if index in known and index not in self._written_here]
        self.spared_s += sum(known[index][1] for index in others)
        self._written_here.update(chosen)
        new = [index for index in chosen if index not in known]
        started = time.process_time()
        asked = np.zeros(len(self.data.pool), dtype=np.int64)
        asked[new] = 1
        texts = write_rationales(self.lm, self.plan, self.data.pool, asked.tolist()).texts
        share = (time.process_time() - started) / max(1, len(new))
        known.update({index: (texts.get(index), share) for index in new})
        return {index: text for index in chosen if (text := known[index][0]) is not None}

    def answer_losses(self) -> FloatArray:
        """(n,) losses on the gold answers alone, nats per token."""
        if self._looks.answer_losses is None:
            self._looks.answer_losses = rationale_log_probabilities(
                self.lm,
                [self.lm.form.prompt(sample.question, sample.choices) for sample in self.data.pool],
                [
                    self.lm.form.target(sample.answer, sample.choices, None)
                    for sample in self.data.pool
                ],
                batch_size=BATCH_SIZE,
            ).losses
        return self._looks.answer_losses

    def paths(self) -> LlmPaths:
        """What it would write for the whole pool, for rules that are not blind.

        What another arm had it write already is counted as spared, once.
        """
        if self._looks.paths is None:
            self._looks.paths = self._written_paths()
        elif not self._paths_counted:
            self.spared_s += self._looks.paths.cpu_s
        self._paths_counted = True
        return self._looks.paths

    def _written_paths(self) -> LlmPaths:
        solved = [int(at) for at in np.flatnonzero(self.solved)]
        started, pool = time.process_time(), self.data.pool
        indices = {pool[at].sample_id: at for at in solved}
        written = generate_rationales(
            self.lm,
            [pool[at] for at in solved],
            max_new_tokens=self.plan.paths.max_new_tokens,
            sampling=GREEDY,
            batch_size=GENERATION_BATCH_SIZE,
        )
        texts = {indices[one.sample_id]: one.path for one in written.paths}
        losses: FloatArray = np.full(len(pool), np.inf)
        losses[list(texts)] = self.losses_on(texts)
        return LlmPaths(texts=texts, losses=losses, cpu_s=time.process_time() - started)

    def accuracy(self) -> float:
        """Share of right answers on all sites' held-out records in the public's manner.

        Marked questions mean another thing to the public than to the house; they are left out.
        """
        if self._looks.accuracy is None:
            mark = self.data.mark
            self._looks.accuracy = accuracy(
                self.lm,
                [
                    record
                    for site in self.data.sites
                    for record in site.held_out
                    if mark is None or not record.question.startswith(mark)
                ],
                batch_size=GENERATION_BATCH_SIZE,
                max_new_tokens=self.plan.paths.max_new_tokens,
            )
        return self._looks.accuracy

    # SLM-to-LLM transfer

    def inquire(self, opened: Sequence[int]) -> list[int]:
        """Pool indices to ask the sites about."""
        candidates = split_pool(self.plan).candidates
        return samples_to_inquire(self.plan, opened, self.answer(candidates))

    def improve(
        self, received: Mapping[str, Mapping[int, str]], *, seed: int
    ) -> Decision[AdapterWeights]:
        """Learn from the sites, or stay."""
        kept = adapter_weights(self.lm)
        written = self._looks.written
        decision = improve(
            _Tunable(self, kept), self.plan, self.data.pool, received, written, seed=seed
        )
        load_adapters(self.lm, decision.weights or kept)
        if decision.weights is not None:
            self.forget()
        return decision

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        """What the LLM answers as it is now."""
        return answer_pool(
            self.lm,
            [self.data.pool[index] for index in pool_indices],
            batch_size=GENERATION_BATCH_SIZE,
            max_new_tokens=self.plan.paths.max_new_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Tunable:
    """See `TunableLlm`."""

    llm: LabLlm
    before: AdapterWeights

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        load_adapters(self.llm.lm, self.before)
        return self.llm.answer(pool_indices)

    def answer_tuned(self, pool_indices: Sequence[int]) -> Answers:
        return self.llm.answer(pool_indices)

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> AdapterWeights:
        load_adapters(self.llm.lm, self.before)
        return tune_on_rationales(self.llm.lm, examples, replay, settings)
