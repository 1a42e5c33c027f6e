"""The one interface of all engines that compute per-unit gradients, and which engine trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol, TypeAlias

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
    ) -> tuple[list[Tensor], float]:
        """Each unit's gradient, unclipped. Nothing of a call is left for the next one.

        Args: units: >= 1; with 1 the result is the plain sum over all rows. unit_of_row: of every
        row of the forward passes, in 0 .. units - 1. summed_loss: makes the forward passes, each
        over all rows, and a *sum* over them; its backward pass is made here.
        Returns: per parameter, (units, *parameter.shape) float32; and the loss.
        """

    def close(self) -> None:
        """Give the model its own forward and backward back."""


def open_engine(model: nn.Module, name: EngineName) -> GradientEngine:
    """Attach an engine to a model; "auto" takes `fused` where it applies and else `opacus`.

    Raises: ParameterError: no trainable parameter, or a module with trainable parameters that the
    engine (with "auto": neither engine) supports; the message names it.
    """
    trainable_parameters(model)
    not_fused = None if name == "opacus" else fused_obstacle(model)
    if name != "opacus" and not_fused is None:
        return FusedEngine(model)
    if name == "fused":
        raise ParameterError(f"engine 'fused' cannot train this model: {not_fused}")
    not_opacus = opacus_obstacle(model)
    if not_opacus is None:
        return OpacusEngine(model)
    neither = f"; engine 'fused' neither: {not_fused}" if name == "auto" else ""
    raise ParameterError(f"engine 'opacus' cannot train this model: {not_opacus}{neither}")
