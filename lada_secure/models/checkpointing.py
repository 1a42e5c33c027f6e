"""Gradient checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

A step keeps the input of every layer alone, and computes the layer again on the way back. What
transformers has for it works in training mode, where dropout is on; here models stay in evaluation
mode, so layers are wrapped from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

from torch import nn
from torch.utils.checkpoint import checkpoint

from lada_secure.errors import ParameterError

# Made anew for every layer and pass; active while the layer is computed again.
RecomputeContext: TypeAlias = Callable[[], AbstractContextManager[None]]


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The model's layers, one after the other; None where it has no such list."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    causal: Any = unwrap()
    body: nn.Module = getattr(causal, "base_model", causal)
    count = int(causal.config.get_text_config().num_hidden_layers)
    lists = (one for one in body.modules() if isinstance(one, nn.ModuleList))
    return next((one for one in lists if len(one) == count), None)


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a backward pass goes through: from the first with a trained weight on.

    Raises: ParameterError: the model has no list of layers.
    """
    layers = layers_of(model)
    if layers is None:
        raise ParameterError(
            f"gradient_checkpointing: no list of layers found in {type(model).__name__}; set it "
            "to false"
        )
    trained = [any(weight.requires_grad for weight in one.parameters()) for one in layers]
    # A trained weight below the layers: the backward pass goes through all of them.
    inside = {weight for one in layers for weight in one.parameters()}
    below = any(one.requires_grad and one not in inside for one in model.parameters())
    first = 0 if below or True not in trained else trained.index(True)
    return list(layers)[first:]


@contextmanager
def checkpointing(
    layers: list[nn.Module], *, recomputing: RecomputeContext = nullcontext
) -> Iterator[None]:
    """While active, forward passes through these layers keep their inputs alone.

    The backward pass may come later. Nothing random may happen in a layer: torch's generators are
    not put back for the second time.

    Args: recomputing: what is active while a layer is computed again.
    """
    replaced = [(one, one.__dict__.get("forward"), one.forward) for one in layers]
    for layer, _, forward in replaced:
        layer.__dict__["forward"] = _kept_by_input(forward, recomputing)
    try:
        yield
    finally:
        for layer, own, _ in replaced:
            if own is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = own


def _kept_by_input(forward: Callable[..., Any], recomputing: RecomputeContext) -> Any:
    def again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), recomputing()),
            **kwargs,
        )

    return again
