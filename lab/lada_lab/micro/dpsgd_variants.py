"""The five ways of one training step that `lada bench dpsgd` compares, each in its own process.

All take the same model, the same rows and the same loss (mean cross-entropy of every token but the
first, per row) and end with AdamW on the adapters:

| name | step |
|---|---|
| plain | peft LoRA, autograd, no privacy |
| fused_nonprivate | the fused engine's backward pass, summed, no clipping, no noise |
| fused | per-unit gradients by the fused engine, clipping, discrete Gaussian noise |
| opacus | the same by the opacus engine |
| ghost | opacus ghost clipping with its own optimiser and float noise |

The base has the same type in all of them, float32 or bfloat16, and the adapters are float32. With
gradient checkpointing all compute layers again on the way back; ghost clipping cannot.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch.nn import functional

from lada_lab.micro.dpsgd_models import BenchModel, BenchPlace, build_model, make_tokens
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.engine import EngineName, open_engine
from lada_secure.dpsgd.gradient import GradientSource
from lada_secure.dpsgd.noise_ahead import NoiseAhead
from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.dpsgd.trainer import drawn_noise, noised_gradient
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing
from lada_secure.models.examples import EncodedExample, EncodedUnit, TokenRow
from lada_secure.models.loss import LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer

Variant: TypeAlias = Literal["plain", "fused_nonprivate", "fused", "opacus", "ghost"]
VARIANTS: tuple[Variant, ...] = ("plain", "fused_nonprivate", "fused", "opacus", "ghost")

_LEARNING_RATE = 1e-3
_CLIP = 1.0
_NOISE_MULTIPLIER = 1.0


# A GPU's step is short beside the clock's noise, so several are timed at once.
_GPU_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step.

    step_s: CPU seconds of the process; wall seconds on a GPU. noise_s: of which drawing noise.
    peak_bytes: above the idle state; resident memory, or torch's own on a GPU.
    process_bytes: the most that the process ever held in a step, weights and libraries included.
    """

    step_s: float
    noise_s: float
    peak_bytes: int
    process_bytes: int


def _row_losses(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(tokens.shape[0], -1).mean(1)


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def _plain_step(model: Any, place: BenchPlace) -> Callable[[torch.Tensor], None]:
    model.eval()
    device = place.torch_device()
    layers = checkpointed_layers(model) if place.gradient_checkpointing else None
    optimizer = torch.optim.AdamW(_trained(model), lr=_LEARNING_RATE, fused=True)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        context: AbstractContextManager[None] = nullcontext()
        if layers is not None:
            context = checkpointing(layers)
        with context:
            loss = _row_losses(model, tokens.to(device)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ghost_step(model: Any, place: BenchPlace) -> Callable[[torch.Tensor], None]:
    from opacus.grad_sample import GradSampleHooksFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    model.train()
    device = place.torch_device()
    hooks = GradSampleHooksFastGradientClipping(
        model, max_grad_norm=_CLIP, use_ghost_clipping=True, strict=False
    )
    optimizers: dict[int, Any] = {}
    adamw = torch.optim.AdamW(_trained(model), lr=_LEARNING_RATE, fused=True)

    def step(tokens: torch.Tensor) -> None:
        size = tokens.shape[0]
        if size not in optimizers:
            optimizers[size] = DPOptimizerFastGradientClipping(
                adamw,
                noise_multiplier=_NOISE_MULTIPLIER,
                max_grad_norm=_CLIP,
                expected_batch_size=size,
            )
        optimizer = optimizers[size]
        optimizer.zero_grad()
        losses = _row_losses(model, tokens.to(device))
        loss = DPTensorFastGradientClipping(hooks, optimizer, losses, "mean")
        loss.backward()
        optimizer.step()

    return step


class PrivateSteps:
    """Steps of one engine on tokens.

    Args: records: rows of a unit, >= 1; where the base is shorter than float32, they alone share a
    forward pass.
    """

    def __init__(
        self, model: Any, place: BenchPlace, engine: EngineName, *, records: int = 1
    ) -> None:
        self._records = records
        device = place.torch_device()
        self.engine = open_engine(model, engine, checkpoints=place.gradient_checkpointing)
        self._optimizer = torch.optim.AdamW(self.engine.parameters, lr=_LEARNING_RATE, fused=True)
        self._source = GradientSource(
            engine=self.engine,
            scorer=RationaleScorer(model, device=device),
            loss=LossSettings(contrastive_weight=0.0),
            physical_batch_size=2**20,
        )
        count = sum(one.numel() for one in self.engine.parameters)
        self._noise = None
        if device.type == "cuda":
            self._noise = NoiseAhead(partial(drawn_noise, count, device))

    def not_private(self, tokens: torch.Tensor) -> None:
        """A step with the exact gradient of the mean loss."""
        self._update(self._source.public_gradient(_examples(tokens))[0])

    def private(self, tokens: torch.Tensor) -> None:
        """A step with clipping and noise."""
        noise = None if self._noise is None else self._noise.take()
        noised = self.noised(tokens, noise).float()
        sizes = [one.numel() for one in self.engine.parameters]
        self._update(torch.split_with_sizes(noised, sizes))

    def noised(self, tokens: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """The noised gradient, (d,) float64. noise: of `drawn_noise`; None draws it."""
        examples = _examples(tokens)
        size = self._records
        units = [
            EncodedUnit(unit_id=str(first), examples=tuple(examples[first : first + size]))
            for first in range(0, len(examples), size)
        ]
        privacy = DpSgdParameters(
            noise_multiplier=_NOISE_MULTIPLIER,
            l2_clip_norm=_CLIP,
            sampling_probability=1.0,
            expected_units=float(len(units)),
            steps=1,
            pool_gradients="public",
        )
        total = self._source.clipped_sum(units, ClippedSum(self.engine.parameters, privacy))
        return noised_gradient(total, privacy, noise)

    def close(self) -> None:
        """Detach the engine."""
        if self._noise is not None:
            self._noise.close()
        self.engine.close()

    def _update(self, parts: Sequence[torch.Tensor]) -> None:
        for one, part in zip(self.engine.parameters, parts, strict=True):
            one.grad = part.view_as(one).to(one.device)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _examples(tokens: torch.Tensor) -> list[EncodedExample]:
    rows = [TokenRow(tokens=tuple(row), target_start=1) for row in tokens.tolist()]
    return [
        EncodedExample(example_id=str(at), path=row, rejected=None) for at, row in enumerate(rows)
    ]


def update_gap(
    engine: EngineName,
    shape: BenchModel,
    place: BenchPlace,
    *,
    sequence_length: int,
    batch_size: int,
) -> float:
    """How far an engine's update is from that of a float32 base without checkpointing.

    Both get one and the same noise. Returns: the distance over the length of the exact sum, before
    noise.
    """
    plainly = replace(place, dtype="float32", gradient_checkpointing=False)
    found = []
    noise = None
    for where in (plainly, place):
        model = build_model(shape, where)
        tokens = make_tokens(
            int(model.config.vocab_size), sequence_length=sequence_length, batch_size=batch_size
        )
        steps = PrivateSteps(model, where, engine)
        try:
            count = sum(one.numel() for one in steps.engine.parameters)
            noise = drawn_noise(count, where.torch_device()) if noise is None else noise
            if where is plainly:
                found.append(steps.noised(tokens, torch.zeros_like(noise)))
            found.append(steps.noised(tokens, noise))
        finally:
            steps.close()
    exact, wanted, got = found
    return float((got - wanted).norm() / exact.norm())


def make_step(
    variant: Variant, model: Any, place: BenchPlace | None = None
) -> Callable[[torch.Tensor], None]:
    """A function that takes one training step on (rows, length) int64 tokens of the CPU.

    Args: model: of `build_model`, at the same place.
    """
    where = place or BenchPlace()
    if variant == "plain":
        return _plain_step(model, where)
    if variant == "ghost":
        return _ghost_step(model, where)
    steps = PrivateSteps(model, where, "opacus" if variant == "opacus" else "fused")
    return steps.not_private if variant == "fused_nonprivate" else steps.private


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


class _CpuMeter:
    """CPU seconds and resident bytes of this process."""

    def __init__(self) -> None:
        self._idle = _status_bytes("VmRSS")

    def measure(self, work: Callable[[], None]) -> tuple[float, int, int]:
        # "5" resets the peak of the resident set to what is resident now (Linux, proc(5)).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = time.process_time()
        work()
        seconds = time.process_time() - before
        peak = _status_bytes("VmHWM")
        return seconds, peak - self._idle, peak


class _GpuMeter:
    """Wall seconds between two synchronisations, and bytes of torch's own allocations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._idle = torch.cuda.memory_allocated(device)

    def measure(self, work: Callable[[], None]) -> tuple[float, int, int]:
        torch.cuda.reset_peak_memory_stats(self._device)
        torch.cuda.synchronize(self._device)
        before = time.perf_counter()
        for _ in range(_GPU_STEPS):
            work()
        torch.cuda.synchronize(self._device)
        seconds = (time.perf_counter() - before) / _GPU_STEPS
        peak = torch.cuda.max_memory_allocated(self._device)
        return seconds, peak - self._idle, peak


def _noise_seconds(variant: Variant, model: Any, device: torch.device) -> float:
    """What drawing a step's discrete noise takes, on the clock of the step."""
    if variant not in ("fused", "opacus"):
        return 0.0
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    count = sum(one.numel() for one in _trained(model))
    before = clock()
    drawn_noise(count, device)
    return clock() - before


def serve(pipe: Connection, variant: Variant, shape: BenchModel, place: BenchPlace) -> None:
    """Body of a worker: builds one variant, then takes a step for every (length, batch) asked.

    Answers each with `Measured`; None ends it.
    """
    torch.set_num_threads(place.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    device = place.torch_device()
    model = build_model(shape, place)
    step = make_step(variant, model, place)
    vocabulary = int(model.config.vocab_size)
    with torch.no_grad():
        # Weights from a file are read when they are first used: that is no part of a step.
        for one in model.parameters():
            one.sum()
    meter = _GpuMeter(device) if device.type == "cuda" else _CpuMeter()
    pipe.send(sum(one.numel() for one in _trained(model)))
    while (asked := pipe.recv()) is not None:
        tokens = make_tokens(vocabulary, sequence_length=asked[0], batch_size=asked[1])
        seconds, peak, process = meter.measure(partial(step, tokens))
        pipe.send(
            Measured(
                step_s=seconds,
                noise_s=_noise_seconds(variant, model, device),
                peak_bytes=peak,
                process_bytes=process,
            )
        )
    pipe.close()
