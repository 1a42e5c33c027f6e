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
from lada_secure.models.examples import EncodedExample, EncodedUnit
from lada_secure.privacy.accounting.events import check_sampling_probability


class PoissonSampler:
    """Poisson sampling over privacy units by the operating system's randomness.

    Every unit joins a step with the same probability, independently of all others and of earlier
    steps; batches may be empty. The realised probability is `sampling_probability` rounded down
    to a multiple of 2^-64, never above it.
    """

    __slots__ = ("_threshold", "_units")

    def __init__(self, units: int, *, sampling_probability: float) -> None:
        probability = check_sampling_probability(sampling_probability)
        self._units = units
        self._threshold = int(Fraction(probability) * 2**64)

    def draw(self) -> tuple[int, ...]:
        """Indices of the units that join this step, ascending."""
        if self._threshold == 2**64:
            return tuple(range(self._units))
        joined = system_words(self._units) < np.uint64(self._threshold)
        return tuple(np.flatnonzero(joined).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalBatch:
    """Whole units that share forward passes.

    `examples` are in unit order, `unit_of_example[i]` in 0 .. units - 1.
    """

    examples: tuple[EncodedExample, ...]
    unit_of_example: tuple[int, ...]
    units: int

    @property
    def unit_of_row(self) -> tuple[int, ...]:
        """The unit of each sequence, in the order of `rows_of`."""
        own = (
            unit
            for example, unit in zip(self.examples, self.unit_of_example, strict=True)
            if example.rejected is not None
        )
        return (*self.unit_of_example, *own)

    def only(self, units: Sequence[int]) -> PhysicalBatch:
        """These units alone, numbered anew."""
        renumbered = {unit: at for at, unit in enumerate(units)}
        kept = [at for at, unit in enumerate(self.unit_of_example) if unit in renumbered]
        return PhysicalBatch(
            examples=tuple(self.examples[at] for at in kept),
            unit_of_example=tuple(renumbered[self.unit_of_example[at]] for at in kept),
            units=len(units),
        )

    def halves(self) -> tuple[PhysicalBatch, PhysicalBatch]:
        """Two batches of half the units each; there are at least two."""
        middle = self.units // 2
        return self.only(range(middle)), self.only(range(middle, self.units))


def one_sum(examples: Sequence[EncodedExample]) -> PhysicalBatch:
    """A batch whose examples are added up as if they were one unit's."""
    return PhysicalBatch(examples=tuple(examples), unit_of_example=(0,) * len(examples), units=1)


def physical_batches(
    units: Sequence[EncodedUnit], *, physical_batch_size: int
) -> tuple[PhysicalBatch, ...]:
    """Pack whole units into batches of at most `physical_batch_size` examples.

    Units are taken in order of their longest sequence, so that little of a batch is padding. A
    unit with more examples gets a batch of its own, and units without examples, which add nothing,
    get none.
    """
    groups: list[list[EncodedUnit]] = []
    filled = 0
    for unit in sorted(units, key=lambda unit: (unit.longest_row, unit.unit_id)):
        if not unit.examples:
            continue
        filled += len(unit.examples)
        if not groups or filled > physical_batch_size:
            groups.append([])
            filled = len(unit.examples)
        groups[-1].append(unit)
    return tuple(_batch_of(group) for group in groups)


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
