"""FedMKT and FedCoLLM: distillation by top-k logits along rationales, in both directions.

Both send top-k logits along texts of the public pool, aligned to the tokens of whoever learns. The
texts are the LLM's checked rationales, because a pool of bare answers has none. Written from the
papers:

- FedMKT (Fan et al. 2024, arXiv 2406.02224): one student per site. *Dual minimum cross-entropy*: a
  site learns from the samples on which the LLM's loss is below its own, the LLM from those on which
  the best site's loss is below the LLM's.
- FedCoLLM (Fan et al. 2024, arXiv 2411.11707): one SLM for all sites, whose adapters are the mean
  of the sites' (`adapter_sums`); it and the LLM learn from each other on all samples. The paper
  adds plain updates up; here each site's training is DP-SGD and paid for in its ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lada_lab.baselines.logits import TaughtRow, logit_loss, taught_rows
from lada_lab.baselines.token_alignment import TokenAlignment
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import rationale_log_probabilities
from lada_secure.models.examples import PublicOrder
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import train_adapters


def _where_the_teacher_is_better(teacher: FloatArray, learner: FloatArray) -> BoolArray:
    better: BoolArray = teacher < learner
    return better


def _everything(teacher: FloatArray, learner: FloatArray) -> BoolArray:
    return np.ones(np.broadcast(teacher, learner).shape, dtype=np.bool_)


# Which samples are worth sending, by the losses of who would teach and of who would learn, (n,).
SELECTIONS: Final[Mapping[str, Callable[[FloatArray, FloatArray], BoolArray]]] = {
    "fedmkt": _where_the_teacher_is_better,
    "fedcollm": _everything,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitSettings:
    """k: tokens sent per place. weight: of the divergence beside the cross-entropy, in [0, 1]."""

    k: int = 8
    weight: float = 0.5
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: a value out of range."""
        if self.k < 1 or self.batch_size < 1 or not 0.0 <= self.weight <= 1.0:
            raise ParameterError(
                "logit baseline: expected k and batch_size of at least 1 and a weight in [0, 1], "
                f"got {self.k}, {self.batch_size} and {self.weight}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTraining:
    """steps, batch_size: >= 1. learning_rate: AdamW's, > 0, falls to 0. seed: of the order."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: a value out of range."""
        if self.steps < 1 or self.batch_size < 1 or not 0.0 < self.learning_rate < float("inf"):
            raise ParameterError(
                "baseline training: expected steps and batch_size of at least 1 and a "
                f"learning_rate above 0, got {self.steps}, {self.batch_size} and "
                f"{self.learning_rate}"
            )


class LogitBaseline:
    """One of the baselines with one LLM; serves all sites of a study."""

    def __init__(
        self,
        name: str,
        pool: Sequence[PoolSample],
        *,
        llm: LanguageModel,
        slm: LanguageModel,
        settings: LogitSettings | None = None,
    ) -> None:
        """Compare the tokenizers; all sites' SLMs have that of `slm`.

        Raises: ParameterError: an unknown name, or tokenizers without any common token.
        """
        if name not in SELECTIONS:
            raise ParameterError(f"baseline: expected one of {', '.join(SELECTIONS)}, got {name}")
        self.name = name
        self._select = SELECTIONS[name]
        self._pool = pool
        self._llm = llm
        self._settings = settings or LogitSettings()
        self._downwards = TokenAlignment(llm, slm)
        self._upwards = TokenAlignment(slm, llm)

    def losses(self, lm: LanguageModel, paths: Mapping[int, str]) -> FloatArray:
        """Cross-entropies of paths by pool index, (n,) nats per token of the model's own, >= 0."""
        return rationale_log_probabilities(
            lm, self._prompts(paths), list(paths.values()), batch_size=self._settings.batch_size
        ).losses

    def teach(
        self, slm: LanguageModel, paths: Mapping[int, str], training: BaselineTraining
    ) -> tuple[int, ...]:
        """Train a student on the LLM's logits along the samples that are worth sending.

        The selection is made anew every round among everything so far, because both models have
        changed.

        Args: slm: with adapters, trained in place. paths: the LLM's checked rationales by pool
            index.
        Returns: pool indices that were sent.
        Raises: ParameterError: a sample that the pool does not have, or a model without adapters.
        """
        unknown = [index for index in paths if not 0 <= index < len(self._pool)]
        if unknown:
            raise ParameterError(f"baseline {self.name}: the pool has no sample {unknown[0]}")
        if not paths:
            return ()
        chosen = self._select(self.losses(self._llm, paths), self.losses(slm, paths))
        sent = {index: paths[index] for index, send in zip(paths, chosen, strict=True) if send}
        self._train(slm, self._taught(self._llm, slm, self._downwards, sent), training)
        return tuple(sent)

    def teach_llm(
        self,
        students: Sequence[Callable[[], LanguageModel]],
        paths: Mapping[int, str],
        training: BaselineTraining,
    ) -> int:
        """The other direction: train the LLM's adapters on the students' logits.

        Of each sample, the student with the smallest loss teaches, if that is worth sending.

        Args: students: each makes one student ready and returns it; they may share one model, so
            none is used after the next was called. paths: texts that all students were sent.
        Returns: how many samples the LLM learned from.
        """
        if not students or not paths:
            return 0
        by_student = np.stack([self.losses(ready(), paths) for ready in students])
        chosen = self._select(by_student.min(axis=0), self.losses(self._llm, paths))
        best = np.where(chosen, by_student.argmin(axis=0), -1)
        taught: list[TaughtRow] = []
        for number, ready in enumerate(students):
            told = {
                index: paths[index] for index, by in zip(paths, best, strict=True) if by == number
            }
            if told:
                taught += self._taught(ready(), self._llm, self._upwards, told)
        self._train(self._llm, taught, training)
        return len(taught)

    def _taught(
        self,
        teacher: LanguageModel,
        learner: LanguageModel,
        alignment: TokenAlignment,
        paths: Mapping[int, str],
    ) -> list[TaughtRow]:
        return taught_rows(
            teacher,
            learner,
            list(zip(self._prompts(paths), paths.values(), strict=True)),
            alignment,
            k=self._settings.k,
            batch_size=self._settings.batch_size,
        )

    def _train(
        self, lm: LanguageModel, taught: Sequence[TaughtRow], training: BaselineTraining
    ) -> None:
        if not taught:
            return
        if not any("lora_" in name for name, _ in lm.model.named_parameters()):
            raise ParameterError(
                f"baseline {self.name}: model {lm.name!r} has no adapters to train"
            )
        order = PublicOrder(count=len(taught), batch_size=training.batch_size, seed=training.seed)
        train_adapters(
            lm,
            lambda step: logit_loss(
                lm, [taught[at] for at in order.batch(step)], weight=self._settings.weight
            ),
            steps=training.steps,
            learning_rate=training.learning_rate,
        )

    def _prompts(self, paths: Mapping[int, str]) -> list[str]:
        samples = [self._pool[index] for index in paths]
        return [self._llm.form.prompt(sample.question, sample.choices) for sample in samples]
