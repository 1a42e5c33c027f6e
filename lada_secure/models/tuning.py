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
from lada_secure.models.examples import (
    EncodedExample,
    PublicOrder,
    RationaleExample,
    encode_example,
)
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings, example_losses
from lada_secure.models.rationale_scoring import RationaleScorer, per_token

MAX_GRADIENT_NORM = 1.0
_PREFIX_CACHE_BYTES = 256 * 2**20

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
        for name, value, least in (
            ("steps", self.steps, 1),
            ("batch_size", self.batch_size, 1),
            ("replay_batch_size", self.replay_batch_size, 0),
            ("max_epochs", self.max_epochs, 1),
        ):
            if value < least:
                raise ParameterError(f"{name}: expected at least {least}, got {value}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ParameterError(
                f"learning_rate: expected a finite number above 0, got {self.learning_rate}"
            )

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
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    lm.model.eval()
    scorer = RationaleScorer(lm.model, device=lm.model.device, cache_bytes=_PREFIX_CACHE_BYTES)
    reference = _reference_leads(scorer, [*learned, *kept], settings)
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    steps = settings.steps_for(len(learned))
    orders = (
        (
            learned,
            PublicOrder(count=len(learned), batch_size=settings.batch_size, seed=settings.seed),
        ),
        (
            kept,
            PublicOrder(
                count=len(kept), batch_size=settings.replay_batch_size, seed=settings.seed + 1
            ),
        ),
    )
    for step in range(steps):
        batch = [rows[at] for rows, order in orders for at in order.batch(step)]
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1.0 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss = _losses(scorer, batch, reference, settings.loss).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    optimizer.zero_grad(set_to_none=True)
    return adapter_weights(lm)


def _losses(
    scorer: RationaleScorer,
    examples: Sequence[EncodedExample],
    reference: dict[EncodedExample, float],
    settings: LossSettings,
) -> Tensor:
    path, own, has_own = _scores(scorer, examples)
    leads = path.new_tensor([reference.get(one, 0.0) for one in examples])
    return example_losses(path, own, has_own, leads, settings)


def _scores(
    scorer: RationaleScorer, examples: Sequence[EncodedExample]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities per token of paths and own paths, (n,), and which have an own path."""
    holders = [at for at, one in enumerate(examples) if one.rejected is not None]
    rows = [one.path for one in examples]
    rows += [one.rejected for one in examples if one.rejected is not None]
    scores = per_token(scorer(rows), rows)
    path = scores[: len(examples)]
    where = torch.tensor(holders, dtype=torch.int64, device=scores.device)
    own = torch.zeros_like(path).index_copy(0, where, scores[len(examples) :])
    has_own = torch.zeros_like(path, dtype=torch.bool).index_fill(0, where, True)
    return path, own, has_own


def _reference_leads(
    scorer: RationaleScorer, examples: Sequence[EncodedExample], settings: TuningSettings
) -> dict[EncodedExample, float]:
    """Lead of path over own path under the model before training; read by "dpo" only."""
    contrasted = [one for one in examples if one.rejected is not None]
    leads: dict[EncodedExample, float] = {}
    if settings.loss.contrastive_form != "dpo":
        return leads
    size = settings.batch_size + settings.replay_batch_size
    for first in range(0, len(contrasted), size):
        part = contrasted[first : first + size]
        with torch.no_grad():
            path, own, _ = _scores(scorer, part)
        leads.update(zip(part, (path - own).tolist(), strict=True))
    return leads
