"""Do pool samples pull where the private records pull? Read off gradients that DP-SGD released.

Every step of DP-SGD releases a noised sum of clipped private gradients; the guarantee covers them
all, so whatever is computed from them and from public samples is post-processing and costs nothing
(Dwork and Roth 2014, Prop. 2.1). A pool sample whose own gradient points the other way would undo
what the records teach.

The noise of the direction is the same in every coordinate. Along one sample's unit gradient it has
one known standard deviation, however many parameters there are, so alignments are stated in
standard deviations of that noise: without any signal they would be standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lada_secure.distillation.batching import PhysicalBatch
from lada_secure.distillation.engine_choice import open_engine
from lada_secure.distillation.examples import PathExample, PrivateUnit, encode_example
from lada_secure.distillation.gradient import GradientSource
from lada_secure.distillation.loss import LossSettings
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.scoring import PathScorer
from lada_secure.distillation.trainer import Trainer
from lada_secure.errors import ParameterError
from lada_secure.learnability.arrays import FloatArray


@dataclass(slots=True, kw_only=True)
class GradientDirection:
    """Sum of the noised private gradients of some steps, each divided by `expected_units`.

    total: (p,) float64 over all trainable parameters, None before the first step. variance: of its
    noise in every coordinate; 0 where training was without noise.
    """

    total: Tensor | None = None
    variance: float = 0.0

    def add(self, gradient: Tensor, *, std: float) -> None:
        """Count one step. Args: std: noise per coordinate of `gradient`."""
        kept = gradient.detach().double().cpu()
        self.total = kept.clone() if self.total is None else self.total + kept
        self.variance += std**2


@dataclass(slots=True, kw_only=True)
class Listener:
    """A `TrainerFactory`: opens trainers whose noised private gradients add up in `direction`."""

    direction: GradientDirection = field(default_factory=GradientDirection)

    def __call__(
        self,
        lm: LanguageModel,
        *,
        units: Sequence[PrivateUnit],
        pool: Sequence[PathExample],
        privacy: DpSgdParameters,
        settings: TrainerSettings,
    ) -> Trainer:
        """Open a trainer; see `TrainerFactory`."""
        trainer = _ListeningTrainer(
            lm, units=units, pool=pool, privacy=privacy, settings=settings
        )
        trainer.direction = self.direction
        trainer.std = privacy.noise_multiplier * privacy.l2_clip_norm / privacy.expected_units
        trainer.weight = settings.private_weight
        return trainer


class _ListeningTrainer(Trainer):
    direction: GradientDirection
    std: float
    weight: float

    def update(self, private_gradient: Tensor) -> float | None:
        if self.weight > 0.0:
            self.direction.add(private_gradient / self.weight, std=self.std)
        return super().update(private_gradient)


def alignments(
    lm: LanguageModel,
    examples: Sequence[PathExample],
    direction: GradientDirection,
    *,
    batch_size: int = 64,
) -> FloatArray:
    """How far each example's cross-entropy gradient points along the released direction, (n,).

    In standard deviations of the direction's noise; without noise, as the cosine times 100 so that
    the same thresholds mean "clearly with" and "clearly against". 0 for an example without a
    gradient, and for all where nothing was released yet.

    Raises: ParameterError: a direction of another model's size, or batch_size below 1.
    """
    if batch_size < 1:
        raise ParameterError(f"batch_size: expected at least 1, got {batch_size}")
    if direction.total is None or not examples:
        return np.zeros(len(examples), dtype=np.float64)
    encoded = [encode_example(lm, one, contrast=False) for one in examples]
    engine = open_engine(lm.model, "auto")
    try:
        if sum(one.numel() for one in engine.parameters) != direction.total.numel():
            raise ParameterError(
                f"alignment: a direction of {direction.total.numel()} numbers does not fit this "
                "model's adapters"
            )
        device = engine.parameters[0].device
        along = torch.split_with_sizes(
            direction.total.to(device).float(), [one.numel() for one in engine.parameters]
        )
        source = GradientSource(
            engine=engine,
            scorer=PathScorer(lm.model, device=device),
            loss=LossSettings(contrastive_weight=0.0),
            physical_batch_size=batch_size,
        )
        found: list[Tensor] = []
        for first in range(0, len(encoded), batch_size):
            part = tuple(encoded[first : first + batch_size])
            gradients = source.unit_gradients(
                PhysicalBatch(
                    examples=part, unit_of_example=tuple(range(len(part))), units=len(part)
                )
            )
            dots = sum(
                (one.flatten(1) @ piece for one, piece in zip(gradients, along, strict=True)),
                start=torch.zeros(len(part), device=device),
            )
            norms = sum(
                (one.flatten(1).square().sum(1) for one in gradients),
                start=torch.zeros(len(part), device=device),
            ).sqrt()
            found.append(torch.where(norms > 0, dots / norms.clamp_min(1e-30), dots * 0.0).cpu())
    finally:
        engine.close()
    values = torch.cat(found).double().numpy()
    if direction.variance > 0.0:
        scale = math.sqrt(direction.variance)
    else:
        scale = float(direction.total.norm()) / 100.0
    return np.asarray(values / max(scale, 1e-30), dtype=np.float64)
