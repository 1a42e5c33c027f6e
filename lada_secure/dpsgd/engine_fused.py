"""Per-unit gradients of LoRA linears, computed inside the backward pass.

For y = x W' + s x A' B' (Hu et al. 2022, "LoRA", equation 3) and a row with inputs x (T, in) and
output gradient g (T, out), the row's gradients are two thin products that plain training forms
anyway, only summed over all rows at once:

    dB = s g' (x A')        (out, r)
    dA = s (g B)' x         (r, in)

Here they are formed row by row in one batched product, added up per privacy unit, and never for
the whole model at once before the sum. Base and adapter share one autograd node, which keeps x
and x A' and no other activation. A base that is packed (bitsandbytes) goes through its own autograd
node, and the adapter through one beside it.

Of a core between frozen factors, y = x W' + s x A0' R' B0' (`models.cores`), only R is trained:

    dR = s (g B0)' (x A0')  (r, r)

The base may be bfloat16. A, B and whatever is a product with them are float32: a product that is
rounded to 8 bits again would add an error of its own to every gradient.

With gradient checkpointing a layer's forward pass runs twice and its backward pass once: the sums
are added to on the way back, so they count once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lada_secure.dpsgd.unit_gradients import zero_gradients
from lada_secure.errors import LocalProtocolError
from lada_secure.models.adapters import trainable_parameters
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing
from lada_secure.models.cores import CoreAndBasis
from lada_secure.models.transfer import sent

# peft's layers around bitsandbytes' linears; a module that exists where that library does.
_PACKED: Final = "peft.tuners.lora.bnb"
_CPU: Final = torch.device("cpu")


def _add_product(to: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    """to += scaling left right, for to (R, T, q), left (R, T, p) float32, right (p, q) float32."""
    if to.dtype == left.dtype:
        to.view(-1, to.shape[-1]).addmm_(left.view(-1, left.shape[-1]), right, alpha=scaling)
    else:
        to.add_(left @ right, alpha=scaling)


class _Weights(NamedTuple):
    """Of one adapter. core: None in plain LoRA."""

    a: nn.Parameter
    core: nn.Parameter | None
    b: nn.Parameter

    @classmethod
    def of(cls, layer: Any) -> _Weights:
        adapter = layer.active_adapters[0]
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter]
        if isinstance(b, CoreAndBasis):
            return cls(a, b.core, b.basis)
        return cls(a, None, b.weight)


def _add_adapter(to: Tensor, x: Tensor, weights: _Weights, scaling: float) -> Tensor:
    """Add what an adapter makes of x, (R, T, in). Returns: x A', (R, T, r)."""
    hidden = inner = functional.linear(x.to(weights.a.dtype), weights.a)
    if weights.core is not None:
        inner = functional.linear(hidden, weights.core)
    _add_product(to, inner, weights.b.T, scaling)
    return hidden


def _adapter_backward(ctx: Any, grad: Tensor, saved: Sequence[Tensor]) -> Tensor:
    """Give the engine what the adapter's weights get.

    Returns: the gradient of x A', (R, T, r), unscaled.
    """
    x, lora_a, core, lora_b, hidden = saved
    weights: _Weights = ctx.weights
    wide = grad.to(lora_b.dtype)
    through = wide @ lora_b
    if weights.core is not None:
        ctx.engine.add(weights.core, through, hidden, ctx.scaling)
        return through @ core
    if weights.a.requires_grad:
        ctx.engine.add(weights.a, through, x.to(lora_a.dtype), ctx.scaling)
    if weights.b.requires_grad:
        ctx.engine.add(weights.b, wide, hidden, ctx.scaling)
    return through


class _FusedLoraLinear(torch.autograd.Function):
    """Base linear plus LoRA as one node; adapter gradients go to the engine, not to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scaling: float,
        engine: FusedEngine,
        *adapter: nn.Parameter,
    ) -> Tensor:
        weights = _Weights(*adapter)
        result = functional.linear(x, weight, bias)
        hidden = _add_adapter(result, x, weights, scaling)
        ctx.save_for_backward(x, *weights, hidden, weight)
        ctx.scaling, ctx.engine, ctx.weights = scaling, engine, weights
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Once: with checkpointing this is where the layer is computed again.
        *saved, weight = ctx.saved_tensors
        through = _adapter_backward(ctx, grads[0], saved)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grads[0] @ weight
            _add_product(grad_x, through, saved[1], ctx.scaling)
        return grad_x, *(None,) * (4 + len(ctx.weights))


class _FusedAdapter(torch.autograd.Function):
    """LoRA added to what a base made of the same input by its own autograd node."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        result: Tensor,
        scaling: float,
        engine: FusedEngine,
        *adapter: nn.Parameter,
    ) -> Tensor:
        weights = _Weights(*adapter)
        # A copy: the base's node may need what it returned.
        result = result.clone(memory_format=torch.contiguous_format)
        hidden = _add_adapter(result, x, weights, scaling)
        ctx.save_for_backward(x, *weights, hidden)
        ctx.scaling, ctx.engine, ctx.weights = scaling, engine, weights
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        through = _adapter_backward(ctx, grads[0], saved)
        grad_x = None
        if ctx.needs_input_grad[0]:
            x, lora_a = saved[:2]
            grad_x = (through @ lora_a).mul_(ctx.scaling).to(x.dtype)
        return grad_x, grads[0], *(None,) * (2 + len(ctx.weights))


def _adapted_linears(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
        or (isinstance(module, LoraLayer) and type(module).__module__ == _PACKED)
    ]


def _weight_is_at_hand(base: nn.Module) -> bool:
    """Whether a base is its weight and nothing else: not packed, not hooked."""
    return (
        type(base) in (nn.Linear, Conv1D)
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and "forward" not in vars(base)
    )


def _layer_obstacle(name: str, layer: Any) -> str | None:
    if len(layer.active_adapters) != 1 or layer.merged:
        return f"{name}: expected one active, unmerged adapter"
    adapter = layer.active_adapters[0]
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D):
        return f"{name}: base layer {type(base).__name__}, expected Linear or Conv1D"
    if adapter in layer.lora_variant or layer.lora_B[adapter].bias is not None:
        return f"{name}: a LoRA variant or a bias in lora_B"
    dropout = layer.lora_dropout[adapter]
    if not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0.0:
        return f"{name}: lora_dropout above 0"
    return None


def fused_obstacle(model: nn.Module) -> str | None:
    """Why the fused engine cannot train a model, naming the module; None if it can."""
    covered: set[nn.Parameter] = set()
    for name, layer in _adapted_linears(model):
        trained = [one for one in layer.parameters() if one.requires_grad]
        if not trained:
            continue
        obstacle = _layer_obstacle(name, layer)
        if obstacle is not None:
            return obstacle
        covered |= {one for one in _Weights.of(layer) if one is not None}
    seen: set[nn.Parameter] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if parameter not in covered:
            return f"{name} is trainable and is no weight of a LoRA linear"
        if parameter in seen:
            return f"{name} is shared between layers"
        seen.add(parameter)
    return None


class FusedEngine:
    """`GradientEngine` for models without a `fused_obstacle`."""

    name = "fused"

    def __init__(self, model: nn.Module, *, checkpoints: bool = False) -> None:
        """Args: checkpoints: whether layers are computed again on the way back."""
        self.parameters = trainable_parameters(model)
        self._layers = checkpointed_layers(model) if checkpoints else None
        # The unit of every row on each device that asked; on the CPU from the first.
        self._unit_of_row: dict[torch.device, Tensor] = {}
        self._units = 0
        self._one_row_each = False
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._patched: list[nn.Module] = []
        for _, layer in _adapted_linears(model):
            if any(one.requires_grad for one in layer.parameters()):
                layer.__dict__["forward"] = self._forward_of(layer)
                self._patched.append(layer)

    def _forward_of(self, layer: Any) -> Any:
        adapter = layer.active_adapters[0]
        base = layer.get_base_layer()
        weights = _Weights.of(layer)
        original = layer.forward
        weight_is_at_hand = _weight_is_at_hand(base)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            # Reference log-probabilities and evaluations run without gradients: plain LoRA.
            if layer.disable_adapters or not torch.is_grad_enabled():
                return original(x, *args, **kwargs)
            self._check_rows(x)
            scaling = float(layer.scaling[adapter])
            if not weight_is_at_hand:
                result = base(x, *args, **kwargs)
                return _FusedAdapter.apply(x, result, scaling, self, *weights)  # type: ignore[no-untyped-call]
            weight = base.weight.T if isinstance(base, Conv1D) else base.weight
            return _FusedLoraLinear.apply(  # type: ignore[no-untyped-call]
                x, weight, base.bias, scaling, self, *weights
            )

        return forward

    def _check_rows(self, x: Tensor) -> None:
        rows = self._unit_of_row.get(_CPU)
        if rows is None or x.dim() != 3 or x.shape[0] != rows.numel():
            raise LocalProtocolError(
                f"fused engine: layer input of shape {tuple(x.shape)}, expected (rows, tokens, "
                "width) inside GradientEngine.gradients"
            )

    def gradients(
        self, units: int, unit_of_row: Sequence[int], summed_loss: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        self._units = units
        self._one_row_each = units == 1 or list(unit_of_row) == list(range(units))
        self._unit_of_row = {_CPU: torch.tensor(list(unit_of_row), dtype=torch.int64)}
        context: AbstractContextManager[None] = nullcontext()
        if self._layers is not None:
            context = checkpointing(self._layers)
        try:
            with context:
                loss = summed_loss()
            found = zero_gradients(units, self.parameters)
            self._sums = dict(zip(self.parameters, found, strict=True))
            loss.backward()  # type: ignore[no-untyped-call]
            return found, loss.detach()
        finally:
            self._unit_of_row, self._sums = {}, {}

    def add(self, parameter: nn.Parameter, left: Tensor, right: Tensor, scaling: float) -> None:
        """Add scaling left[i]' right[i] to the unit of row i. left (R, T, p), right (R, T, q)."""
        found = self._sums.get(parameter)
        if found is None:
            # A backward pass of somebody else's.
            return
        if self._units == 1:
            left, right = left.flatten(0, 1).unsqueeze(0), right.flatten(0, 1).unsqueeze(0)
        left = left.transpose(1, 2)
        if self._one_row_each:
            found.baddbmm_(left, right, alpha=scaling)
        else:
            device = found.device
            if device not in self._unit_of_row:
                self._unit_of_row[device] = sent(self._unit_of_row[_CPU], device)
            found.index_add_(0, self._unit_of_row[device], left @ right, alpha=scaling)

    def close(self) -> None:
        for layer in self._patched:
            layer.__dict__.pop("forward", None)
        self._patched.clear()
