"""Settings of the trainer: what the guarantee depends on, and what only speed depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal

from lada_secure.dpsgd.engine import ENGINES, EngineName
from lada_secure.errors import ParameterError
from lada_secure.models.loss import LossSettings
from lada_secure.privacy.accounting.events import MAX_STEPS, DpSgdEvent
from lada_secure.ranges import above_zero, at_least, one_of, within, zero_or_more

# Standard deviation of the noise in grid steps.
STD_STEPS: Final = 2**20
_MIN_CLIP_STEPS: Final = 2**8
# Squared lengths up to 2^52 are exact in float64.
_MAX_CLIP_STEPS: Final = 2**26
# Below this, even units that all agree move the weights less than the noise does.
_DROWNED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgdParameters:
    """Everything the guarantee depends on; all public and part of the study plan.

    noise_multiplier: noise std / l2_clip_norm. l2_clip_norm: > 0, units of a unit's gradient.
    sampling_probability: of a unit joining a step; from the plan, never from the secret data size.
    expected_units: fixed denominator of every step, > 0, whoever joined.
    steps: >= 1. pool_gradients: "public" adds exact gradients of pool samples, "private" makes
    every pool sample a privacy unit of its own that goes through sampling, clipping and noise.

    One object makes sampler, clipping, noise and the accounted event, so they cannot disagree.
    """

    noise_multiplier: float
    l2_clip_norm: float
    sampling_probability: float
    expected_units: float
    steps: int
    pool_gradients: Literal["public", "private"]

    def __post_init__(self) -> None:
        above_zero(
            noise_multiplier=self.noise_multiplier,
            l2_clip_norm=self.l2_clip_norm,
            expected_units=self.expected_units,
        )
        within(1, MAX_STEPS, steps=self.steps)
        one_of(("public", "private"), pool_gradients=self.pool_gradients)
        # Both refuse what they cannot do.
        _ = self.event(1), self.clip_steps

    def event(self, steps: int) -> DpSgdEvent:
        """The accounted event of so many steps."""
        return DpSgdEvent(
            noise_multiplier=self.noise_multiplier,
            sampling_probability=self.sampling_probability,
            steps=steps,
        )

    @property
    def clip_steps(self) -> int:
        """The clip norm in whole steps of the grid that gradients are cut to.

        STD_STEPS / noise_multiplier rounded down, so that noise of STD_STEPS steps is never below
        noise_multiplier clip norms.
        Raises: ParameterError: noise so large or small that it would be under 2^8 or over 2^26.
        """
        steps = int(STD_STEPS / Fraction(self.noise_multiplier))
        if not _MIN_CLIP_STEPS <= steps <= _MAX_CLIP_STEPS:
            low, high = STD_STEPS / _MAX_CLIP_STEPS, STD_STEPS / _MIN_CLIP_STEPS
            raise ParameterError(
                f"noise_multiplier {self.noise_multiplier} does not fit a grid of {STD_STEPS} "
                f"steps per standard deviation; expected {low:.4g} to {high:.4g}"
            )
        return steps


def signal_to_noise(
    *, expected_units: float, noise_multiplier: float, parameters: int, steps: int = 1
) -> float:
    """Best-case ratio of the private gradient's length to the noise's, over `steps` steps.

    If all units agreed, the sum of a step were expected_units clip norms long; the noise is
    noise_multiplier sqrt(parameters) of them. Signal adds up over steps, noise by its square root.
    Needs no data.
    """
    return math.sqrt(steps) * expected_units / (noise_multiplier * math.sqrt(parameters))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalToNoiseEstimate:
    """What a run can achieve at best, told from public settings before anything is spent.

    parameters: how many numbers are trained. signal_to_noise: best case over the whole run. hint:
    None where it looks fine.
    """

    parameters: int
    signal_to_noise: float
    hint: str | None


def estimate_signal_to_noise(privacy: DpSgdParameters, *, parameters: int) -> SignalToNoiseEstimate:
    """Judge privacy parameters against the number of trainable parameters, > 0."""
    ratio = signal_to_noise(
        expected_units=privacy.expected_units,
        noise_multiplier=privacy.noise_multiplier,
        parameters=parameters,
        steps=privacy.steps,
    )
    hint = (
        f"noise would drown the private gradients: best-case signal-to-noise {ratio:.2g} over "
        f"{privacy.steps} steps with {parameters} trainable parameters. Lower the rank, adapt "
        "fewer layers (last_layers), train B alone (train_a = false) or a core (adapter_core), "
        "raise expected_units, or lower private_weight"
    )
    return SignalToNoiseEstimate(
        parameters=parameters, signal_to_noise=ratio, hint=hint if ratio < _DROWNED else None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """Speed, memory and the optimiser: nothing here changes the guarantee.

    Device and type of the forward pass are the model's (`LanguageModel.placement`); gradients, sums
    and noise are float32 or wider always. With a base that is shorter than float32, or packed,
    every unit has forward passes of its own, so that its gradient cannot depend on its company:
    slower in all but the largest models.

    engine: "auto" takes `fused` where it applies. threads: CPU threads, None leaves them.
    noise: "ahead" draws the next step's in a thread, "in_line" when it is needed; "auto" draws
    ahead where a GPU computes meanwhile.
    physical_batch_size: examples per forward pass; a larger unit has one of its own.
    pool_batch_size: pool samples per step and denominator of the public gradient, 0 for none.
    private_weight: >= 0, public factor on the noised private gradient.
    learning_rate: AdamW's, > 0; there is no weight decay.
    steps_per_reservation: steps paid for at a time; a crash loses at most so many.
    seed: order of the public pool.
    """

    engine: EngineName = "auto"
    threads: int | None = None
    noise: Literal["auto", "ahead", "in_line"] = "auto"
    physical_batch_size: int = 16
    pool_batch_size: int = 8
    private_weight: float = 1.0
    learning_rate: float = 1e-3
    steps_per_reservation: int = 10
    seed: int = 0
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        above_zero(learning_rate=self.learning_rate)
        at_least(
            1,
            physical_batch_size=self.physical_batch_size,
            steps_per_reservation=self.steps_per_reservation,
            threads=1 if self.threads is None else self.threads,
        )
        at_least(0, pool_batch_size=self.pool_batch_size, seed=self.seed)
        zero_or_more(private_weight=self.private_weight)
        one_of(ENGINES, engine=self.engine)
        one_of(("auto", "ahead", "in_line"), noise=self.noise)
