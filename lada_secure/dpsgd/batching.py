"""Who takes part in a step, and how a step's units are cut into physical batches.

Sampling belongs to the guarantee; physical batches do not: every unit's gradient is clipped on
its own, so how units share a forward pass changes speed and memory only.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from lada_secure.dpsgd.noise import system_words
from lada_secure.models.examples import EncodedExample, EncodedUnit
from lada_secure.privacy.accounting.events import check_sampling_probability

# Whole units that share forward passes: the examples of each.
PhysicalBatch: TypeAlias = Sequence[Sequence[EncodedExample]]


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


def unit_of_row(batch: PhysicalBatch) -> tuple[int, ...]:
    """The unit of each sequence, in the order of `rows_of` over all examples of the batch."""
    every = [(at, example) for at, unit in enumerate(batch) for example in unit]
    own = (at for at, example in every if example.rejected is not None)
    return (*(at for at, _ in every), *own)


def physical_batches(
    units: Sequence[EncodedUnit], *, physical_batch_size: int
) -> list[PhysicalBatch]:
    """Pack whole units into batches of at most `physical_batch_size` examples.

    Units are taken in order of their longest sequence, so that little of a batch is padding. A
    unit with more examples gets a batch of its own, and units without examples, which add nothing,
    get none.
    """
    batches: list[list[tuple[EncodedExample, ...]]] = []
    filled = 0
    for unit in sorted(units, key=lambda unit: (unit.longest_row, unit.unit_id)):
        if not unit.examples:
            continue
        filled += len(unit.examples)
        if not batches or filled > physical_batch_size:
            batches.append([])
            filled = len(unit.examples)
        batches[-1].append(unit.examples)
    return [*batches]


def single_units(units: Sequence[EncodedUnit]) -> list[PhysicalBatch]:
    """Every unit in a batch of its own: its gradient cannot depend on its company.

    For forward passes in less than float32, where kernels round a row visibly differently in
    another company, so that one unit would move the gradients of others.
    """
    return [[unit.examples] for unit in units if unit.examples]
