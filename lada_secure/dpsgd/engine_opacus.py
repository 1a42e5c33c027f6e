"""Per-unit gradients of any layer that Opacus knows, from its per-row hooks.

Opacus clips rows; a privacy unit is several rows. So only its gradient samples are used here
(`GradSampleHooks`, what `PrivacyEngine.make_private(wrap_model=False)` attaches), and rows are
added up per unit before anything is clipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lada_secure.dpsgd.unit_gradients import zero_gradients
from lada_secure.models.adapters import trainable_parameters
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing
from lada_secure.models.transfer import sent


def _grad_sample_hooks() -> Any:
    # Imported when it is used: most models never need it, and it takes a second.
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    return GradSampleHooks


def opacus_obstacle(model: nn.Module) -> str | None:
    """Why Opacus cannot give gradient samples of a model, naming the module; None if it can."""
    samplers = _grad_sample_hooks().GRAD_SAMPLERS
    for name, module in model.named_modules():
        trained = [one for one in module.parameters(recurse=False) if one.requires_grad]
        if not trained:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{name}: {type(module).__name__} mixes the rows of a batch"
        if type(module) not in samplers:
            return f"{name}: no gradient sampler for {type(module).__name__}"
    return None


class OpacusEngine:
    """`GradientEngine` for models without an `opacus_obstacle`."""

    name = "opacus"

    def __init__(self, model: nn.Module, *, checkpoints: bool = False) -> None:
        """Args: checkpoints: whether layers are computed again on the way back."""
        self.parameters = trainable_parameters(model)
        self._layers = checkpointed_layers(model) if checkpoints else None
        # Opacus records modules in training mode only. The rest of the model stays as it is, so
        # that no dropout of the base model comes on.
        self._modules = [
            one
            for one in model.modules()
            if any(own.requires_grad for own in one.parameters(recurse=False))
        ]
        self._modes = [one.training for one in self._modules]
        for one in self._modules:
            one.train()
        self._hooks = _grad_sample_hooks()(model, loss_reduction="sum", strict=False)

    def gradients(
        self, units: int, unit_of_row: Sequence[int], summed_loss: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        rows = torch.tensor(list(unit_of_row), dtype=torch.int64)
        context: AbstractContextManager[None] = nullcontext()
        if self._layers is not None:
            context = checkpointing(self._layers, recomputing=self._not_noticed)
        self._forget()
        try:
            with warnings.catch_warnings():
                # The first adapted layer's input needs no gradient, and its hook says so every
                # step.
                warnings.filterwarnings("ignore", message=".*backward hook.*", category=UserWarning)
                with context:
                    loss = summed_loss()
                loss.backward()  # type: ignore[no-untyped-call]
            rows_on = {one: sent(rows, one) for one in {own.device for own in self.parameters}}
            found = zero_gradients(units, self.parameters)
            for one, total in zip(self.parameters, found, strict=True):
                sample: Tensor | list[Tensor] | None = one.__dict__["grad_sample"]
                parts = sample if isinstance(sample, list) else [] if sample is None else [sample]
                for part in parts:
                    total.index_add_(0, rows_on[one.device], part.float())
            return found, loss.detach()
        finally:
            self._forget()

    @contextmanager
    def _not_noticed(self) -> Iterator[None]:
        """The inputs of a layer that is computed again were noted the first time."""
        self._hooks.disable_hooks()
        try:
            yield
        finally:
            self._hooks.enable_hooks()

    def _forget(self) -> None:
        for module in self._modules:
            # What an interrupted backward pass (out of memory) left behind would be added to
            # the next batch's units.
            for name in ("activations", "max_batch_len"):
                module.__dict__.pop(name, None)
        for one in self.parameters:
            one.grad = None
            one.__dict__["grad_sample"] = None
            one.__dict__["_forward_counter"] = 0
            one.__dict__.pop("_current_grad_sample", None)

    def close(self) -> None:
        self._hooks.cleanup()
        for module, mode in zip(self._modules, self._modes, strict=True):
            module.train(mode)
        for one in self.parameters:
            one.grad = None
