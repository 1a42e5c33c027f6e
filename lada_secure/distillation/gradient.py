"""From examples to gradients: per-unit sums for the private stream, plain sums for the public."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from lada_secure.distillation.batching import PhysicalBatch, physical_batches, sums_of
from lada_secure.distillation.clipping import ClippedSum, IntegerGrid
from lada_secure.distillation.engine import GradientEngine
from lada_secure.distillation.examples import EncodedExample, EncodedUnit
from lada_secure.distillation.loss import LossSettings, example_losses
from lada_secure.distillation.memory_limit import is_out_of_memory, release_cached_memory
from lada_secure.distillation.scoring import PathScorer, per_token
from lada_secure.errors import ParameterError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Halves: TypeAlias = tuple[PhysicalBatch, PhysicalBatch]


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

        def leads(batch: PhysicalBatch) -> list[tuple[EncodedExample, float]]:
            with torch.no_grad():
                path, own, _ = self._scores(batch)
            return list(zip(batch.examples, (path - own).tolist(), strict=True))

        for found in self._fitting(self._sums_of(contrasted), leads, PhysicalBatch.halves_of_a_sum):
            self._reference_leads.update(found)

    def losses(self, examples: Sequence[EncodedExample]) -> Tensor:
        """Losses without gradients. Returns: (n,) float32, in the order of `examples`."""

        def score(batch: PhysicalBatch) -> Tensor:
            with torch.no_grad():
                return self._losses(batch)

        found = list(self._fitting(self._sums_of(examples), score, PhysicalBatch.halves_of_a_sum))
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

        def add(batch: PhysicalBatch) -> None:
            total.add(self.unit_gradients(batch))

        batches = physical_batches(units, physical_batch_size=self.physical_batch_size)
        for _ in self._fitting(batches, add, PhysicalBatch.halves):
            pass
        return total

    def public_gradient(self, examples: Sequence[EncodedExample], *, count: int) -> PublicGradient:
        """Exact gradient of public examples divided by the fixed `count`, not by how many came.

        Batches go through the same engine as the private stream, as one unit.
        """

        def gradient(batch: PhysicalBatch) -> tuple[list[Tensor], float]:
            self.engine.begin(1)
            loss = self._backward(batch)
            return [one[0] for one in self.engine.take()], loss

        sums: list[Tensor] | None = None
        loss = 0.0
        batches = self._sums_of(examples)
        for taken, part in self._fitting(batches, gradient, PhysicalBatch.halves_of_a_sum):
            loss += part
            sums = taken if sums is None else [a.add_(b) for a, b in zip(sums, taken, strict=True)]
        if sums is None:
            sums = [torch.zeros_like(one) for one in self.engine.parameters]
        return PublicGradient(
            gradients=tuple(one / count for one in sums), loss=loss / max(len(examples), 1)
        )

    def unit_gradients(self, batch: PhysicalBatch) -> list[Tensor]:
        """Per parameter, (units, *parameter.shape) float32: each unit's gradient, unclipped."""
        self.engine.begin(batch.units)
        self._backward(batch)
        return self.engine.take()

    def _sums_of(self, examples: Sequence[EncodedExample]) -> tuple[PhysicalBatch, ...]:
        return sums_of(examples, physical_batch_size=self.physical_batch_size)

    def _fitting(
        self,
        batches: Iterable[PhysicalBatch],
        work: Callable[[PhysicalBatch], Result],
        halve: Callable[[PhysicalBatch], Halves],
    ) -> Iterator[Result]:
        """Do the work on every batch in order; one that does not fit into memory goes in halves.

        `work` on a batch must either count as a whole or leave no trace.
        Raises: ParameterError: what cannot be halved does not fit.
        """
        waiting = list(batches)[::-1]
        while waiting:
            batch = waiting.pop()
            done: list[Result] = []
            try:
                done.append(work(batch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # After the except clause: the error's traceback holds the batch's activations.
            if not done:
                waiting.extend(reversed(self._after_out_of_memory(batch, halve)))
            yield from done

    def _backward(self, batch: PhysicalBatch) -> float:
        _, unit_of_row = batch.rows()
        with self.engine.rows(unit_of_row):
            # A sum, not a mean: an example's gradient must not depend on how many others came.
            loss = self._losses(batch).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _losses(self, batch: PhysicalBatch) -> Tensor:
        path, own, has_own = self._scores(batch)
        reference = path.new_tensor([self._reference_leads.get(one, 0.0) for one in batch.examples])
        return example_losses(path, own, has_own, reference, self._loss)

    def _scores(self, batch: PhysicalBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities per token of paths and own paths, and which examples have one."""
        examples = batch.examples
        rows, _ = batch.rows()
        scores = per_token(self._scorer(rows), rows)
        path = scores[: len(examples)]
        holders = [at for at, one in enumerate(examples) if one.own_path is not None]
        where = torch.tensor(holders, dtype=torch.int64, device=scores.device)
        own = torch.zeros_like(path).index_copy(0, where, scores[len(examples) :])
        has_own = torch.zeros_like(path, dtype=torch.bool).index_fill(0, where, True)
        return path, own, has_own

    def _after_out_of_memory(
        self, batch: PhysicalBatch, halve: Callable[[PhysicalBatch], Halves]
    ) -> Halves:
        self.engine.begin(1)
        release_cached_memory()
        halves = halve(batch)
        half = max(1, len(batch.examples) // 2)
        # Batches of this step that were packed before come here as well, without another warning.
        if half < self.physical_batch_size:
            self.physical_batch_size = half
            logger.warning(
                "out of memory with %d examples in a physical batch; going on with %d, which "
                "changes speed and no result",
                len(batch.examples),
                half,
            )
        return halves
