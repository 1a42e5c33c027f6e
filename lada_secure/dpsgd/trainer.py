"""One training run in memory: sampling, clipped sums, noise, public gradients, AdamW.

One step (Abadi et al. 2016, Alg. 1, per unit instead of per row, and a second, public stream):

    gradient = private_weight * (sum of clipped unit gradients + noise) / expected_units
             + (sum of public pool gradients) / pool_batch_size

followed by AdamW on the adapters.

Floating point: the integer sum has exactly the stated sensitivity in each unit's own gradient.
In float32 that gradient is computed next to others, and matrix kernels may round a row
differently in other company; this second-order effect is not covered by the proof (about 1e-7
relative; the sensitivity tests measure below 1 + 1e-6 on real models). In shorter types the effect
would be a thousand times larger: there every unit is computed alone, and the bound is exact.

A step only queues work: it asks a GPU for no value, so the CPU is always ahead of it. What a step
found (the public loss) is read when somebody asks, after a chunk of steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import ClassVar, Final, TypeAlias

import torch
from torch import Tensor

from lada_secure.dpsgd.batching import PoissonSampler
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.gradient import GradientSource
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.dpsgd.noise_ahead import NoiseAhead
from lada_secure.dpsgd.parameters import STD_STEPS, DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.state import TrainingState
from lada_secure.dpsgd.unit_gradients import places_by_device, side_by_side
from lada_secure.errors import LocalProtocolError, ParameterError, TrainingFailed
from lada_secure.models.examples import (
    EncodedUnit,
    PrivateUnit,
    PublicOrder,
    RationaleExample,
    encode_example,
    encode_units,
)
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.models.transfer import sent

logger = logging.getLogger(__name__)

# Room for outputs of frozen layers.
FROZEN_CACHE_BYTES: Final = 512 * 2**20


def drawn_noise(count: int, device: torch.device) -> Tensor:
    """Fresh noise of one step in grid steps, (count,) int64 in the CPU's memory.

    Args: device: where it will be used; for a GPU the memory is page-locked.
    """
    found = torch.from_numpy(DiscreteGaussian(Fraction(STD_STEPS)).sample(count))
    if device.type != "cuda":
        return found
    # A thread is on the first device until it says otherwise.
    with torch.cuda.device(device):
        return found.pin_memory()


def noised_gradient(
    total: ClippedSum, privacy: DpSgdParameters, noise: Tensor | None = None
) -> Tensor:
    """(sum of clipped unit gradients + noise) / expected_units.

    The noise has STD_STEPS grid steps and clip_steps <= STD_STEPS / noise_multiplier, so its
    multiplier is never below the accounted one.

    Args: noise: of `drawn_noise`, used here for the first and last time; None draws it here.
    Returns: (d,) float64, over all trainable parameters in order.
    """
    whole = total.integers()
    if noise is None:
        noise = drawn_noise(whole.numel(), whole.device)
    whole += sent(noise, whole.device)
    # From here on everything is post-processing of the noised integers.
    return whole.double() * (privacy.l2_clip_norm / privacy.clip_steps / privacy.expected_units)


class Trainer:
    """Model, data and optimiser of one training run; `step` is one DP-SGD step.

    It is opened on public things, and gets its private units (`take_units`) once the first chunk
    of steps that is really computed is paid for. Steps are not paid for here: `distil` reserves
    before it calls `take_units` and `step`.
    """

    source_class: ClassVar[type[GradientSource]] = GradientSource

    def __init__(
        self,
        lm: LanguageModel,
        *,
        pool: Sequence[RationaleExample],
        privacy: DpSgdParameters,
        settings: TrainerSettings,
    ) -> None:
        """Check everything that can be checked without spending, and attach the engine."""
        self.lm = lm
        self.privacy = privacy
        self.settings = settings
        self.device = lm.device
        self._contrast = settings.loss.contrastive_weight > 0.0
        encoded_pool = tuple(encode_example(lm, one, contrast=self._contrast) for one in pool)
        public = privacy.pool_gradients == "public"
        self._public = encoded_pool if public else ()
        # Where pool samples are protected like records, each is a unit of its own.
        self._pool_units = tuple(
            EncodedUnit(unit_id=f"pool:{at}", examples=(example,))
            for at, example in enumerate(() if public else encoded_pool)
        )
        self._units: tuple[EncodedUnit, ...] | None = None
        self._order = PublicOrder(
            count=len(self._public), batch_size=settings.pool_batch_size, seed=settings.seed
        )
        lm.model.eval()
        self.engine = open_engine(
            lm.model, settings.engine, checkpoints=lm.placement.gradient_checkpointing
        )
        self.parameters = self.engine.parameters
        # In one kernel, and its count of steps is where the weights are.
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        self._losses: list[float | None] = []
        # Of the newest steps, where they were computed; None where there was no sample.
        self._unread: list[Tensor | None] = []
        self._noise = self._noise_ahead()
        try:
            scorer = RationaleScorer(lm.model, device=self.device, cache_bytes=FROZEN_CACHE_BYTES)
            if not scorer.finite_at_first:
                raise ParameterError(
                    "the model's loss on made-up tokens is NaN or infinite before training; "
                    "nothing was spent. Check the model's weights, or load it in float32"
                )
            self.source = self.source_class(
                engine=self.engine,
                scorer=scorer,
                loss=settings.loss,
                physical_batch_size=settings.physical_batch_size,
            )
            self.source.remember_reference(encoded_pool)
            self._check_public_loss()
        except BaseException:
            self.engine.close()
            raise

    def take_units(self, units: Sequence[PrivateUnit]) -> None:
        """Read the private units; the model's present weights are their reference.

        Total: a unit that cannot be encoded, or has no reference, adds nothing in any step.

        Args: units: bounded; may be empty. Paid for: the caller holds the reservation.
        """
        self._units = (*encode_units(self.lm, units, contrast=self._contrast), *self._pool_units)
        self._sampler = PoissonSampler(
            len(self._units), sampling_probability=self.privacy.sampling_probability
        )
        self.source.remember_reference_of_units(self._units)

    def _check_public_loss(self) -> None:
        # Only public samples may be looked at here: an error is an output too.
        first = [self._public[at] for at in self._order.batch(0)]
        losses = self.source.losses(first)
        if not bool(torch.isfinite(losses).all()):
            raise ParameterError(
                f"{int((~torch.isfinite(losses)).sum())} of the first {len(first)} pool samples "
                "have a loss of NaN or infinity before training; nothing was spent. Check the "
                "model's weights, or load it in float32"
            )

    def check_going_well(self, first_step: int) -> None:
        """Stop before more is paid for a run that is lost; looks at released and public values.

        Args: first_step: of the steps to judge, from 0; they are committed.
        Raises: TrainingFailed: weights are not finite, or no public loss since then was.
        """
        told = ""
        if not all(bool(torch.isfinite(one).all()) for one in self.parameters):
            told = "the weights hold NaN or infinity"
        elif self._order.batch(0) and set(self.public_losses[first_step:]) == {None}:
            told = "every public loss was NaN or infinity"
        if told:
            raise TrainingFailed(
                f"training steps {first_step + 1} to {self.steps_done}: {told}; stopped before "
                "more privacy is spent. Lower learning_rate, or load the model in float32"
            )

    @property
    def steps_done(self) -> int:
        """Steps taken so far, those of a restored state included."""
        return len(self._losses) + len(self._unread)

    @property
    def public_losses(self) -> list[float | None]:
        """Mean pool loss of every step so far; None without samples, or where it was not finite.

        Waits for the device: to be asked after a chunk of steps, not within one.
        """
        known = [one for one in self._unread if one is not None]
        values = iter(torch.stack(known).tolist() if known else ())
        for one in self._unread:
            loss = None if one is None else next(values)
            self._losses.append(loss if loss is not None and math.isfinite(loss) else None)
        self._unread.clear()
        return list(self._losses)

    def step(self) -> None:
        """Sample, clip, sum, noise, add the public gradient, update.

        Raises: TrainingFailed: its noise could not be drawn; nobody was sampled then.
        """
        try:
            noise = None if self._noise is None else self._noise.take()
            total = self._clipped_sum(self.draw())
            noised = noised_gradient(total, self.privacy, noise)
            self.update(noised * self.settings.private_weight)
        except BaseException:
            self._discard_noise()
            raise

    def _noise_ahead(self) -> NoiseAhead | None:
        """A GPU computes while the CPU draws; on a CPU drawing would take what computes."""
        how = self.settings.noise
        if how == "in_line" or (how == "auto" and self.device.type != "cuda"):
            return None
        count = sum(one.numel() for one in self.parameters)
        return NoiseAhead(partial(drawn_noise, count, self.parameters[0].device))

    def _discard_noise(self) -> None:
        if self._noise is not None:
            self._noise.discard()

    def draw(self) -> list[EncodedUnit]:
        """The units that join a step. Raises: LocalProtocolError: they were not read yet."""
        if self._units is None:
            raise LocalProtocolError("a training step before the private units were read")
        return [self._units[at] for at in self._sampler.draw()]

    def _clipped_sum(self, joined: Sequence[EncodedUnit]) -> ClippedSum:
        try:
            return self.source.clipped_sum(joined, ClippedSum(self.parameters, self.privacy))
        except Exception:
            # `clipped_sum` lets no unit's own failure out, so this is a defect that no single unit
            # decides. A step without private gradient, with all of its noise, still says less
            # than a process that ends.
            logger.warning("a step's private gradient could not be computed; its sum is zero")
            return ClippedSum(self.parameters, self.privacy)

    def update(self, private_gradient: Tensor) -> None:
        """The rest of a step, after noise: public stream and AdamW.

        A public gradient that is not finite anywhere is left out whole.

        Args: private_gradient: (d,), over all trainable parameters in order.
        """
        batch = [self._public[at] for at in self._order.batch(self.steps_done)]
        # First, for the engine may use .grad itself (opacus).
        gradients, mean_loss = self.source.public_gradient(batch)
        groups = places_by_device(gradients)
        blocks = [side_by_side([gradients[at].unsqueeze(0) for at in places]) for places in groups]
        finite = torch.stack([block.isfinite().all().to(self.device) for block in blocks]).all()
        sizes = [one.numel() for one in gradients]
        private = private_gradient.float().split_with_sizes(sizes)
        for places, block in zip(groups, blocks, strict=True):
            block.masked_fill_(~finite.to(block.device), 0.0)
            block.add_(torch.cat([private[at] for at in places]).to(block.device))
            parts = block.squeeze(0).split_with_sizes([sizes[at] for at in places])
            for at, part in zip(places, parts, strict=True):
                self.parameters[at].grad = part.view_as(self.parameters[at])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._unread.append(mean_loss if batch else None)

    def state(self, binding: str) -> TrainingState:
        """A copy of everything that the next step depends on, but for randomness."""
        tensors: dict[str, Tensor] = {}
        for at, one in enumerate(self.parameters):
            tensors[f"{at}.value"] = one.detach().cpu().clone()
            for name, moment in self.optimizer.state.get(one, {}).items():
                tensors[f"{at}.{name}"] = torch.as_tensor(moment).detach().cpu().clone()
        return TrainingState(
            binding=binding, public_losses=tuple(self.public_losses), tensors=tensors
        )

    def restore(self, state: TrainingState) -> None:
        """Go on after the steps of `state`. Raises: ParameterError: state of other parameters."""
        found: list[dict[str, Tensor]] = [{} for _ in self.parameters]
        for key, tensor in state.tensors.items():
            number, _, name = key.partition(".")
            if not number.isdigit() or int(number) >= len(found):
                raise ParameterError(f"training state: unexpected tensor {key!r}")
            found[int(number)][name] = tensor
        for one, tensors in zip(self.parameters, found, strict=True):
            if "value" not in tensors or tensors["value"].shape != one.shape:
                raise ParameterError("training state: weights are missing or have another shape")
        for one, tensors in zip(self.parameters, found, strict=True):
            one.data.copy_(tensors.pop("value"))
            self.optimizer.state[one] = {
                name: tensor.to(one.device, copy=True) for name, tensor in tensors.items()
            }
        self._losses, self._unread = list(state.public_losses), []
        self._discard_noise()

    def close(self) -> None:
        """Detach the engine from the model, and throw away noise that was not used."""
        if self._noise is not None:
            self._noise.close()
        self.engine.close()


# Opens the trainer of a run: `Trainer` itself, or one under audit.
TrainerFactory: TypeAlias = Callable[..., Trainer]
