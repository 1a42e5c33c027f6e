"""One round of any host, with the samples chosen by LaDa or by the host itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lada_lab.baselines.baseline import Host, Payload
from lada_secure.errors import ParameterError
from lada_secure.models.examples import PublicOrder
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import MAX_GRADIENT_NORM


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTraining:
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


def transfer(
    host: Host, slm: LanguageModel, received: Mapping[int, str], training: HostTraining
) -> tuple[int, ...]:
    """Train a student on what it was sent, by the host's own selection, payload and loss.

    The selection is made anew every round among everything so far, because both models have
    changed.

    Args: slm: with adapters, trained in place. received: the LLM's checked rationales by pool
        index.
    Returns: pool indices that the host's selection let through.
    Raises: ParameterError: a sample that the pool does not have, or a path that does not fit.
    """
    unknown = [place for place in received if not 0 <= place < len(host.pool)]
    if unknown:
        raise ParameterError(f"host {host.name}: the pool has no sample {unknown[0]}")
    if not received:
        return ()
    payloads = host.payload(slm, received, host.losses(slm, received))
    train_host(host, slm, payloads, training)
    return tuple(payload.place for payload in payloads)


def train_host(
    host: Host, lm: LanguageModel, payloads: Sequence[Payload], training: HostTraining
) -> None:
    """Train a model's adapters in place by the host's loss; nothing happens without payloads.

    Raises: ParameterError: the model has no adapters.
    """
    if not payloads:
        return
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    if not any("lora_" in name for name, _ in lm.model.named_parameters()):
        raise ParameterError(f"host {host.name}: model {lm.name!r} has no adapters to train")
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.0)
    order = PublicOrder(count=len(payloads), batch_size=training.batch_size, seed=training.seed)
    lm.model.eval()
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1.0 - step / training.steps)
        optimizer.zero_grad(set_to_none=True)
        loss = host.loss(lm, [payloads[at] for at in order.batch(step)])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
