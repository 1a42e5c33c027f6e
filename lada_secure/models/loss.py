"""The loss of one example: cross-entropy on the path, and a contrast with the own path.

With l(y) the joint log-probability of a whole path divided by its number of tokens, y the path
to learn, w the model's own path and ref the model before training:

    loss = -l(y) + contrastive_weight * term
    "dpo":    term = softplus(-beta * ((l(y) - l(w)) - (l_ref(y) - l_ref(w))))
    "margin": term = max(0, margin - (l(y) - l(w)))

"dpo" is Rafailov et al. 2023, equation 7, with log-probabilities per token (Meng et al. 2024,
SimPO, section 2); "margin" needs no reference and stops pushing once the path leads by `margin`.

Privacy: every example's loss depends on that example alone. Negatives from other examples in the
batch, normalising over the batch, or dividing by the batch's token count would let one unit move
the gradients of others, and clipping per unit would no longer bound its influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lada_secure.errors import ParameterError

ContrastiveForm: TypeAlias = Literal["dpo", "margin"]
CONTRASTIVE_FORMS: Final[tuple[ContrastiveForm, ...]] = ("dpo", "margin")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Public settings of the loss.

    contrastive_weight: >= 0; 0 leaves cross-entropy alone and saves the own paths' forward passes.
    beta: > 0, for "dpo"; log-probabilities are per token, so values of 1 to 10 are usual.
    margin: >= 0 nats a token, for "margin".
    """

    contrastive_form: ContrastiveForm = "margin"
    contrastive_weight: float = 0.1
    beta: float = 2.0
    margin: float = 0.5

    def __post_init__(self) -> None:
        if self.contrastive_form not in CONTRASTIVE_FORMS:
            raise ParameterError(
                f"contrastive_form: expected 'dpo' or 'margin', got {self.contrastive_form!r}"
            )
        for name, value in (
            ("contrastive_weight", self.contrastive_weight),
            ("margin", self.margin),
        ):
            if not 0.0 <= value < float("inf"):
                raise ParameterError(f"{name}: expected a finite number >= 0, got {value}")
        if not 0.0 < self.beta < float("inf"):
            raise ParameterError(f"beta: expected a finite number > 0, got {self.beta}")


def example_losses(
    path: Tensor,
    own: Tensor,
    has_own: Tensor,
    reference_lead: Tensor,
    settings: LossSettings,
) -> Tensor:
    """Loss of each example from log-probabilities per token.

    Args:
        path: (n,) float32, l(y).
        own: (n,) float32, l(w); any finite value where there is no own path.
        has_own: (n,) bool.
        reference_lead: (n,) float32, l_ref(y) - l_ref(w); read by "dpo" only.
        settings: the form and its constants.
    Returns: (n,) float32; entry i depends on entries i of the arguments alone.
    """
    losses = -path
    if settings.contrastive_weight == 0.0:
        return losses
    lead = path - own
    if settings.contrastive_form == "dpo":
        term = functional.softplus(-settings.beta * (lead - reference_lead))
    else:
        term = functional.relu(settings.margin - lead)
    return losses + settings.contrastive_weight * torch.where(has_own, term, torch.zeros_like(term))
