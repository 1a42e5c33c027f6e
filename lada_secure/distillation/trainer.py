"""One training run in memory: sampling, clipped sums, noise, public gradients, AdamW.

One step (Abadi et al. 2016, Alg. 1, per unit instead of per row, and a second, public stream):

    gradient = private_weight * (sum of clipped unit gradients + noise) / expected_units
             + (sum of public pool gradients) / pool_batch_size

followed by AdamW on the adapters.

Floating point: the integer sum has exactly the stated sensitivity in each unit's own gradient.
That gradient is computed in float32 next to others, and matrix kernels may round a row
differently in other company; this second-order effect is not covered by the proof (about 1e-7
relative; the sensitivity tests measure below 1 + 1e-6 on real models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lada_secure.distillation.batching import (
    PoissonSampler,
    PublicOrder,
    check_unit_sizes,
    share_of,
)
from lada_secure.distillation.clipping import ClippedSum
from lada_secure.distillation.engine_choice import open_engine
from lada_secure.distillation.examples import (
    EncodedExample,
    EncodedUnit,
    PathExample,
    PrivateUnit,
    encode_example,
    encode_units,
)
from lada_secure.distillation.gradient import GradientSource, PublicGradient
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.noise import DiscreteGaussian, float_gaussian
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.scoring import PathScorer
from lada_secure.distillation.state import TrainingState, gather_state, restore_state
from lada_secure.errors import ParameterError, TrainingFailed


def noised_gradient(total: ClippedSum, privacy: DpSgdParameters) -> Tensor:
    """(sum of clipped unit gradients + noise) / expected_units.

    The discrete noise has std_steps grid steps and clip_steps <= std_steps / noise_multiplier, so
    its multiplier is never below the accounted one.

    Returns: (d,) float64, over all trainable parameters in order.
    """
    values = total.values()
    if privacy.noise == "float_gaussian":
        drawn = float_gaussian(values.numel(), std=privacy.noise_multiplier * privacy.l2_clip_norm)
        return (values + torch.from_numpy(drawn).to(values.device)) / privacy.expected_units
    grid = privacy.grid()
    if grid is None:
        raise ParameterError("discrete noise needs a grid")
    noise = DiscreteGaussian(Fraction(privacy.std_steps)).sample(values.numel())
    whole = total.integers() + torch.from_numpy(noise).to(values.device)
    # From here on everything is post-processing of the noised integers.
    return whole.double() * (privacy.l2_clip_norm / grid.clip_steps / privacy.expected_units)


class Trainer:
    """Model, data and optimiser of one training run; `step` is one DP-SGD step.

    Steps are not paid for here: `distil` reserves before it calls `step`.
    """

    source_class: ClassVar[type[GradientSource]] = GradientSource

    def __init__(
        self,
        lm: LanguageModel,
        *,
        units: Sequence[PrivateUnit],
        pool: Sequence[PathExample],
        privacy: DpSgdParameters,
        settings: TrainerSettings,
    ) -> None:
        """Check everything that can be checked without spending, and attach the engine."""
        self._privacy = privacy
        self._settings = settings
        self.device = settings.torch_device()
        contrast = settings.loss.contrastive_weight > 0.0
        encoded_pool = tuple(encode_example(lm, one, contrast=contrast) for one in pool)
        self._units = encode_units(lm, units, contrast=contrast)
        self._public: tuple[EncodedExample, ...] = ()
        if privacy.pool_gradients == "public":
            self._public = encoded_pool
        else:
            self._units += tuple(
                EncodedUnit(unit_id=f"pool:{at}", examples=(one,))
                for at, one in enumerate(encoded_pool)
            )
        check_unit_sizes(self._units, physical_batch_size=settings.physical_batch_size)
        self._order = PublicOrder(
            count=len(self._public), batch_size=settings.pool_batch_size, seed=settings.seed
        )
        self._sampler = PoissonSampler(
            len(self._units), sampling_probability=privacy.sampling_probability
        )
        lm.model.to(self.device)
        lm.model.eval()
        self.engine = open_engine(lm.model, settings.engine)
        self.parameters = self.engine.parameters
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.public_losses: list[float | None] = []
        self.non_finite_units = 0
        self.non_finite_public_steps = 0
        try:
            scorer = PathScorer(
                lm.model,
                device=self.device,
                cache_bytes=settings.frozen_cache_bytes,
                autocast_dtype=settings.autocast_dtype(self.device),
            )
            if not scorer.finite_at_first:
                raise ParameterError(
                    "the model's loss on made-up tokens is NaN or infinite before training; "
                    "nothing was spent. Check the model's weights and the precision setting"
                )
            self.source = self.source_class(
                engine=self.engine,
                scorer=scorer,
                loss=settings.loss,
                physical_batch_size=settings.physical_batch_size,
            )
            self.source.remember_reference(
                [*self._public, *(one for unit in self._units for one in unit.examples)]
            )
            self._check_public_loss()
        except BaseException:
            self.engine.close()
            raise

    def _check_public_loss(self) -> None:
        # Only public samples may be looked at here: an error is an output too.
        first = [self._public[at] for at in self._order.batch(0)]
        losses = self.source.losses(first)
        if not bool(torch.isfinite(losses).all()):
            raise ParameterError(
                f"{int((~torch.isfinite(losses)).sum())} of the first {len(first)} pool samples "
                "have a loss of NaN or infinity before training; nothing was spent. Check the "
                "model's weights and the precision setting"
            )

    def check_going_well(self, first_step: int) -> None:
        """Stop before more is paid for a run that is lost; looks at released and public values.

        Args: first_step: of the steps to judge, from 0; they are committed.
        Raises: TrainingFailed: weights are not finite, or no public loss since then was.
        """
        since = self.public_losses[first_step:]
        told = (
            "the weights hold NaN or infinity"
            if not all(bool(torch.isfinite(one).all()) for one in self.parameters)
            else "every public loss was NaN or infinity"
            if self._public and self._settings.pool_batch_size and set(since) == {None}
            else ""
        )
        if told:
            raise TrainingFailed(
                f"training steps {first_step + 1} to {self.steps_done}: {told}; stopped before "
                "more privacy is spent. Lower learning_rate, or precision = 'float32'"
            )

    @property
    def steps_done(self) -> int:
        """Steps taken so far, those of a restored state included."""
        return len(self.public_losses)

    def step(self) -> float | None:
        """Sample, clip, sum, noise, add the public gradient, update. Returns: public loss."""
        ranks = self._settings.ranks
        mine = share_of(self._draw(), rank=ranks.rank, ranks=ranks.size)
        total = self.source.clipped_sum(
            mine, l2_clip_norm=self._privacy.l2_clip_norm, grid=self._privacy.grid()
        )
        total.gather(ranks)
        self.non_finite_units += total.non_finite
        # Noise is added once, to the sum over all ranks, by the rank that holds it.
        gradient = total.values() if ranks.rank else noised_gradient(total, self._privacy)
        return self.update(gradient * self._settings.private_weight)

    def _draw(self) -> list[EncodedUnit]:
        """The units that join, by rank 0's randomness."""
        ranks = self._settings.ranks
        joins = torch.zeros(len(self._units), dtype=torch.uint8)
        if ranks.rank == 0:
            joins[list(self._sampler.draw())] = 1
        return [self._units[int(at)] for at in ranks.from_first(joins).nonzero()]

    def update(self, private_gradient: Tensor) -> float | None:
        """The rest of a step, after noise: public stream and AdamW."""
        sizes = [one.numel() for one in self.parameters]
        parts = torch.split_with_sizes(private_gradient, sizes)
        for one, part in zip(self.parameters, parts, strict=True):
            one.grad = part.view_as(one).to(one.dtype, copy=True)
        loss = self._as_at_first(self._add_public_gradient())
        if self._settings.schedule == "linear":
            left = 1.0 - self.steps_done / self._privacy.steps
            for group in self.optimizer.param_groups:
                group["lr"] = self._settings.learning_rate * left
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.public_losses.append(loss)
        return loss

    def _add_public_gradient(self) -> float | None:
        batch = [self._public[at] for at in self._order.batch(self.steps_done)]
        if not batch:
            return None
        # The engine's own use of .grad (opacus) must not meet the private gradient.
        private = [one.grad for one in self.parameters]
        public = self._public_gradient(batch)
        finite = all(bool(torch.isfinite(one).all()) for one in public.gradients)
        self.non_finite_public_steps += not finite
        for one, own, added in zip(self.parameters, private, public.gradients, strict=True):
            one.grad = own
            if finite and one.grad is not None:
                one.grad += added.to(one.dtype)
        return public.loss if math.isfinite(public.loss) else None

    def _public_gradient(self, batch: Sequence[EncodedExample]) -> PublicGradient:
        """The batch's gradient; with several ranks each takes a share, and rank 0 gets the sum."""
        ranks = self._settings.ranks
        mine = batch[ranks.rank :: ranks.size]
        public = self.source.public_gradient(mine, count=self._settings.pool_batch_size)
        if ranks.size == 1:
            return public
        loss = torch.tensor([public.loss * len(mine)], dtype=torch.float64)
        flat = [one.flatten().double().cpu() for one in public.gradients]
        *parts, total = torch.split_with_sizes(
            ranks.sum_to_first(torch.cat([*flat, loss])), [*(one.numel() for one in flat), 1]
        )
        return PublicGradient(
            gradients=tuple(
                part.view_as(one).to(one.device)
                for one, part in zip(public.gradients, parts, strict=True)
            ),
            loss=float(total) / len(batch),
        )

    def _as_at_first(self, loss: float | None) -> float | None:
        """Give every rank the gradient and loss of rank 0: all take the very same step."""
        if self._settings.ranks.size == 1:
            return loss
        grads = [one.grad for one in self.parameters if one.grad is not None]
        told = torch.tensor([math.nan if loss is None else loss], dtype=torch.float64)
        flat = torch.cat([*(one.flatten().double().cpu() for one in grads), told])
        *parts, first = torch.split_with_sizes(
            self._settings.ranks.from_first(flat), [*(one.numel() for one in grads), 1]
        )
        for one, part in zip(grads, parts, strict=True):
            one.copy_(part.view_as(one))
        return None if bool(torch.isnan(first)) else float(first)

    def state(self, binding: str) -> TrainingState:
        """A copy of everything that the next step depends on, but for randomness."""
        return gather_state(
            self.parameters, self.optimizer, binding=binding, public_losses=self.public_losses
        )

    def restore(self, state: TrainingState) -> None:
        """Go on after the steps of `state`."""
        restore_state(self.parameters, self.optimizer, state)
        self.public_losses = list(state.public_losses)

    def close(self) -> None:
        """Detach the engine from the model."""
        self.engine.close()


class TrainerFactory(Protocol):
    """Opens the trainer of a run: `Trainer` itself, or one under audit."""

    def __call__(
        self,
        lm: LanguageModel,
        *,
        units: Sequence[PrivateUnit],
        pool: Sequence[PathExample],
        privacy: DpSgdParameters,
        settings: TrainerSettings,
    ) -> Trainer: ...
