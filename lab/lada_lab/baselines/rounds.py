"""One round of any baseline, with the samples chosen by LaDa or by the baseline itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lada_lab.baselines.baseline import Baseline, BaselineState, Payload
from lada_secure.errors import ParameterError
from lada_secure.models.examples import PublicOrder
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import MAX_GRADIENT_NORM


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTraining:
    """steps, batch_size: >= 1. learning_rate: AdamW's, > 0, falls to 0. seed: of the order."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: a value out of range."""
        if self.steps < 1 or self.batch_size < 1 or not 0.0 < self.learning_rate < float("inf"):
            raise ParameterError(
                "host training: expected steps and batch_size of at least 1 and a learning_rate "
                f"above 0, got {self.steps}, {self.batch_size} and {self.learning_rate}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What a round did.

    sent: pool indices that the baseline's own selection let through. rewards: by pool index, of all
    that were kept, in [-1, 1].
    """

    sent: tuple[int, ...]
    rewards: Mapping[int, float]


def transfer(
    baseline: Baseline,
    slm: LanguageModel,
    state: BaselineState,
    received: Mapping[int, str],
    training: BaselineTraining,
    *,
    keep: Callable[[int], bool] | None = None,
) -> Transferred:
    """Train a site on what was ever sent to it, by the baseline's method, and reward it.

    The baseline's selection is made anew every round among everything so far, because both models
    have changed.

    Args: slm: with adapters, trained in place. received: the LLM's checked paths of the samples
        that were picked for this round, by pool index; the picks are LaDa's or the baseline's own.
        state: the paths are added to it. keep: LaDa's verdict on each path known so far, asked
        anew every round; None keeps all.
    Raises: ParameterError: a sample that the pool does not have, or a path that does not fit.
    """
    unknown = [pool_index for pool_index in received if not 0 <= pool_index < len(baseline.pool)]
    if unknown:
        raise ParameterError(f"host {baseline.name}: the pool has no sample {unknown[0]}")
    state.paths.update(received)
    kept = {
        pool_index: path
        for pool_index, path in state.paths.items()
        if keep is None or keep(pool_index)
    }
    if not kept:
        return Transferred(sent=(), rewards={})
    before = baseline.losses(slm, kept)
    payloads = baseline.payload(slm, kept, before)
    train_baseline(baseline, slm, payloads, training)
    rewards = baseline.reward(before, baseline.losses(slm, kept))
    return Transferred(
        sent=tuple(one.pool_index for one in payloads),
        rewards=dict(zip(kept, rewards.tolist(), strict=True)),
    )


def train_baseline(
    baseline: Baseline, lm: LanguageModel, payloads: Sequence[Payload], training: BaselineTraining
) -> None:
    """Train a model's adapters in place by the baseline's loss; nothing happens without payloads.

    Raises: ParameterError: the model has no adapters.
    """
    if not payloads:
        return
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    if not any("lora_" in name for name, _ in lm.model.named_parameters()):
        raise ParameterError(f"host {baseline.name}: model {lm.name!r} has no adapters to train")
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.0)
    order = PublicOrder(count=len(payloads), batch_size=training.batch_size, seed=training.seed)
    lm.model.eval()
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1.0 - step / training.steps)
        optimizer.zero_grad(set_to_none=True)
        loss = baseline.loss(lm, [payloads[at] for at in order.batch(step)])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
