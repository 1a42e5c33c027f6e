"""From examples to gradients: per-unit sums for the private stream, plain sums for the public."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor

from lada_secure.dpsgd.batching import PhysicalBatch, physical_batches, single_units, unit_of_row
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.engine import GradientEngine
from lada_secure.dpsgd.unit_gradients import zero_gradients
from lada_secure.errors import ParameterError
from lada_secure.models.examples import EncodedExample, EncodedUnit, rows_of
from lada_secure.models.loss import ExampleLoss, LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.privacy.release.private_records import for_each_unit

logger = logging.getLogger(__name__)

# Torch's words on a CPU, and those of CUDA's own libraries when they cannot get their workspace.
_SIGNS: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)

Result = TypeVar("Result")


def _added_up(left: Sequence[Tensor], right: Sequence[Tensor]) -> Sequence[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]


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
        self.engine = engine
        self.physical_batch_size = physical_batch_size
        self._is_float32 = scorer.is_float32
        self._loss = ExampleLoss(scorer, loss)

    def remember_reference(self, examples: Sequence[EncodedExample]) -> None:
        """Take the model as it is now as the reference of "dpo" for these public examples."""
        for found in self._fitting(self._loss.with_reference(examples), self._loss.leads):
            self._loss.reference.update(found)

    def remember_reference_of_units(self, units: Sequence[EncodedUnit]) -> None:
        """The same for private units, each by itself; a unit without a reference adds nothing.

        Each value is a function of one example and the model, so it couples nothing.
        """

        def leads(part: Sequence[EncodedUnit]) -> list[dict[EncodedExample, float]]:
            found: list[dict[EncodedExample, float]] = [{} for _ in part]
            for unit, of_unit in zip(part, found, strict=True):
                for example in self._loss.with_reference(unit.examples):
                    of_unit.update(self._loss.leads([example]))
            return found

        nothing: dict[EncodedExample, float] = {}
        for found in for_each_unit(units, leads, otherwise=nothing, what="reference"):
            self._loss.reference.update(found)

    @torch.no_grad()
    def losses(self, examples: Sequence[EncodedExample]) -> Tensor:
        """Losses without gradients. Returns: (n,) float32, in the order of `examples`."""
        found = list(self._fitting(examples, self._loss))
        return torch.cat(found) if found else torch.zeros(0)

    def clipped_sum(self, units: Sequence[EncodedUnit], total: ClippedSum) -> ClippedSum:
        """Add the units' clipped gradients to a sum, before noise: never to leave the step.

        An empty batch runs no forward pass and is an ordinary sum of nothing.

        Sensitivity, and why nothing here ends a step: units whose batch fails are tried in halves
        and then alone, which is the same gradient in other company; a unit whose gradient cannot
        be computed alone, not even record by record, adds exactly zero. Each of these parts is at
        most one clip norm long, and which of them a unit gets does not change what another adds.
        """
        waiting = self._batches_of(units)[::-1]
        while waiting:
            batch = waiting.pop()
            failure = self._added(total, batch)
            if failure is None:
                continue
            _release_cached_memory()
            if len(batch) > 1:
                middle = len(batch) // 2
                waiting.extend((batch[middle:], batch[:middle]))
                if failure == "memory":
                    self._take_smaller_batches(sum(len(unit) for unit in batch))
            else:
                self._add_by_record(total, batch[0])
        return total

    def _batches_of(self, units: Sequence[EncodedUnit]) -> list[PhysicalBatch]:
        if self._is_float32:
            return physical_batches(units, physical_batch_size=self.physical_batch_size)
        return single_units(units)

    def _added(self, total: ClippedSum, batch: PhysicalBatch) -> Literal["memory", "other"] | None:
        """Add a batch as a whole, or nothing of it."""
        try:
            total.add(self.unit_gradients(batch))
        # Whatever a record provokes, here or in a library: the error's text may quote it, and what
        # becomes of it must not be seen. `clipped_sum` goes on with fewer units at a time.
        except Exception as error:
            return "memory" if is_out_of_memory(error) else "other"
        return None

    def _add_by_record(self, total: ClippedSum, records: Sequence[EncodedExample]) -> None:
        """Add one unit's gradient as the sum of its records' gradients, one at a time, or zero."""
        try:
            gradients: Iterator[Sequence[Tensor]] = (
                self.unit_gradients([[record]]) for record in records
            )
            total.add(reduce(_added_up, gradients))
        # As in `_added`.
        except Exception:  # noqa: S110
            pass

    def public_gradient(self, examples: Sequence[EncodedExample]) -> tuple[list[Tensor], Tensor]:
        """Exact gradients of the mean loss of public examples, and that loss; 0 for none.

        Batches go through the same engine as the private stream, as one unit.
        Returns: per parameter, *shape float32, side by side in memory; a scalar on its device.
        """
        sums = zero_gradients(1, self.engine.parameters)
        loss = torch.zeros((), device=self.engine.parameters[0].device)
        count = max(len(examples), 1)
        for taken, part in self._fitting(examples, lambda batch: self._gradients([batch])):
            loss = loss + part.to(loss.device)
            torch._foreach_add_(sums, taken)
        torch._foreach_div_(sums, count)
        return [total.squeeze(0) for total in sums], loss / count

    def unit_gradients(self, batch: PhysicalBatch) -> list[Tensor]:
        """Each unit's gradient, unclipped. Per parameter (units, *parameter.shape) float32."""
        return self._gradients(batch)[0]

    def _gradients(self, batch: PhysicalBatch) -> tuple[list[Tensor], Tensor]:
        # A sum, not a mean: an example's gradient must not depend on how many others came.
        examples = [example for unit in batch for example in unit]
        return self.engine.gradients(
            len(batch), unit_of_row(batch), lambda: self._loss(examples).sum()
        )

    def _fitting(
        self, examples: Sequence[EncodedExample], work: Callable[[Sequence[EncodedExample]], Result]
    ) -> Iterator[Result]:
        """Do the work on batches of public examples; one too large for memory goes in halves.

        Raises: ParameterError: a single example does not fit.
        """
        size = self.physical_batch_size
        waiting = [examples[first : first + size] for first in range(0, len(examples), size)][::-1]
        while waiting:
            part = waiting.pop()
            done: list[Result] = []
            try:
                done.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # After the except clause: the error's traceback holds the batch's activations.
            if not done:
                _release_cached_memory()
                self._check_divisible(part)
                middle = len(part) // 2
                waiting.extend((part[middle:], part[:middle]))
                self._take_smaller_batches(len(part))
            yield from done

    def _check_divisible(self, examples: Sequence[EncodedExample]) -> None:
        if len(examples) < 2:
            longest = max(len(row.tokens) for row in rows_of(examples))
            raise ParameterError(
                f"one example of {longest} tokens does not fit into memory; shorten the texts, "
                "train fewer layers (last_layers) or take a smaller model"
            )

    def _take_smaller_batches(self, examples: int) -> None:
        half = max(1, examples // 2)
        # Batches of this step that were packed before come here as well, without another warning.
        if half < self.physical_batch_size:
            self.physical_batch_size = half
            logger.warning(
                "out of memory with %d examples in a physical batch; going on with %d, which "
                "changes speed and no result",
                examples,
                half,
            )


def _release_cached_memory() -> None:
    """Give unused blocks of torch's CUDA cache back, so that smaller batches find room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of CPU or GPU, was not enough, whoever says so.

    On a GPU torch raises `OutOfMemoryError`, and its libraries a `RuntimeError` that only the text
    tells apart; on a CPU torch's allocator raises a `RuntimeError`, Python and numpy a
    `MemoryError`. (Where Linux promises more memory than there is, it kills the process instead:
    nothing can be caught then, and the ledger covers the steps.)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
