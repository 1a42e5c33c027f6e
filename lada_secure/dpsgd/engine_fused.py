"""Per-unit gradients of LoRA linears, computed inside the backward pass.

For y = x W' + s x A' B' (Hu et al. 2022, "LoRA", equation 3) and a row with inputs x (T, in) and
output gradient g (T, out), the row's gradients are two thin products that plain training forms
anyway, only summed over all rows at once:

    dB = s g' (x A')        (out, r)
    dA = s (g B)' x         (r, in)

Here they are formed row by row in one batched product, added up per privacy unit, and never for
the whole model at once before the sum. Base and adapter share one autograd node, which keeps x
and x A' and no other activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lada_secure.errors import LocalProtocolError
from lada_secure.models.adapters import trainable_parameters


def _float_products(left: Tensor, right: Tensor) -> Tensor:
    """left[i]' right[i] in float32, (R, p, q), from left (R, T, p) and right (R, T, q).

    After a forward pass in bfloat16 the factors have 8 bits, their products and sums 24: a
    product that is rounded to bfloat16 again would add an error of its own to every gradient.
    """
    if left.dtype != torch.float32 and left.is_cuda:
        return torch.bmm(left.transpose(1, 2), right, out_dtype=torch.float32)
    return torch.bmm(left.transpose(1, 2).float(), right.float())


class _FusedLoraLinear(torch.autograd.Function):
    """Base linear plus LoRA as one node; adapter gradients go to the engine, not to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: nn.Parameter,
        lora_b: nn.Parameter,
        scaling: float,
        engine: FusedEngine,
    ) -> Tensor:
        rows = engine.unit_of_row
        if rows is None or x.dim() != 3 or x.shape[0] != rows.numel():
            raise LocalProtocolError(
                f"fused engine: layer input of shape {tuple(x.shape)}, expected (rows, tokens, "
                "width) inside GradientEngine.gradients"
            )
        result = functional.linear(x, weight, bias)
        hidden = functional.linear(x, lora_a)
        result.view(-1, result.shape[-1]).addmm_(
            hidden.view(-1, hidden.shape[-1]).to(result.dtype),
            lora_b.T.to(result.dtype),
            alpha=scaling,
        )
        ctx.save_for_backward(x, weight, lora_a, lora_b, hidden)
        ctx.scaling, ctx.engine, ctx.parameters = scaling, engine, (lora_a, lora_b)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, lora_b, hidden = ctx.saved_tensors
        parameter_a, parameter_b = ctx.parameters
        engine: FusedEngine = ctx.engine
        grad = grads[0]
        through = (grad @ lora_b.to(grad.dtype)) * ctx.scaling
        if parameter_a.requires_grad:
            engine.add(parameter_a, through, x.to(grad.dtype))
        if parameter_b.requires_grad:
            engine.add(parameter_b, grad, hidden.to(grad.dtype) * ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight.to(grad.dtype)
            grad_x.view(-1, grad_x.shape[-1]).addmm_(
                through.view(-1, through.shape[-1]), lora_a.to(grad.dtype)
            )
            grad_x = grad_x.to(x.dtype)
        return grad_x, None, None, None, None, None, None


def _adapted_linears(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)
    ]


def _layer_obstacle(name: str, layer: LoraLinear) -> str | None:
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
        adapter = layer.active_adapters[0]
        covered |= {layer.lora_A[adapter].weight, layer.lora_B[adapter].weight}
    seen: set[nn.Parameter] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if parameter not in covered:
            return f"{name} is trainable and is no weight of a plain LoRA linear"
        if parameter in seen:
            return f"{name} is shared between layers"
        seen.add(parameter)
    return None


class FusedEngine:
    """`GradientEngine` for models without a `fused_obstacle`."""

    name = "fused"

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trainable_parameters(model)
        self.unit_of_row: Tensor | None = None
        self._units = 0
        self._one_row_each = False
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._patched: list[LoraLinear] = []
        for _, layer in _adapted_linears(model):
            if any(one.requires_grad for one in layer.parameters()):
                layer.__dict__["forward"] = self._forward_of(layer)
                self._patched.append(layer)

    def _forward_of(self, layer: LoraLinear) -> Any:
        adapter = layer.active_adapters[0]
        base = layer.get_base_layer()
        lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        original = layer.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            # Reference log-probabilities and evaluations run without gradients: plain LoRA.
            if layer.disable_adapters or not torch.is_grad_enabled():
                return original(x, *args, **kwargs)
            weight = base.weight.T if isinstance(base, Conv1D) else base.weight
            return _FusedLoraLinear.apply(  # type: ignore[no-untyped-call]
                x, weight, base.bias, lora_a, lora_b, float(layer.scaling[adapter]), self
            )

        return forward

    def gradients(
        self, units: int, unit_of_row: Sequence[int], summed_loss: Callable[[], Tensor]
    ) -> tuple[list[Tensor], float]:
        self._units = units
        self._one_row_each = units == 1 or list(unit_of_row) == list(range(units))
        self.unit_of_row = torch.tensor(list(unit_of_row), device=self.parameters[0].device)
        try:
            loss = summed_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            found = [
                self._sums[one]
                if one in self._sums
                else one.new_zeros((units, *one.shape), dtype=torch.float32)
                for one in self.parameters
            ]
            return found, float(loss.detach())
        finally:
            self.unit_of_row = None
            self._sums.clear()

    def add(self, parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Add left[i]' right[i] to the unit of row i. left (R, T, p), right (R, T, q)."""
        if self._units == 1:
            left, right = left.flatten(0, 1).unsqueeze(0), right.flatten(0, 1).unsqueeze(0)
        each = _float_products(left, right)
        found = self._sums.get(parameter)
        if self._one_row_each:
            self._sums[parameter] = each if found is None else found.add_(each)
            return
        if found is None:
            found = self._sums[parameter] = each.new_zeros((self._units, *parameter.shape))
        if self.unit_of_row is not None:
            found.index_add_(0, self.unit_of_row, each)

    def close(self) -> None:
        for layer in self._patched:
            layer.__dict__.pop("forward", None)
        self._patched.clear()
