"""The one interface of all engines that compute per-unit gradients, and which engine trains."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from lada_secure.dpsgd.engine_fused import FusedEngine, fused_obstacle
from lada_secure.dpsgd.engine_opacus import OpacusEngine, opacus_obstacle
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import trainable_parameters

EngineName: TypeAlias = Literal["auto", "fused", "opacus"]
ENGINES: Final[tuple[EngineName, ...]] = ("auto", "fused", "opacus")


class GradientEngine(Protocol):
    """Collects the gradient of every privacy unit from ordinary forward and backward passes.

    Use: `begin(units)`, then any number of forward passes inside `rows(...)` and backward passes
    of *summed* losses, then `take()`. With units=1 the result is the plain sum over all rows.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]

    def begin(self, units: int) -> None:
        """Start on `units` >= 1 empty gradients; forgets what an interrupted batch left."""

    def rows(self, unit_of_row: Sequence[int]) -> AbstractContextManager[None]:
        """Forward passes inside have len(unit_of_row) rows; row i belongs to unit_of_row[i].

        The fused engine takes other rows in every forward pass; the opacus engine raises
        LocalProtocolError where they differ between `begin` and `take`.
        """

    def take(self) -> list[Tensor]:
        """Per parameter, (units, *parameter.shape) float32: each unit's gradient, unclipped."""

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
