"""From examples to gradients: per-unit sums for the private stream, plain sums for the public."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lada_secure.distillation.batching import PhysicalBatch, physical_batches
from lada_secure.distillation.clipping import ClippedSum, IntegerGrid
from lada_secure.distillation.engine import GradientEngine
from lada_secure.distillation.examples import EncodedExample, EncodedUnit
from lada_secure.distillation.loss import LossSettings, example_losses
from lada_secure.distillation.scoring import PathScorer, per_token
from lada_secure.errors import ParameterError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicGradient:
    """Sum of the gradients of public examples over a fixed count, and their mean loss."""

    gradients: tuple[Tensor, ...]
    loss: float


class GradientSource:
    """Gradients of a model's trainable parameters under one loss, by one engine."""

    def __init__(
        self,
        *,
        engine: GradientEngine,
        scorer: PathScorer,
        loss: LossSettings,
        physical_batch_size: int,
    ) -> None:
        if physical_batch_size < 1:
            raise ParameterError(
                f"physical_batch_size: expected at least 1, got {physical_batch_size}"
            )
        self.engine = engine
        self.physical_batch_size = physical_batch_size
        self._scorer = scorer
        self._loss = loss
        self._reference_leads: dict[EncodedExample, float] = {}

    def remember_reference(self, examples: Sequence[EncodedExample]) -> None:
        """Take the model as it is now as the reference of "dpo" for these examples.

        Each value is a function of one example and the model, so it couples nothing.
        """
        contrasted = [one for one in examples if one.own_path is not None]
        if self._loss.contrastive_form != "dpo" or self._loss.contrastive_weight == 0.0:
            return
        for first in range(0, len(contrasted), self.physical_batch_size):
            part = contrasted[first : first + self.physical_batch_size]
            with torch.no_grad():
                path, own, _ = self._scores(part, ())
            for example, lead in zip(part, (path - own).tolist(), strict=True):
                self._reference_leads[example] = lead

    def losses(self, examples: Sequence[EncodedExample]) -> Tensor:
        """Losses without gradients. Returns: (n,) float32."""
        found: list[Tensor] = []
        for first in range(0, len(examples), self.physical_batch_size):
            part = examples[first : first + self.physical_batch_size]
            with torch.no_grad():
                found.append(self._losses(part, ()))
        return torch.cat(found) if found else torch.zeros(0)

    def clipped_sum(
        self,
        units: Sequence[EncodedUnit],
        *,
        l2_clip_norm: float,
        grid: IntegerGrid | None,
    ) -> ClippedSum:
        """Sum of the units' clipped gradients, before noise: never to leave the step.

        An empty batch runs no forward pass and is an ordinary sum of nothing.
        """
        total = ClippedSum(self.engine.parameters, l2_clip_norm=l2_clip_norm, grid=grid)
        batches = list(physical_batches(units, physical_batch_size=self.physical_batch_size))
        while batches:
            batch = batches.pop()
            try:
                gradients = self._unit_gradients(batch)
            except torch.OutOfMemoryError:
                batches.extend(self._after_out_of_memory(batch))
                continue
            total.add(gradients)
        return total

    def public_gradient(self, examples: Sequence[EncodedExample], *, count: int) -> PublicGradient:
        """Exact gradient of public examples divided by the fixed `count`, not by how many came."""
        sums: list[Tensor] | None = None
        loss = 0.0
        batches = [
            PhysicalBatch(
                examples=tuple(examples[first : first + self.physical_batch_size]),
                unit_of_example=(0,) * len(examples[first : first + self.physical_batch_size]),
                units=1,
            )
            for first in range(0, len(examples), self.physical_batch_size)
        ]
        for batch in batches:
            self.engine.begin(1)
            loss += self._backward(batch)
            taken = [one[0] for one in self.engine.take()]
            sums = taken if sums is None else [a + b for a, b in zip(sums, taken, strict=True)]
        if sums is None:
            sums = [torch.zeros_like(one) for one in self.engine.parameters]
        return PublicGradient(
            gradients=tuple(one / count for one in sums), loss=loss / max(len(examples), 1)
        )

    def _unit_gradients(self, batch: PhysicalBatch) -> list[Tensor]:
        self.engine.begin(batch.units)
        self._backward(batch)
        return self.engine.take()

    def _backward(self, batch: PhysicalBatch) -> float:
        _, unit_of_row = batch.rows()
        with self.engine.rows(unit_of_row):
            # A sum, not a mean: an example's gradient must not depend on how many others came.
            loss = self._losses(batch.examples, batch.unit_of_example).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _losses(self, examples: Sequence[EncodedExample], unit_of: Sequence[int]) -> Tensor:
        path, own, has_own = self._scores(examples, unit_of)
        reference = path.new_tensor([self._reference_leads.get(one, 0.0) for one in examples])
        return example_losses(path, own, has_own, reference, self._loss)

    def _scores(
        self, examples: Sequence[EncodedExample], unit_of: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities per token of paths and own paths, and which examples have one."""
        batch = PhysicalBatch(
            examples=tuple(examples),
            unit_of_example=tuple(unit_of) or (0,) * len(examples),
            units=1,
        )
        rows, _ = batch.rows()
        scores = per_token(self._scorer(rows), rows)
        path = scores[: len(examples)]
        holders = [at for at, one in enumerate(examples) if one.own_path is not None]
        where = torch.tensor(holders, dtype=torch.int64, device=scores.device)
        own = torch.zeros_like(path).index_copy(0, where, scores[len(examples) :])
        has_own = torch.zeros_like(path, dtype=torch.bool).index_fill(0, where, True)
        return path, own, has_own

    def _after_out_of_memory(self, batch: PhysicalBatch) -> tuple[PhysicalBatch, PhysicalBatch]:
        halves = batch.halves()
        self.physical_batch_size = max(1, len(batch.examples) // 2)
        self.engine.begin(1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory with %d examples in a physical batch; going on with %d",
            len(batch.examples),
            self.physical_batch_size,
        )
        return halves
