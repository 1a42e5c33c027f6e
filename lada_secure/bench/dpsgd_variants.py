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
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lada_secure.distillation.engine_choice import open_engine
from lada_secure.distillation.examples import EncodedExample, EncodedUnit, TokenRow
from lada_secure.distillation.gradient import GradientSource
from lada_secure.distillation.loss import LossSettings
from lada_secure.distillation.parameters import DpSgdParameters
from lada_secure.distillation.scoring import PathScorer
from lada_secure.distillation.trainer import noised_gradient

Variant: TypeAlias = Literal["plain", "fused_nonprivate", "fused", "opacus", "ghost"]
VARIANTS: tuple[Variant, ...] = ("plain", "fused_nonprivate", "fused", "opacus", "ghost")

_LEARNING_RATE = 1e-3
_CLIP = 1.0
_NOISE_MULTIPLIER = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """A Llama model from its configuration, with LoRA on query and value of every layer."""

    layers: int = 4
    hidden_size: int = 256
    vocabulary: int = 4096
    rank: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step: CPU seconds of the process, and its peak resident bytes above its idle state."""

    cpu_s: float
    peak_bytes: int


def build_model(shape: BenchModel) -> Any:
    """The model with adapters; the same weights for the same shape."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=4 * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden_size // 64,
        num_key_value_heads=shape.hidden_size // 64,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        lora = LoraConfig(
            r=shape.rank,
            lora_alpha=2 * shape.rank,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, lora)


def make_tokens(shape: BenchModel, *, sequence_length: int, batch_size: int) -> torch.Tensor:
    """(batch_size, sequence_length) int64, the same for the same arguments."""
    generator = torch.Generator().manual_seed(sequence_length * 1000 + batch_size)
    return torch.randint(shape.vocabulary, (batch_size, sequence_length), generator=generator)


def _row_losses(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(tokens.shape[0], -1).mean(1)


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def _plain_step(model: Any) -> Callable[[torch.Tensor], None]:
    model.eval()
    optimizer = torch.optim.AdamW(_trained(model), lr=_LEARNING_RATE)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        _row_losses(model, tokens).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ghost_step(model: Any) -> Callable[[torch.Tensor], None]:
    from opacus.grad_sample import GradSampleHooksFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    model.train()
    hooks = GradSampleHooksFastGradientClipping(
        model, max_grad_norm=_CLIP, use_ghost_clipping=True, strict=False
    )
    optimizers: dict[int, Any] = {}
    adamw = torch.optim.AdamW(_trained(model), lr=_LEARNING_RATE)

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
        loss = DPTensorFastGradientClipping(hooks, optimizer, _row_losses(model, tokens), "mean")
        loss.backward()
        optimizer.step()

    return step


def _engine_step(model: Any, variant: Variant) -> Callable[[torch.Tensor], None]:
    engine = open_engine(model, "opacus" if variant == "opacus" else "fused")
    optimizer = torch.optim.AdamW(engine.parameters, lr=_LEARNING_RATE)
    source = GradientSource(
        engine=engine,
        scorer=PathScorer(model, device=torch.device("cpu")),
        loss=LossSettings(contrastive_weight=0.0),
        physical_batch_size=2**20,
    )

    def step(tokens: torch.Tensor) -> None:
        rows = [TokenRow(tokens=tuple(row), target_start=1) for row in tokens.tolist()]
        examples = [
            EncodedExample(example_id=str(at), path=row, own_path=None)
            for at, row in enumerate(rows)
        ]
        if variant == "fused_nonprivate":
            parts = source.public_gradient(examples, count=len(examples)).gradients
        else:
            privacy = DpSgdParameters(
                noise_multiplier=_NOISE_MULTIPLIER,
                l2_clip_norm=_CLIP,
                sampling_probability=1.0,
                expected_units=float(len(examples)),
                steps=1,
                pool_gradients="public",
            )
            units = [EncodedUnit(unit_id=one.example_id, examples=(one,)) for one in examples]
            total = source.clipped_sum(units, l2_clip_norm=_CLIP, grid=privacy.grid())
            sizes = [one.numel() for one in engine.parameters]
            parts = torch.split_with_sizes(noised_gradient(total, privacy), sizes)
        for one, part in zip(engine.parameters, parts, strict=True):
            one.grad = part.view_as(one).to(one.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_step(variant: Variant, model: Any) -> Callable[[torch.Tensor], None]:
    """A function that takes one training step on (rows, length) int64 tokens."""
    if variant == "plain":
        return _plain_step(model)
    if variant == "ghost":
        return _ghost_step(model)
    return _engine_step(model, variant)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def serve(pipe: Connection, variant: Variant, shape: BenchModel) -> None:
    """Body of a worker: builds one variant, then takes a step for every (length, batch) asked.

    Answers each with `Measured`; None ends it.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    step = make_step(variant, build_model(shape))
    idle = _status_bytes("VmRSS")
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        tokens = make_tokens(shape, sequence_length=asked[0], batch_size=asked[1])
        # "5" resets the peak of the resident set to what is resident now (Linux, proc(5)).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = time.process_time()
        step(tokens)
        seconds = time.process_time() - before
        pipe.send(Measured(cpu_s=seconds, peak_bytes=_status_bytes("VmHWM") - idle))
    pipe.close()
