"""What FedMKT and FedCoLLM have in common: top-k logits along paths, in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lada_lab.baselines.baseline import DualLosses, Payload, check_pool, exp_loss_reward
from lada_lab.baselines.logits import logit_loss, taught_rows
from lada_lab.baselines.rounds import BaselineTraining, train_baseline
from lada_lab.baselines.token_alignment import TokenAlignment
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.data.prompts import prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import rationale_log_probabilities
from lada_secure.models.loading import LanguageModel


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
                "logit host: expected k and batch_size of at least 1 and a weight in [0, 1], got "
                f"{self.k}, {self.batch_size} and {self.weight}"
            )


class LogitBaseline(ABC):
    """A `Host` that sends top-k logits of paths; subclasses say which are worth sending."""

    def __init__(
        self,
        pool: Sequence[PoolSample],
        *,
        llm: LanguageModel,
        slm: LanguageModel,
        settings: LogitSettings | None = None,
    ) -> None:
        """Compare the tokenizers; all sites' SLMs have that of `slm`.

        Raises: ParameterError: a pool that `check_pool` refuses, or tokenizers without any
        common token.
        """
        self._pool = check_pool(pool)
        self._llm = llm
        self._settings = settings or LogitSettings()
        self._downwards = TokenAlignment(llm, slm)
        self._upwards = TokenAlignment(slm, llm)

    @property
    @abstractmethod
    def name(self) -> str:
        """See `Host.name`."""

    @abstractmethod
    def worth_sending(self, teacher: FloatArray, learner: FloatArray) -> BoolArray:
        """Which samples to send, by the losses of who would teach and of who would learn, (n,)."""

    @property
    def pool(self) -> Sequence[PoolSample]:
        """See `Host.pool`."""
        return self._pool

    def losses(self, slm: LanguageModel, paths: Mapping[int, str]) -> DualLosses:
        """See `Host.losses`. Raises: ParameterError: a path longer than either model takes."""
        return DualLosses(
            slm=self._losses(slm, paths),
            llm=self._losses(self._llm, paths),
        )

    def payload(
        self, slm: LanguageModel, paths: Mapping[int, str], losses: DualLosses
    ) -> tuple[Payload, ...]:
        """See `Host.payload`: the LLM's top-k logits, in the SLM's tokens."""
        chosen = self.worth_sending(losses.llm, losses.slm)
        pool_indices = [pool_index for pool_index, send in zip(paths, chosen, strict=True) if send]
        return self._sent(
            self._llm, slm, self._downwards, {one: paths[one] for one in pool_indices}
        )

    def loss(self, learner: LanguageModel, batch: Sequence[Payload]) -> Tensor:
        """See `Host.loss`."""
        return logit_loss(
            learner,
            [one.row for one in batch],
            [one.top for one in batch],
            weight=self._settings.weight,
        )

    def reward(self, before: DualLosses, after: DualLosses) -> FloatArray:
        """See `Host.reward`."""
        return exp_loss_reward(before, after)

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
        by_student = np.stack([self._losses(ready(), paths) for ready in students])
        best = by_student.argmin(axis=0)
        chosen = self.worth_sending(by_student.min(axis=0), self._losses(self._llm, paths))
        payloads: list[Payload] = []
        for number, ready in enumerate(students):
            told = {
                pool_index: path
                for (pool_index, path), send, whose in zip(paths.items(), chosen, best, strict=True)
                if send and whose == number
            }
            if told:
                payloads += self._sent(ready(), self._llm, self._upwards, told)
        train_baseline(self, self._llm, payloads, training)
        return len(payloads)

    def _sent(
        self,
        teacher: LanguageModel,
        learner: LanguageModel,
        alignment: TokenAlignment,
        paths: Mapping[int, str],
    ) -> tuple[Payload, ...]:
        rows = taught_rows(
            teacher,
            learner,
            [(self._prompt(pool_index), path) for pool_index, path in paths.items()],
            alignment,
            k=self._settings.k,
            batch_size=self._settings.batch_size,
        )
        return tuple(
            Payload(pool_index=pool_index, row=row, top=top)
            for pool_index, (row, top) in zip(paths, rows, strict=True)
        )

    def _losses(self, lm: LanguageModel, paths: Mapping[int, str]) -> FloatArray:
        return rationale_log_probabilities(
            lm,
            [self._prompt(pool_index) for pool_index in paths],
            list(paths.values()),
            batch_size=self._settings.batch_size,
        ).losses

    def _prompt(self, pool_index: int) -> str:
        sample = self._pool[pool_index]
        return prompt_of(sample.question, sample.choices)
