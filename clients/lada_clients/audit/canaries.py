"""Canary units: privacy units that are no records, to attack the trainer's own guarantee.

A canary's gradient is a fixed direction in place of one that the model computes (Steinke, Nasr,
Jagielski 2023, section 6, "white-box" with gradient canaries). Everything after that is the
shipped trainer: Poisson sampling, clipping, cutting to the grid, summation, noise, optimiser.
Adding one canary is adding one privacy unit, so the guarantee covers it like any other.

The attacker of `updates` sees what DP-SGD's guarantee covers: the noised sum of every step. It
knows all directions and not who takes part in a step. Directions are the rows of Hadamard
matrices over random blocks of coordinates with random signs: orthogonal, so canaries do not hide
each other, and spread over many coordinates, so that one heavy coordinate of the real gradients
does not hide any.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from torch import Tensor

from lada_secure.dpsgd.batching import PhysicalBatch
from lada_secure.dpsgd.gradient import GradientSource
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.trainer import Trainer
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import parameter_count, trainable_parameters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel

_Floats: TypeAlias = "NDArray[np.float64]"
_Flags: TypeAlias = "NDArray[np.bool_]"

# Directions without a canary, from which the attacker reads how strong the noise is.
FREE_DIRECTIONS = 256
# Before clipping, in clip norms: a canary that needs no clipping would not notice a trainer that
# does not clip. Many times any noise worth the name, so that one step with it is proof enough.
RAW_NORM = 64.0
_MAX_BLOCK = 1024
_MIN_SPREAD = 1e-9
_MEDIAN_TO_STD = 1.4826
# Any tokenizer has tokens for digits; no model ever reads them.
_TEXT = RationaleExample(example_id="canary", prompt="1", path="1", rejected=None)


class CanaryDirections:
    """`capacity` orthonormal vectors in R^d, each non-zero in one block of coordinates."""

    def __init__(self, dimension: int, *, seed: int) -> None:
        """Args: dimension: d >= 1. seed: directions are public, so a seed is enough."""
        self.dimension = dimension
        self._block = min(_MAX_BLOCK, 1 << (dimension.bit_length() - 1))
        self._blocks = dimension // self._block
        self.capacity = self._blocks * self._block
        rng = np.random.default_rng(seed)
        self._places = rng.permutation(dimension)[: self.capacity].reshape(self._blocks, -1)
        signs = rng.choice(np.array([-1.0, 1.0]), size=(self._blocks, self._block))
        self._signs = signs / math.sqrt(self._block)
        self._rows = hadamard(self._block).astype(np.float64)

    @property
    def room(self) -> int:
        """How many canaries there are directions for."""
        return max(0, self.capacity - FREE_DIRECTIONS)

    def vectors(self, numbers: Sequence[int], *, norm: float) -> Tensor:
        """The directions with these numbers, scaled. Returns: (len(numbers), d) float32."""
        found = np.zeros((len(numbers), self.dimension), dtype=np.float32)
        for at, number in enumerate(numbers):
            row, block = divmod(number, self._blocks)
            found[at, self._places[block]] = self._rows[row] * self._signs[block] * norm
        return torch.from_numpy(found)

    def project(self, vector: _Floats) -> _Floats:
        """Inner products of (d,) with all directions, (capacity,) in the order of numbers."""
        inner: _Floats = (vector[self._places] * self._signs) @ self._rows
        return inner.T.ravel()


@dataclass(slots=True, kw_only=True)
class StepWatcher:
    """The attacker: reads noised sums step by step and keeps each canary's log-odds.

    With x a canary's share of a step's noised sum in clip norms, s the noise in the same units
    and q the sampling probability, the coin's log-odds grow by
    log(1 - q + q exp((x - 1/2) / s^2)): a canary that has joined is in the step with probability
    q and adds 1, one that has not adds nothing. s is measured on directions without a canary, and
    so takes in what the real gradients add and what the trainer really does, not what it claims.
    """

    canaries: int
    sampling_probability: float
    log_odds: _Floats = field(init=False)
    spreads: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log_odds = np.zeros(self.canaries, dtype=np.float64)

    def see(self, shares: _Floats) -> None:
        """Take one step in. Args: shares: (capacity,), canaries first."""
        free = shares[self.canaries :]
        spread = max(_MEDIAN_TO_STD * float(np.median(np.abs(free))), _MIN_SPREAD)
        self.spreads.append(spread)
        evidence = (shares[: self.canaries] - 0.5) / spread**2
        # Squares of tiny spreads pass what sums of exponents can hold; nobody is that sure.
        evidence = np.clip(evidence, -1e9, 1e9)
        if self.sampling_probability == 1.0:
            self.log_odds += evidence
            return
        self.log_odds += np.logaddexp(
            math.log1p(-self.sampling_probability), math.log(self.sampling_probability) + evidence
        )

    @property
    def noise_seen(self) -> float:
        """Noise of a typical step in clip norms, real gradients included; claimed: multiplier."""
        return float(np.sqrt(np.mean(np.square(self.spreads))))


class CanarySource(GradientSource):
    """Unit gradients of the model, and a canary's direction where the unit is a canary."""

    canaries: CanaryRun

    def unit_gradients(self, batch: PhysicalBatch) -> list[Tensor]:
        """See `GradientSource.unit_gradients`."""
        numbers = {
            at: self.canaries.number(example.example_id)
            for at, unit in enumerate(batch)
            for example in unit
        }
        planted = {unit: number for unit, number in numbers.items() if number is not None}
        if not planted:
            return super().unit_gradients(batch)
        real = [at for at in range(len(batch)) if at not in planted]
        parameters = self.engine.parameters
        found = [one.new_zeros((len(batch), *one.shape)).float() for one in parameters]
        if real:
            ordinary = super().unit_gradients([batch[at] for at in real])
            for whole, part in zip(found, ordinary, strict=True):
                whole[real] = part
        vectors = self.canaries.raw_vectors(list(planted.values()))
        parts = torch.split_with_sizes(vectors, [one.numel() for one in parameters], dim=1)
        for whole, part in zip(found, parts, strict=True):
            whole.flatten(1)[list(planted)] = part.to(whole.device)
        return found


class AuditedTrainer(Trainer):
    """The shipped trainer with canaries among its units and an attacker at its noised sums.

    Raises: ParameterError: private_weight is 0, so no private gradient is used at all.
    """

    source_class = CanarySource
    source: CanarySource

    def __init__(
        self, lm: LanguageModel, *, canaries: CanaryRun, settings: TrainerSettings, **options: Any
    ) -> None:
        """Args: settings, options: those of `Trainer`."""
        if settings.private_weight == 0.0:
            raise ParameterError(
                "private_weight is 0: this training does not use private records, so there is "
                "nothing to audit"
            )
        super().__init__(lm, settings=settings, **options)
        self.source.canaries = canaries
        self._to_clip_norms = self.privacy.expected_units / (
            self.privacy.l2_clip_norm * settings.private_weight
        )

    def take_units(self, units: Sequence[PrivateUnit]) -> None:
        """See `Trainer.take_units`; the canaries that have joined come after the real units."""
        super().take_units([*units, *self.source.canaries.units()])

    def update(self, private_gradient: Tensor) -> None:
        """Show the step's noised sum to the attacker, then go on as always."""
        self.source.canaries.see(private_gradient.detach() * self._to_clip_norms)
        super().update(private_gradient)


class CanaryRun:
    """Canaries of one audited training run, over any number of rounds with the same model.

    Args:
        lm: with its adapters, as they are before the first round.
        joined: (m,) bool, the coins. privacy: of every round. seed: of the directions.
    Raises: ParameterError: more canaries than the model has directions for.
    """

    def __init__(
        self, lm: LanguageModel, *, joined: _Flags, privacy: DpSgdParameters, seed: int
    ) -> None:
        self._parameters = trainable_parameters(lm.model)
        self.directions = CanaryDirections(parameter_count(lm.model), seed=seed)
        if not 1 <= len(joined) <= self.directions.room:
            raise ParameterError(
                f"canaries: expected 1 to {self.directions.room} for this model's "
                f"{self.directions.dimension} trainable parameters, got {len(joined)}"
            )
        self._raw_norm = RAW_NORM * privacy.l2_clip_norm
        self._joined = joined
        # No record can have an id with this prefix but by a miracle.
        self._prefix = f"canary-{os.urandom(16).hex()}:"
        self._before = self._weights()
        self.watcher = StepWatcher(
            canaries=len(joined), sampling_probability=privacy.sampling_probability
        )

    def units(self) -> tuple[PrivateUnit, ...]:
        """The canaries whose coin says that they join, as privacy units."""
        names = [f"{self._prefix}{number}" for number in np.flatnonzero(self._joined)]
        return tuple(
            PrivateUnit(unit_id=name, examples=(replace(_TEXT, example_id=name),)) for name in names
        )

    def number(self, example_id: str) -> int | None:
        """Which canary an example is; None for a real one."""
        name = example_id.removeprefix(self._prefix)
        return None if name == example_id else int(name)

    def raw_vectors(self, numbers: Sequence[int]) -> Tensor:
        """Gradients of canaries before clipping, (len(numbers), d) float32."""
        return self.directions.vectors(numbers, norm=self._raw_norm)

    def see(self, noised_sum: Tensor) -> None:
        """Hand a step's noised sum in clip norms, (d,), to the attacker."""
        self.watcher.see(self.directions.project(noised_sum.double().cpu().numpy()))

    def scores_of_adapters(self) -> _Floats:
        """How far the adapters have moved against each canary's gradient, (m,), unit-free."""
        moved = self._before - self._weights()
        return self.directions.project(moved)[: len(self._joined)]

    def _weights(self) -> _Floats:
        parts = [one.detach().double().cpu().flatten() for one in self._parameters]
        weights: _Floats = torch.cat(parts).numpy()
        return weights
