"""The distillation loop: DP-SGD over privacy units, with public pool samples beside it.

One step (Abadi et al. 2016, Alg. 1, per unit instead of per row, and a second, public stream):

    gradient = private_weight * (sum of clipped unit gradients + noise) / expected_units
             + (sum of public pool gradients) / pool_batch_size

followed by AdamW on the adapters. `distil` pays for steps in chunks, before they are taken.

Floating point: the integer sum has exactly the stated sensitivity in each unit's own gradient.
That gradient is computed in float32 next to others, and matrix kernels may round a row
differently in other company; this second-order effect is not covered by the proof (about 1e-7
relative; the sensitivity tests measure below 1 + 1e-6 on real models).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.distillation.adapters import AdapterWeights, adapter_weights
from lada_secure.distillation.batching import PoissonSampler, PublicOrder, check_unit_sizes
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
from lada_secure.distillation.gradient import GradientSource
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.noise import DiscreteGaussian, float_gaussian
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.scoring import PathScorer
from lada_secure.distillation.state import (
    TrainingState,
    decode_state,
    encode_state,
    gather_state,
    restore_state,
)
from lada_secure.errors import LocalProtocolError, ParameterError
from lada_secure.privacy.ledger import DP_SGD, LedgerBook, ReleaseSpec, ReserveEntry
from lada_secure.privacy.released import Released, post_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Progress after a step; holds nothing that depends on private records beyond what is paid.

    step: from 1. public_loss: mean over the step's pool samples, None without public samples.
    epsilon: of everything in the ledger so far, this chunk of steps included.
    """

    step: int
    steps: int
    public_loss: float | None
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What happened, for the site's own eyes.

    `non_finite_units` counts unit gradients that were zeroed since the last resume. It depends on
    private records without noise: show it at the site, never send it.
    """

    engine: str
    device: str
    trainable_parameters: int
    public_losses: tuple[float | None, ...]
    resumed_at_step: int
    non_finite_units: int
    non_finite_public_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Result of `distil`: adapters that may leave, and a log that may not."""

    adapters: Released[AdapterWeights]
    log: TrainingLog


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
            self.source = GradientSource(
                engine=self.engine,
                scorer=PathScorer(
                    lm.model,
                    device=self.device,
                    cache_bytes=settings.frozen_cache_bytes,
                    autocast_dtype=settings.autocast_dtype(self.device),
                ),
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

    @property
    def steps_done(self) -> int:
        """Steps taken so far, those of a restored state included."""
        return len(self.public_losses)

    def step(self) -> float | None:
        """Sample, clip, sum, noise, add the public gradient, update. Returns: public loss."""
        joined = [self._units[at] for at in self._sampler.draw()]
        total = self.source.clipped_sum(
            joined, l2_clip_norm=self._privacy.l2_clip_norm, grid=self._privacy.grid()
        )
        self.non_finite_units += total.non_finite
        gradient = noised_gradient(total, self._privacy) * self._settings.private_weight
        return self.update(gradient)

    def update(self, private_gradient: Tensor) -> float | None:
        """The rest of a step, after noise: public stream and AdamW."""
        sizes = [one.numel() for one in self.parameters]
        parts = torch.split_with_sizes(private_gradient, sizes)
        for one, part in zip(self.parameters, parts, strict=True):
            one.grad = part.view_as(one).to(one.dtype, copy=True)
        loss = self._add_public_gradient()
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
        public = self.source.public_gradient(batch, count=self._settings.pool_batch_size)
        finite = all(bool(torch.isfinite(one).all()) for one in public.gradients)
        self.non_finite_public_steps += not finite
        for one, own, added in zip(self.parameters, private, public.gradients, strict=True):
            one.grad = own
            if finite and one.grad is not None:
                one.grad += added.to(one.dtype)
        return public.loss if math.isfinite(public.loss) else None

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


def distil(
    lm: LanguageModel,
    *,
    units: Sequence[PrivateUnit],
    pool: Sequence[PathExample],
    privacy: DpSgdParameters,
    settings: TrainerSettings,
    book: LedgerBook,
    spec: ReleaseSpec,
    progress: Callable[[StepReport], None] | None = None,
) -> Distilled:
    """Train the model's adapters in place on private units and pool samples, and release them.

    Steps are paid for in chunks of `steps_per_reservation`, each before its first step, and each
    chunk's result is the committed output of its reservation. A run that was interrupted and is
    started again with the same arguments takes committed chunks from the ledger's store and pays
    again, with fresh randomness, for the steps of the chunk that was not committed.

    Args:
        lm: with adapters (`attach_adapters`); its present weights are the reference model.
        units: bounded privacy units; may be empty. pool: public samples with paths; may be empty.
        privacy: the guarantee. settings: everything else.
        book: the site's ledger. spec: of `training_spec`; its mechanism, event, parameters and
        chunk are set here for every chunk of steps.
        progress: called after every step that is taken.
    Guarantees: adding or removing one unit changes the released adapters' distribution by at most
    what `privacy.event(privacy.steps)` costs (add/remove adjacency).
    Raises: ParameterError: before anything is spent. PrivacyBudgetExceeded, LedgerError: from the
    ledger, before the chunk's first step.
    """
    if not units and not pool:
        raise ParameterError("nothing to learn: no private units and no pool samples")
    with _threads(settings.threads):
        first = adapter_weights(lm)
        trainer = Trainer(lm, units=units, pool=pool, privacy=privacy, settings=settings)
        try:
            binding = _binding(first, pool, privacy, settings)
            return _train(trainer, lm, binding, privacy, settings, book, spec, progress)
        finally:
            trainer.close()


def _train(
    trainer: Trainer,
    lm: LanguageModel,
    binding: str,
    privacy: DpSgdParameters,
    settings: TrainerSettings,
    book: LedgerBook,
    spec: ReleaseSpec,
    progress: Callable[[StepReport], None] | None,
) -> Distilled:
    released: Released[TrainingState] | None = None
    resumed_at = 0
    starts = range(0, privacy.steps, settings.steps_per_reservation)
    for chunk, start in enumerate(starts):
        steps = min(settings.steps_per_reservation, privacy.steps - start)

        def take_steps(steps: int = steps) -> TrainingState:
            epsilon = _epsilon_now(book)
            for _ in range(steps):
                loss = trainer.step()
                if progress is not None:
                    progress(
                        StepReport(
                            step=trainer.steps_done,
                            steps=privacy.steps,
                            public_loss=loss,
                            epsilon=epsilon,
                        )
                    )
            return trainer.state(binding)

        released = book.release(
            _chunk_spec(spec, privacy, chunk=chunk, steps=steps),
            compute=take_steps,
            encode=encode_state,
            decode=lambda raw: decode_state(raw, binding=binding),
            after=() if released is None else (released,),
        )
        if released.value.step != trainer.steps_done:
            trainer.restore(released.value)
            resumed_at = trainer.steps_done
            logger.info("training chunk %d was committed before; going on after it", chunk)
    if released is None:
        raise ParameterError(f"steps: expected at least 1, got {privacy.steps}")
    log = TrainingLog(
        engine=trainer.engine.name,
        device=str(trainer.device),
        trainable_parameters=sum(one.numel() for one in trainer.parameters),
        public_losses=tuple(trainer.public_losses),
        resumed_at_step=resumed_at,
        non_finite_units=trainer.non_finite_units,
        non_finite_public_steps=trainer.non_finite_public_steps,
    )
    # The model holds exactly the released state now, so its adapters are a function of it.
    adapters = post_process(released, lambda _: adapter_weights(lm), label="adapters")
    return Distilled(adapters=adapters, log=log)


def _chunk_spec(
    spec: ReleaseSpec, privacy: DpSgdParameters, *, chunk: int, steps: int
) -> ReleaseSpec:
    return replace(
        spec,
        chunk=chunk,
        mechanism=DP_SGD,
        event=privacy.event(steps),
        parameters=_ledger_parameters(privacy),
    )


def _ledger_parameters(privacy: DpSgdParameters) -> dict[str, float]:
    return {
        "l2_clip_norm": float(privacy.l2_clip_norm),
        "expected_units": float(privacy.expected_units),
    }


def training_spec(
    privacy: DpSgdParameters,
    *,
    study_id: str,
    plan_hash: str,
    round_id: int,
    purpose: str = "training",
) -> ReleaseSpec:
    """The release that `distil` makes: all its steps as one event; `distil` cuts it into chunks.

    Raises: ParameterError: a name or hash of the wrong form.
    """
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose=purpose,
        mechanism=DP_SGD,
        event=privacy.event(privacy.steps),
        parameters=_ledger_parameters(privacy),
    )


def _epsilon_now(book: LedgerBook) -> float:
    """What the newest reservation says: it was made for the steps about to be taken."""
    for entry in reversed(book.entries()):
        if isinstance(entry, ReserveEntry):
            return entry.epsilon_after
    raise LocalProtocolError("training steps were started without a reservation in the ledger")


def _binding(
    first: AdapterWeights,
    pool: Sequence[PathExample],
    privacy: DpSgdParameters,
    settings: TrainerSettings,
) -> str:
    """Hash of what a stored state must agree with; device, engine and batch size may change."""
    optimiser = {
        name: getattr(settings, name)
        for name in (
            "pool_batch_size",
            "private_weight",
            "learning_rate",
            "weight_decay",
            "schedule",
            "steps_per_reservation",
            "seed",
        )
    }
    return sha256_hex(
        canonical_json(
            {
                "first_weights": first.sha256,
                "pool": [asdict(one) for one in pool],
                "privacy": asdict(privacy),
                "settings": {**optimiser, "loss": asdict(settings.loss)},
            }
        )
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
