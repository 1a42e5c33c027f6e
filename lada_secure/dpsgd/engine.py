"""The one interface of all engines that compute per-unit gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias

from torch import Tensor, nn

from lada_secure.errors import ParameterError

EngineName: TypeAlias = Literal["auto", "fused", "opacus"]


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


def trainable_parameters(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Trainable parameters in the model's order. Raises: ParameterError: there is none."""
    found = tuple(one for one in model.parameters() if one.requires_grad)
    if not found:
        raise ParameterError(
            "the model has no trainable parameter; attach adapters with attach_adapters first"
        )
    return found
