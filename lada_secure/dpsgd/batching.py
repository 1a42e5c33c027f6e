"""Who takes part in a step, and how a step's units are cut into physical batches.

Sampling belongs to the guarantee; physical batches do not: every unit's gradient is clipped on
its own, so how units share a forward pass changes speed and memory only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lada_secure.dpsgd.noise import system_words
from lada_secure.errors import ParameterError
from lada_secure.models.examples import EncodedExample, EncodedUnit, TokenRow


class PoissonSampler:
    """Poisson sampling over privacy units by the operating system's randomness.

    Every unit joins a step with the same probability, independently of all others and of earlier
    steps; batches may be empty. The realised probability is `sampling_probability` rounded down
    to a multiple of 2^-64, never above it.
    """

    __slots__ = ("_threshold", "_units")

    def __init__(self, units: int, *, sampling_probability: float) -> None:
        if not 0.0 < sampling_probability <= 1.0:
            raise ParameterError(
                f"sampling_probability: expected above 0 and at most 1, got {sampling_probability}"
            )
        self._units = units
        self._threshold = int(Fraction(sampling_probability) * 2**64)

    def draw(self) -> tuple[int, ...]:
        """Indices of the units that join this step, ascending."""
        if self._threshold == 2**64:
            return tuple(range(self._units))
        joined = system_words(self._units) < np.uint64(self._threshold)
        return tuple(int(one) for one in np.flatnonzero(joined))


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalBatch:
    """Whole units that share forward passes.

    `examples` are in unit order, `unit_of_example[i]` in 0 .. units - 1.
    """

    examples: tuple[EncodedExample, ...]
    unit_of_example: tuple[int, ...]
    units: int

    def rows(self) -> tuple[tuple[TokenRow, ...], tuple[int, ...]]:
        """All sequences, paths first and own paths after them, and the unit of each."""
        own = [number for number, one in enumerate(self.examples) if one.rejected is not None]
        rows = [one.path for one in self.examples]
        rows += [one.rejected for one in self.examples if one.rejected is not None]
        unit_of_row = (*self.unit_of_example, *(self.unit_of_example[number] for number in own))
        return tuple(rows), unit_of_row

    def halves(self) -> tuple[PhysicalBatch, PhysicalBatch]:
        """Two batches of half the units each; there are at least two."""
        middle = self.units // 2
        return self._part(0, middle), self._part(middle, self.units)

    def halves_of_a_sum(self) -> tuple[PhysicalBatch, PhysicalBatch]:
        """Two batches of half the examples each, where only their sum is wanted (public samples).

        Raises: ParameterError: a single example is left.
        """
        if len(self.examples) < 2:
            longest = max((len(row.tokens) for one in self.examples for row in one.rows), default=0)
            raise ParameterError(
                f"one example of {longest} tokens does not fit into memory; shorten the texts, "
                "train fewer layers (last_layers) or take a smaller model"
            )
        middle = len(self.examples) // 2
        return one_sum(self.examples[:middle]), one_sum(self.examples[middle:])

    def _part(self, first: int, last: int) -> PhysicalBatch:
        kept = [at for at, unit in enumerate(self.unit_of_example) if first <= unit < last]
        return PhysicalBatch(
            examples=tuple(self.examples[at] for at in kept),
            unit_of_example=tuple(self.unit_of_example[at] - first for at in kept),
            units=last - first,
        )


def one_sum(examples: Sequence[EncodedExample]) -> PhysicalBatch:
    """A batch whose examples are added up as if they were one unit's."""
    return PhysicalBatch(examples=tuple(examples), unit_of_example=(0,) * len(examples), units=1)


def sums_of(
    examples: Sequence[EncodedExample], *, physical_batch_size: int
) -> tuple[PhysicalBatch, ...]:
    """Cut public examples into batches of at most `physical_batch_size`, in their order."""
    return tuple(
        one_sum(examples[first : first + physical_batch_size])
        for first in range(0, len(examples), physical_batch_size)
    )


def physical_batches(
    units: Sequence[EncodedUnit], *, physical_batch_size: int
) -> tuple[PhysicalBatch, ...]:
    """Pack whole units into batches of at most `physical_batch_size` examples.

    Units are taken in order of their longest sequence, so that little of a batch is padding. A
    unit with more examples gets a batch of its own, and units without examples, which add nothing,
    get none.
    """
    batches: list[PhysicalBatch] = []
    group: list[EncodedUnit] = []
    filled = 0
    for unit in sorted(units, key=lambda one: (one.longest_row, one.unit_id)):
        if not unit.examples:
            continue
        if group and filled + len(unit.examples) > physical_batch_size:
            batches.append(_batch_of(group))
            group, filled = [], 0
        group.append(unit)
        filled += len(unit.examples)
    if group:
        batches.append(_batch_of(group))
    return tuple(batches)


def single_units(units: Sequence[EncodedUnit]) -> tuple[PhysicalBatch, ...]:
    """Every unit in a batch of its own: its gradient cannot depend on its company.

    For forward passes in less than float32, where kernels round a row visibly differently in
    another company, so that one unit would move the gradients of others.
    """
    return tuple(_batch_of([unit]) for unit in units if unit.examples)


def _batch_of(units: Sequence[EncodedUnit]) -> PhysicalBatch:
    return PhysicalBatch(
        examples=tuple(example for unit in units for example in unit.examples),
        unit_of_example=tuple(at for at, unit in enumerate(units) for _ in unit.examples),
        units=len(units),
    )
