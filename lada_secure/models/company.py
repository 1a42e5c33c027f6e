"""Whether what a model says of a row depends on the rows beside it, and what to do where it does.

A matrix kernel rounds a row differently in another company. In float32 that is about 1e-7 of it; in
a shorter type, or with packed weights, it is large enough that one unit would move what others add
to a noised sum. There every unit is measured by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from lada_secure.models.loading import LanguageModel
from lada_secure.models.text_model import TextModel

T = TypeVar("T")
U = TypeVar("U")


def runs_in_float32(model: nn.Module) -> bool:
    """Whether all weights are float32: then company changes rounding alone."""
    return all(one.dtype == torch.float32 for one in model.parameters())


def as_if_alone(
    lm: TextModel, together: Callable[[Sequence[U]], Sequence[T]]
) -> Callable[[Sequence[U]], Sequence[T]]:
    """`together`, or, where company shows, `together` on each unit by itself.

    Args: lm: what measures. together: one result per unit.
    """
    if not isinstance(lm, LanguageModel) or runs_in_float32(lm.model):
        return together
    return lambda units: [one for unit in units for one in together([unit])]
