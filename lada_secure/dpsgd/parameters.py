"""Settings of the trainer: what the guarantee depends on, and what only speed depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from lada_secure.dpsgd.clipping import DEFAULT_STD_STEPS, IntegerGrid
from lada_secure.dpsgd.engine import EngineName
from lada_secure.dpsgd.noise import NoiseKind
from lada_secure.errors import ParameterError
from lada_secure.models.loss import LossSettings
from lada_secure.privacy.accounting.events import DpSgdEvent

MAX_STEPS = 10**6


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ParameterError(f"{name}: expected a finite number above 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgdParameters:
    """Everything the guarantee depends on; all public and part of the study plan.

    noise_multiplier: noise std / l2_clip_norm. l2_clip_norm: > 0, units of a unit's gradient.
    sampling_probability: of a unit joining a step; from the plan, never from the secret data size.
    expected_units: fixed denominator of every step, > 0, whoever joined.
    steps: >= 1. pool_gradients: "public" adds exact gradients of pool samples, "private" makes
    every pool sample a privacy unit of its own that goes through sampling, clipping and noise.
    noise: "discrete_gaussian" (as proven) or "float_gaussian" (see `noise.float_gaussian`).
    std_steps: standard deviation of the discrete noise in grid steps, >= 16.

    One object makes sampler, clipping, noise and the accounted event, so they cannot disagree.
    """

    noise_multiplier: float
    l2_clip_norm: float
    sampling_probability: float
    expected_units: float
    steps: int
    pool_gradients: Literal["public", "private"]
    noise: NoiseKind = "discrete_gaussian"
    std_steps: int = DEFAULT_STD_STEPS

    def __post_init__(self) -> None:
        _positive("noise_multiplier", self.noise_multiplier)
        _positive("l2_clip_norm", self.l2_clip_norm)
        _positive("expected_units", self.expected_units)
        if not 0.0 < self.sampling_probability <= 1.0:
            raise ParameterError(
                "sampling_probability: expected above 0 and at most 1, got "
                f"{self.sampling_probability}"
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise ParameterError(f"steps: expected 1 to {MAX_STEPS}, got {self.steps}")
        if self.pool_gradients not in ("public", "private"):
            raise ParameterError(
                f"pool_gradients: expected 'public' or 'private', got {self.pool_gradients!r}"
            )
        if self.noise not in ("discrete_gaussian", "float_gaussian"):
            raise ParameterError(
                "noise: expected 'discrete_gaussian' or 'float_gaussian', got " + repr(self.noise)
            )
        self.event(1)
        self.grid()

    def event(self, steps: int) -> DpSgdEvent:
        """The accounted event of so many steps."""
        return DpSgdEvent(
            noise_multiplier=self.noise_multiplier,
            sampling_probability=self.sampling_probability,
            steps=steps,
        )

    def grid(self) -> IntegerGrid | None:
        """The integer grid of clipped gradients; None with float noise."""
        if self.noise == "float_gaussian":
            return None
        return IntegerGrid.for_noise(
            noise_multiplier=self.noise_multiplier, std_steps=self.std_steps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """Speed, memory and the optimiser: nothing here changes the guarantee.

    engine: "auto" takes `fused` where it applies. device: "auto" takes CUDA where there is one.
    threads: CPU threads, None leaves them as they are.
    precision: of the forward pass; gradients, sums and noise are float32 or wider always. In
    bfloat16 every unit has forward passes of its own, so that its gradient cannot depend on its
    company: slower in all but the largest models.
    physical_batch_size: examples per forward pass; a larger unit has one of its own.
    pool_batch_size: pool samples per step and denominator of the public gradient, 0 for none.
    private_weight: >= 0, public factor on the noised private gradient.
    learning_rate, weight_decay, schedule: AdamW's; "linear" falls to 0 over the run.
    steps_per_reservation: steps paid for at a time; a crash loses at most so many.
    frozen_cache_bytes: room for outputs of frozen layers. seed: order of the public pool.
    """

    engine: EngineName = "auto"
    device: str = "auto"
    threads: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    physical_batch_size: int = 16
    pool_batch_size: int = 8
    private_weight: float = 1.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    steps_per_reservation: int = 10
    frozen_cache_bytes: int = 512 * 2**20
    seed: int = 0
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        for name, value, least in (
            ("physical_batch_size", self.physical_batch_size, 1),
            ("pool_batch_size", self.pool_batch_size, 0),
            ("steps_per_reservation", self.steps_per_reservation, 1),
            ("frozen_cache_bytes", self.frozen_cache_bytes, 0),
            ("seed", self.seed, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            if value < least:
                raise ParameterError(f"{name}: expected at least {least}, got {value}")
        for name, number in (
            ("private_weight", self.private_weight),
            ("weight_decay", self.weight_decay),
        ):
            if not 0.0 <= number < float("inf"):
                raise ParameterError(f"{name}: expected a finite number >= 0, got {number}")
        for name, text, allowed in (
            ("engine", self.engine, ("auto", "fused", "opacus")),
            ("precision", self.precision, ("float32", "bfloat16")),
            ("schedule", self.schedule, ("constant", "linear")),
        ):
            if text not in allowed:
                raise ParameterError(f"{name}: expected one of {', '.join(allowed)}, got {text!r}")

    def torch_device(self) -> torch.device:
        """The device to train on. Raises: ParameterError: unknown, or CUDA where there is none."""
        if self.device == "auto":
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        else:
            try:
                device = torch.device(self.device)
            except RuntimeError as error:
                raise ParameterError(f"device: {self.device!r} is not known to torch") from error
        if device.type == "cuda":
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not found:
                raise ParameterError("device: 'cuda' was asked for, but torch sees no CUDA device")
            if (device.index or 0) >= found:
                raise ParameterError(
                    f"device: {self.device!r}, but torch sees {found} CUDA devices"
                )
        return device

    def autocast_dtype(self) -> torch.dtype | None:
        """Type of the forward pass; None for the weights' own."""
        return torch.bfloat16 if self.precision == "bfloat16" else None
