"""From examples to gradients: per-unit sums for the private stream, plain sums for the public."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from lada_secure.dpsgd.batching import (
    PhysicalBatch,
    one_sum,
    physical_batches,
    single_units,
    sums_of,
)
from lada_secure.dpsgd.clipping import ClippedSum, IntegerGrid
from lada_secure.dpsgd.engine import GradientEngine
from lada_secure.errors import ParameterError
from lada_secure.models.examples import EncodedExample, EncodedUnit
from lada_secure.models.loss import LossSettings, example_losses
from lada_secure.models.memory_limit import is_out_of_memory, release_cached_memory
from lada_secure.models.rationale_scoring import RationaleScorer, per_token
from lada_secure.privacy.release.unit_by_unit import for_each_unit

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Halves: TypeAlias = tuple[PhysicalBatch, PhysicalBatch]
Failure: TypeAlias = Literal["memory", "other"]


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
        scorer: RationaleScorer,
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
        """Take the model as it is now as the reference of "dpo" for these public examples."""
        for found in self._fitting(
            self._sums_of(self._contrasted(examples)), self._leads, PhysicalBatch.halves_of_a_sum
        ):
            self._reference_leads.update(found)

    def remember_reference_of_units(self, units: Sequence[EncodedUnit]) -> None:
        """The same for private units, each by itself; a unit without a reference adds nothing.

        Each value is a function of one example and the model, so it couples nothing.
        """

        def leads(part: Sequence[EncodedUnit]) -> list[dict[EncodedExample, float]]:
            return [
                dict(
                    pair
                    for one in self._contrasted(unit.examples)
                    for pair in self._leads(one_sum([one]))
                )
                for unit in part
            ]

        nothing: dict[EncodedExample, float] = {}
        for found in for_each_unit(units, leads, otherwise=nothing, what="reference"):
            self._reference_leads.update(found)

    def _contrasted(self, examples: Sequence[EncodedExample]) -> list[EncodedExample]:
        if self._loss.contrastive_form != "dpo" or self._loss.contrastive_weight == 0.0:
            return []
        return [one for one in examples if one.rejected is not None]

    def _leads(self, batch: PhysicalBatch) -> list[tuple[EncodedExample, float]]:
        with torch.no_grad():
            path, own, _ = self._scores(batch)
        return list(zip(batch.examples, (path - own).tolist(), strict=True))

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

        Sensitivity, and why nothing here ends a step: units whose batch fails are tried in halves
        and then alone, which is the same gradient in other company; a unit whose gradient cannot
        be computed alone, not even record by record, adds exactly zero. Each of these parts is at
        most one clip norm long, and which of them a unit gets does not change what another adds.
        """
        total = ClippedSum(self.engine.parameters, l2_clip_norm=l2_clip_norm, grid=grid)
        waiting = list(self._batches_of(units))[::-1]
        while waiting:
            batch = waiting.pop()
            failure = self._added(total, batch)
            if failure is None:
                continue
            self.engine.begin(1)
            release_cached_memory()
            if batch.units > 1:
                waiting.extend(batch.halves()[::-1])
                if failure == "memory":
                    self._take_smaller_batches(batch)
            elif not self._added_by_record(total, batch):
                total.leave_out()
        return total

    def _batches_of(self, units: Sequence[EncodedUnit]) -> tuple[PhysicalBatch, ...]:
        if self._scorer.is_float32:
            return physical_batches(units, physical_batch_size=self.physical_batch_size)
        return single_units(units)

    def _added(self, total: ClippedSum, batch: PhysicalBatch) -> Failure | None:
        """Add a batch as a whole, or nothing of it."""
        try:
            total.add(self.unit_gradients(batch))
        # Whatever a record provokes, here or in a library: the error's text may quote it, and what
        # becomes of it must not be seen. `clipped_sum` goes on with fewer units at a time.
        except Exception as error:
            return "memory" if is_out_of_memory(error) else "other"
        return None

    def _added_by_record(self, total: ClippedSum, batch: PhysicalBatch) -> bool:
        """Add one unit's gradient as the sum of its records' gradients, one at a time."""
        try:
            sums: list[Tensor] | None = None
            for example in batch.examples:
                own = self.unit_gradients(one_sum([example]))
                sums = own if sums is None else [a + b for a, b in zip(sums, own, strict=True)]
            if sums is not None:
                total.add(sums)
        except Exception:
            # As in `_added`. The unit adds zero.
            return False
        return True

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
        """Do the work on every public batch in order; one too large for memory goes in halves.

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
        holders = [at for at, one in enumerate(examples) if one.rejected is not None]
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
        self._take_smaller_batches(batch)
        return halves

    def _take_smaller_batches(self, batch: PhysicalBatch) -> None:
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
