"""Training a model's adapters on public examples alone: no private record, no noise, no ledger.

For the LLM's side of LaDa, where everything that is learned from is public or released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, adapter_weights
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing
from lada_secure.models.examples import PublicOrder, RationaleExample, encode_example
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import ExampleLoss, LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.ranges import above_zero, at_least

MAX_GRADIENT_NORM = 1.0
PREFIX_CACHE_BYTES = 256 * 2**20

# Shares of the learning rate that an update is tried at, until a public hold-out agrees with it.
# A full step often costs one sample of what the model knew; half a step then still teaches.
RATE_SHARES = (1.0, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """How to tune.

    steps: most steps, >= 1; few examples get fewer, see `max_epochs`. batch_size: examples to
    learn per step, >= 1. replay_batch_size: examples to keep per step, >= 0. max_epochs: how often
    an example may be seen, >= 1. learning_rate: AdamW's, > 0, falls to 0 over the run. seed: of the
    order.
    """

    steps: int
    batch_size: int
    replay_batch_size: int
    learning_rate: float
    max_epochs: int = 16
    seed: int = 0
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_size=self.batch_size, max_epochs=self.max_epochs)
        at_least(0, replay_batch_size=self.replay_batch_size)
        above_zero(learning_rate=self.learning_rate)

    def steps_for(self, examples: int) -> int:
        """Steps that are taken with so many examples."""
        return max(1, min(self.steps, self.max_epochs * examples // self.batch_size))


def tune_on_rationales(
    lm: LanguageModel,
    examples: Sequence[RationaleExample],
    replay: Sequence[RationaleExample],
    settings: TuningSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> AdapterWeights:
    """Train the model's adapters in place, and return them.

    Every step takes `batch_size` examples, whose own paths are what the model says today and
    should say no more, and `replay_batch_size` of what it knows already and should not forget.
    Two calls from the same weights with the same arguments give the same weights, up to the
    floating-point behaviour of the machine.

    Args: lm: with adapters (`attach_adapters`). examples: at least one. progress: steps done, all.
    Raises: ParameterError: no examples.
    """
    if not examples:
        raise ParameterError("nothing to learn: no paths to tune on")
    contrast = settings.loss.contrastive_weight > 0.0
    learned = [encode_example(lm, one, contrast=contrast) for one in examples]
    kept = [encode_example(lm, one, contrast=contrast) for one in replay]
    lm.model.eval()
    scorer = RationaleScorer(lm.model, device=lm.model.device, cache_bytes=PREFIX_CACHE_BYTES)
    loss_of = ExampleLoss(scorer, settings.loss)
    contrasted = loss_of.with_reference([*learned, *kept])
    replayed = settings.replay_batch_size if kept else 0
    size = settings.batch_size + replayed
    for first in range(0, len(contrasted), size):
        loss_of.reference.update(loss_of.leads(contrasted[first : first + size]))
    steps = settings.steps_for(len(learned))
    orders = [
        (rows, PublicOrder(count=len(rows), batch_size=size, seed=settings.seed + number))
        for number, (rows, size) in enumerate(((learned, settings.batch_size), (kept, replayed)))
    ]

    def loss_at(step: int) -> Tensor:
        return loss_of([rows[at] for rows, order in orders for at in order.batch(step)]).mean()

    train_adapters(
        lm, loss_at, steps=steps, learning_rate=settings.learning_rate, progress=progress
    )
    return adapter_weights(lm)


def train_adapters(
    lm: LanguageModel,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Descend with AdamW on what is trained of a model, in place; the rate falls to 0.

    Args: loss_at: of a step, a scalar with gradients. progress: steps done, all.
    """
    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    lm.model.eval()
    checkpointed = checkpointed_layers(lm.model) if lm.placement.gradient_checkpointing else []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1.0 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        with checkpointing(checkpointed):
            loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    optimizer.zero_grad(set_to_none=True)
