"""Cores: adapters that train a small square matrix between two frozen, public factors.

The update of a linear layer with weights W (out, in) is B0 R A0 with A0 (r, in) and B0 (out, r)
frozen and R (r, r) trained: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), for DP-SGD so that
noise falls on r x r numbers instead of r x (in + out). R starts at zero, so that the model starts
as it was. Both factors are orthonormal, so that R is as long as the update that it makes.

Factors come from the plan's seed, or from the seed and W: both are public, and whoever has the
model can make them again. So bytes of adapters hold cores alone, and a core's name says how its
factors are made: cores between other factors are other parameters, and refused as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final, Literal, TypeAlias, cast

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lada_secure.errors import ParameterError

# "seed": drawn from it. "weights": nearly the top singular vectors of the layer's own weights.
CoreFactors: TypeAlias = Literal["seed", "weights"]

# Halko, Martinsson and Tropp 2011, section 4.5: a few powers suffice where the spectrum is flat.
_OVERSAMPLING: Final = 8
_POWERS: Final = 4
# How peft calls a model that it has adapted.
_PEFT_PREFIX: Final = "base_model.model."


class CoreAndBasis(nn.Module):
    """In the place of an adapter's B: x -> B0 (R x). The core R is trained, the basis B0 is not.

    recipe: how the factors are made; the name of the core among the parameters.
    """

    bias: None = None

    def __init__(self, basis: Tensor, recipe: str) -> None:
        super().__init__()
        self._recipe = recipe
        rank = int(basis.shape[1])
        self.basis = nn.Parameter(basis, requires_grad=False)
        core = nn.Linear(rank, rank, bias=False, device=basis.device, dtype=basis.dtype)
        nn.init.zeros_(core.weight)
        self.add_module(recipe, core)

    @property
    def core(self) -> nn.Parameter:
        """R, (r, r)."""
        found: nn.Parameter = self.get_submodule(self._recipe).get_parameter("weight")
        return found

    @property
    def weight(self) -> Tensor:
        """What B is in plain LoRA, (out, r): peft merges it, and asks for its type."""
        return self.basis @ self.core

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., r). Returns: (..., out)."""
        # Through the core as a layer of its own, which Opacus' hooks know.
        return functional.linear(self.get_submodule(self._recipe)(hidden), self.basis)


def put_cores(model: nn.Module, factors: CoreFactors, *, seed: int) -> None:
    """Let every fresh LoRA of a model become a core between frozen factors.

    On a model without numbers (torch's meta device) only the shapes are made.

    Raises: ParameterError: a rank above a layer's smaller side, or factors from weights that are
        packed or not here.
    """
    recipe = f"core_{factors}_{seed}"
    on_meta = all(one.is_meta for one in model.parameters())
    for name, layer in _lora_layers(model):
        adapter = layer.active_adapters[0]
        lora_a: nn.Linear = layer.lora_A[adapter]
        lora_b: nn.Linear = layer.lora_B[adapter]
        rank, inputs, outputs = lora_a.out_features, lora_a.in_features, lora_b.out_features
        if rank > min(inputs, outputs):
            raise ParameterError(
                f"adapter_rank {rank}: {name} maps {inputs} to {outputs} numbers, and a core "
                "between orthonormal factors is no larger than the smaller; lower the rank or name "
                "other adapter_targets"
            )
        basis = torch.empty_like(lora_b.weight.detach())
        if not on_meta:
            generator = torch.Generator().manual_seed(_layer_seed(seed, name))
            if factors == "seed":
                left, right = _random_factors(inputs, outputs, rank, generator)
            else:
                left, right = top_singular_vectors(_weights(name, layer), rank, generator)
            basis.copy_(left)
            with torch.no_grad():
                lora_a.weight.copy_(right)
        lora_a.weight.requires_grad_(False)
        layer.lora_B[adapter] = CoreAndBasis(basis, recipe)


def cores_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained matrices of a model's cores by name; empty where it has none."""
    return {
        f"{name}.{part._recipe}.weight": part.core
        for name, part in model.named_modules()
        if isinstance(part, CoreAndBasis)
    }


def plain_lora_state(model: nn.Module) -> dict[str, Any]:
    """The model's state with every core as plain LoRA: A = R A0 and B = B0.

    What another program reads that knows LoRA alone. The state itself where there is no core.
    """
    state: dict[str, Any] = dict(model.state_dict())
    for name, part in model.named_modules():
        if not isinstance(part, CoreAndBasis):
            continue
        # ...lora_B.default beside ...lora_A.default.
        at_a = ".lora_A.".join(name.rsplit(".lora_B.", 1)) + ".weight"
        state[at_a] = part.core.detach() @ state[at_a]
        state[f"{name}.weight"] = state.pop(f"{name}.basis")
        del state[f"{name}.{part._recipe}.weight"]
    return state


def top_singular_vectors(
    weights: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Nearly the first `rank` singular vectors, in float64 on the CPU.

    Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1: exact for large gaps of the spectrum.
    The same generator and weights give the same vectors: the largest entry of each left vector is
    positive, and float64 leaves what rounding differs below the last bit of float32.

    Args: weights: (out, in). rank: 1 to the smaller side.
    Returns: left (out, rank) with orthonormal columns, right (rank, in) with orthonormal rows.
    """
    wide = weights.detach().to("cpu", torch.float64)
    columns = min(rank + _OVERSAMPLING, *wide.shape)
    probe = torch.randn((wide.shape[1], columns), generator=generator, dtype=torch.float64)
    found: Tensor = torch.linalg.qr(wide @ probe)[0]
    for _ in range(_POWERS):
        found = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ found)[0])[0]
    inner, _, right = torch.linalg.svd(found.T @ wide, full_matrices=False)
    left: Tensor = (found @ inner)[:, :rank]
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0.0, -1.0, 1.0).to(torch.float64)
    return left * signs, right[:rank] * signs.T


def _random_factors(
    inputs: int, outputs: int, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Orthonormal columns (outputs, rank) and rows (rank, inputs), uniform, float64."""
    left, right = (
        _orthonormal(torch.randn((size, rank), generator=generator, dtype=torch.float64))
        for size in (outputs, inputs)
    )
    return left, right.T


def _orthonormal(gaussian: Tensor) -> Tensor:
    """Q of QR with a positive diagonal of R: one answer, and uniform (Mezzadri 2007)."""
    q, r = torch.linalg.qr(gaussian)
    return cast(Tensor, q) * torch.where(r.diagonal() < 0.0, -1.0, 1.0)


def _layer_seed(seed: int, name: str) -> int:
    """A generator's seed for one layer, whatever layers come before it."""
    text = f"lada/1/core/{seed}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _weights(name: str, layer: LoraLayer) -> Tensor:
    """A layer's weights, (out, in)."""
    base = layer.get_base_layer()
    weight: Tensor = base.weight
    if weight.is_meta or not weight.is_floating_point():
        raise ParameterError(
            f"adapter_core weights: those of {name} are packed or not in memory; take factors of "
            "the seed, or load the model without quantization"
        )
    return weight.T if isinstance(base, Conv1D) else weight


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with a LoRA, by their names in the model before it was adapted."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(_PEFT_PREFIX), module
