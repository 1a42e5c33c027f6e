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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from lada_secure.models.examples import EncodedExample, rows_of
from lada_secure.models.rationale_scoring import RationaleScorer, per_token
from lada_secure.models.transfer import sent
from lada_secure.ranges import one_of, zero_or_more

CONTRASTIVE_FORMS: Final = ("dpo", "margin")
# Of "dpo"; log-probabilities are per token, so values of 1 to 10 are usual.
BETA: Final = 2.0
# Of "margin", nats a token.
MARGIN: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Public settings of the loss.

    contrastive_weight: >= 0; 0 leaves cross-entropy alone and saves the own paths' forward passes.
    """

    contrastive_form: str = "margin"
    contrastive_weight: float = 0.1

    def __post_init__(self) -> None:
        one_of(CONTRASTIVE_FORMS, contrastive_form=self.contrastive_form)
        zero_or_more(contrastive_weight=self.contrastive_weight)


def example_losses(
    path: Tensor, own: Tensor, has_own: Tensor, reference_lead: Tensor, settings: LossSettings
) -> Tensor:
    """Loss of each example from log-probabilities per token.

    Args:
        path: (n,) float32, l(y).
        own: (n,) float32, l(w); any finite value where there is no own path.
        has_own: (n,) bool.
        reference_lead: (n,) float32, l_ref(y) - l_ref(w); read by "dpo" only.
    Returns: (n,) float32; entry i depends on entries i of the arguments alone.
    """
    losses = -path
    if settings.contrastive_weight == 0.0:
        return losses
    lead = path - own
    if settings.contrastive_form == "dpo":
        term = functional.softplus(-BETA * (lead - reference_lead))
    else:
        term = functional.relu(MARGIN - lead)
    return losses + settings.contrastive_weight * torch.where(has_own, term, torch.zeros_like(term))


class ExampleLoss:
    """The loss of examples under a model as it is when called.

    `reference` holds l_ref(y) - l_ref(w) of the examples that "dpo" contrasts. It is filled from
    `leads` before training; an example that is missing has 0.
    """

    def __init__(self, scorer: RationaleScorer, settings: LossSettings) -> None:
        self._scorer = scorer
        self._settings = settings
        self.reference: dict[EncodedExample, float] = {}

    def __call__(self, examples: Sequence[EncodedExample]) -> Tensor:
        """(n,) float32, in the order of `examples`."""
        path, own, has_own = self._scores(examples)
        leads = torch.tensor([self.reference.get(example, 0.0) for example in examples])
        reference = sent(leads, path.device)
        return example_losses(path, own, has_own, reference, self._settings)

    def with_reference(self, examples: Sequence[EncodedExample]) -> list[EncodedExample]:
        """The examples whose loss needs a reference."""
        if self._settings.contrastive_form != "dpo" or self._settings.contrastive_weight == 0.0:
            return []
        return [example for example in examples if example.rejected is not None]

    @torch.no_grad()
    def leads(self, examples: Sequence[EncodedExample]) -> dict[EncodedExample, float]:
        """By how much the model as it is now prefers each path to the own path."""
        path, own, _ = self._scores(examples)
        return dict(zip(examples, (path - own).tolist(), strict=True))

    def _scores(self, examples: Sequence[EncodedExample]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities per token of paths and own paths, (n,), and which have an own path."""
        rows = rows_of(examples)
        scores = per_token(self._scorer(rows), rows)
        path = scores[: len(examples)]
        holders = [at for at, example in enumerate(examples) if example.rejected is not None]
        where = sent(torch.tensor(holders, dtype=torch.int64), scores.device)
        own = torch.zeros_like(path).index_copy(0, where, scores[len(examples) :])
        has_own = torch.zeros_like(path, dtype=torch.bool).index_fill(0, where, True)
        return path, own, has_own
