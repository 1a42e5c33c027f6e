"""The one interface of all engines that compute per-unit gradients, and which engine trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lada_secure.dpsgd.engine_fused import FusedEngine, fused_obstacle
from lada_secure.dpsgd.engine_opacus import OpacusEngine, opacus_obstacle
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import trainable_parameters

EngineName: TypeAlias = Literal["auto", "fused", "opacus"]
ENGINES: Final[tuple[EngineName, ...]] = ("auto", "fused", "opacus")


class GradientEngine(Protocol):
    """Gives the gradient of every privacy unit from ordinary forward and backward passes."""

    name: str
    parameters: tuple[nn.Parameter, ...]

    def gradients(
        self, units: int, unit_of_row: Sequence[int], summed_loss: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Each unit's gradient, unclipped. Nothing of a call is left for the next one.

        Nothing here waits for the device.

        Args: units: >= 1; with 1 the result is the plain sum over all rows. unit_of_row: of every
        row of the forward passes, in 0 .. units - 1. summed_loss: makes the forward passes, each
        over all rows, and a *sum* over them; its backward pass is made here.
        Returns: per parameter, (units, *parameter.shape) float32, as of `zero_gradients`; and the
        loss, a scalar on its device.
        """

    def close(self) -> None:
        """Give the model its own forward and backward back."""


def open_engine(model: nn.Module, name: EngineName, *, checkpoints: bool = False) -> GradientEngine:
    """Attach an engine to a model; "auto" takes `fused` where it applies and else `opacus`.

    Args: checkpoints: gradient checkpointing: the engine's passes keep the inputs of layers alone.
    Raises: ParameterError: no trainable parameter, one that is not float32, a module with trainable
    parameters that the engine (with "auto": neither engine) supports, or no layers to checkpoint;
    the message names it.
    """
    trainable_parameters(model)
    for parameter_name, one in model.named_parameters():
        if one.requires_grad and one.dtype != torch.float32:
            raise ParameterError(
                f"{parameter_name} is {one.dtype}, expected float32: a short type would lose what "
                "is learned; attach adapters with attach_adapters"
            )
    not_fused = None if name == "opacus" else fused_obstacle(model)
    if name != "opacus" and not_fused is None:
        return FusedEngine(model, checkpoints=checkpoints)
    if name == "fused":
        raise ParameterError(f"engine 'fused' cannot train this model: {not_fused}")
    not_opacus = opacus_obstacle(model)
    if not_opacus is None:
        return OpacusEngine(model, checkpoints=checkpoints)
    neither = f"; engine 'fused' neither: {not_fused}" if name == "auto" else ""
    raise ParameterError(f"engine 'opacus' cannot train this model: {not_opacus}{neither}")
