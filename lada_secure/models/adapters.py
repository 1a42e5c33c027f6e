"""LoRA adapters, whole or as cores between frozen factors: attaching, counting, byte form."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lada_secure.canonical import sha256_hex
from lada_secure.errors import ParameterError
from lada_secure.models.cores import CoreFactors, cores_of, plain_lora_state, put_cores
from lada_secure.models.loading import LanguageModel
from lada_secure.ranges import above_zero, at_least

_FORMAT: Final = "lada-adapters/1"
# First match wins: the projections of query and value, as in Hu et al. 2022, section 7.1.
_USUAL_TARGETS: Final = (
    ("q_proj", "v_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("query", "value"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """Which low-rank adapters to train. Fewer parameters mean less noise in total.

    rank: 1 or more. alpha: the update is scaled by alpha / rank.
    target_modules: names of linear layers; empty picks the attention's query and value.
    last_layers: adapt this many layers at the top only, None for all; layers below run once per
    example and cost no backward pass.
    train_a: False keeps the random A of every adapter and trains B alone (Sun et al. 2024,
    FFA-LoRA): half the parameters, and the update is linear in what is noised.
    core: keeps A and B both and trains a (rank, rank) matrix between them alone (see `cores`);
    only with train_a False. None is LoRA as it was made.
    seed: of the initial A, or of a core's factors; public.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ()
    last_layers: int | None = None
    train_a: bool = True
    core: CoreFactors | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)
        above_zero(alpha=self.alpha)
        if self.last_layers is not None:
            at_least(1, last_layers=self.last_layers)
        if self.core is not None and self.train_a:
            raise ParameterError(
                f"core {self.core}: trained between frozen factors, which train_a = true "
                "contradicts; set it to false"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """Adapter weights in safetensors form: plain bytes, no code, float32."""

    data: bytes

    @property
    def sha256(self) -> str:
        """Hash of the bytes, 64 hexadecimal digits."""
        return sha256_hex(self.data)


def adapter_targets(model: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    """Names of the linear layers to adapt: the wanted ones, or the usual ones of attention.

    Raises: ParameterError: the model has no linear layer of such a name.
    """
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if wanted:
        unknown = sorted(set(wanted) - linear)
        if unknown:
            raise ParameterError(
                f"target_modules: no linear layer is called {', '.join(unknown)}; "
                f"the model has {', '.join(sorted(linear))}"
            )
        return list(wanted)
    for usual in _USUAL_TARGETS:
        if set(usual) <= linear:
            return list(usual)
    raise ParameterError(
        "target_modules: found no attention projections by their usual names; name some of "
        f"{', '.join(sorted(linear))}"
    )


def attach_adapters(lm: LanguageModel, settings: AdapterSettings) -> LanguageModel:
    """Put fresh LoRA adapters on a model; everything else is frozen.

    B, or the core, starts at zero, so the model still answers as before; A is drawn from `seed`
    alone, but for factors of the weights.
    Raises: ParameterError: unknown target modules, more layers than there are, a core that a layer
    is too small or packed for, or a model that has adapters already.
    """
    if callable(getattr(lm.model, "get_base_model", None)):
        raise ParameterError(f"model {lm.name!r} has adapters already")
    return replace(lm, model=adapted_model(lm.model, settings))


def adapted_model(model: Any, settings: AdapterSettings) -> Any:
    """See `attach_adapters`; on a model without numbers nothing is drawn.

    Raises: ParameterError: as there, but for adapters that are there already.
    """
    count = int(model.config.num_hidden_layers)
    layers: list[int] | None = None
    if settings.last_layers is not None:
        if settings.last_layers > count:
            raise ParameterError(
                f"last_layers: the model has {count} layers, got {settings.last_layers}"
            )
        layers = list(range(count - settings.last_layers, count))
    targets = adapter_targets(model, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        layers_to_transform=layers,
        fan_in_fan_out="c_attn" in targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for a property that transformers has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(settings.seed)
        adapted = get_peft_model(model, config)
        if settings.core is not None:
            put_cores(adapted, settings.core, seed=settings.seed)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name and not settings.train_a:
            parameter.requires_grad_(False)
    adapted.eval()
    return adapted


def trainable_parameters(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Trainable parameters in the model's order. Raises: ParameterError: there is none."""
    found = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    if not found:
        raise ParameterError(
            "the model has no trainable parameter; attach adapters with attach_adapters first"
        )
    return found


def parameter_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in trainable_parameters(model))


def _adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the byte form holds: of cores these alone, for whoever has the model has the rest."""
    return cores_of(model) or {
        name: parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name or parameter.requires_grad
    }


def adapter_weights(lm: LanguageModel) -> AdapterWeights:
    """The model's adapters as bytes. Not yet a release: `distil` makes it one."""
    tensors = _adapter_tensors(lm.model)
    if not tensors:
        raise ParameterError(f"model {lm.name!r} has no adapters")
    return weights_of(
        {
            name: parameter.detach().to(torch.float32).cpu().contiguous().clone()
            for name, parameter in tensors.items()
        }
    )


def weights_of(tensors: dict[str, Tensor]) -> AdapterWeights:
    """Tensors of adapters, float32 on the CPU, as bytes."""
    return AdapterWeights(data=save_safetensors(tensors, metadata={"format": _FORMAT}))


def parse_adapter_tensors(weights: AdapterWeights) -> dict[str, Tensor]:
    """Tensors of adapter bytes, all float32 and finite.

    Raises: ParameterError: no safetensors, another type, NaN or infinity.
    """
    try:
        tensors: dict[str, Tensor] = load_safetensors(weights.data)
    except SafetensorError as error:
        raise ParameterError(f"adapter weights are no safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ParameterError(f"adapter weights: {name} is {tensor.dtype}, expected float32")
        if not bool(torch.isfinite(tensor).all()):
            raise ParameterError(f"adapter weights: {name} holds NaN or infinity")
    return tensors


def load_adapters(lm: LanguageModel, weights: AdapterWeights) -> None:
    """Overwrite the model's adapters; all or nothing.

    Raises: ParameterError: bytes that are no adapters, or adapters of another model or settings.
    """
    tensors = parse_adapter_tensors(weights)
    own = _adapter_tensors(lm.model)
    if set(tensors) != set(own):
        odd = sorted(set(tensors) ^ set(own))[0]
        raise ParameterError(
            f"adapter weights are for another model or other settings: {odd} is on one side only"
        )
    for name, parameter in own.items():
        if tensors[name].shape != parameter.shape:
            raise ParameterError(
                f"adapter weights: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save_as_lora(lm: LanguageModel, folder: Path) -> None:
    """Write the model's adapters in PEFT's format, a core as A = R A0 and B = B0.

    Raises: OSError: the folder cannot be written.
    """
    model: Any = lm.model
    model.save_pretrained(
        folder, state_dict=plain_lora_state(lm.model), save_embedding_layers=False
    )


def load_lora(model: Any, folder: Path) -> Any:
    """Put adapters in PEFT's format on a bare model of transformers, as any program would.

    Raises: whatever PEFT does where they do not fit.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        found = PeftModel.from_pretrained(model, folder)
    found.eval()
    return found


@contextmanager
def adapters_kept(lm: LanguageModel) -> Iterator[AdapterWeights]:
    """Give the model its present adapters back in the end; they are what `with` binds."""
    before = adapter_weights(lm)
    try:
        yield before
    finally:
        load_adapters(lm, before)
