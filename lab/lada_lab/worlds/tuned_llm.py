"""An LLM that knows a study's domain: a small model, tuned beforehand on public material.

On one machine without a model hub the LLM cannot be a larger model, so it is made the better one
the way its owner would: supervised fine-tuning on public questions with answers and reasoning,
which no site holds and no held-out record repeats. No private record takes part, so this costs no
privacy, and it is done once and kept in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.records import Record
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loading import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Supervised fine-tuning of the LLM: mean cross-entropy per token of each path."""

    steps: int = 48
    batch_size: int = 8
    learning_rate: float = 3e-3
    adapter_rank: int = 16
    last_layers: int = 10
    max_gradient_norm: float = 1.0
    threads: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Example:
    prompt: tuple[int, ...]
    path: tuple[int, ...]


def tune(lm: LanguageModel, records: Sequence[Record], settings: Tuning, *, seed: int) -> Any:
    """Train LoRA adapters on prompt and path of public records, and merge them into the weights.

    Returns: the transformers model. Two calls with the same arguments give the same weights.
    Raises: ParameterError: no records.
    """
    if not records:
        raise ParameterError("tuning an LLM needs public records, got none")
    torch.set_num_threads(settings.threads)
    base: Any = lm.model
    adapted: Any = attach_adapters(
        lm,
        AdapterSettings(
            rank=settings.adapter_rank,
            alpha=2.0 * settings.adapter_rank,
            last_layers=min(settings.last_layers, int(base.config.num_hidden_layers)),
            seed=seed,
        ),
    ).model
    trained = [one for one in adapted.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    examples = [
        _Example(
            prompt=tuple(lm.encode_prompt(prompt_of(one.question, one.choices))),
            path=tuple(lm.encode_rationale(rationale_of(one.answer, one.choices, one.rationale))),
        )
        for one in records
    ]
    order = _order(len(examples), np.random.default_rng([seed, 21]))
    for step in range(settings.steps):
        batch = [examples[next(order)] for _ in range(settings.batch_size)]
        loss = _loss(base, batch, padding=lm.end_token)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, settings.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        optimizer.step()
    return adapted.merge_and_unload()


def _order(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(one) for one in rng.permutation(count))


def _schedule(step: int, steps: int) -> float:
    """Five steps of warm-up, then linear decay to a tenth."""
    return min(1.0, (step + 1) / 5) * (1.0 - 0.9 * step / steps)


def _loss(model: Any, batch: Sequence[_Example], *, padding: int) -> Tensor:
    """Cross-entropy per token of each path, averaged over the batch; prompts carry no loss."""
    rows = [(*one.prompt, *one.path) for one in batch]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    lines: list[int] = []
    places: list[int] = []
    weights: list[float] = []
    for line, one in enumerate(batch):
        lines += [line] * len(one.path)
        # The token at place p is predicted at place p - 1.
        places += range(len(one.prompt) - 1, len(one.prompt) + len(one.path) - 1)
        weights += [1.0 / len(one.path)] * len(one.path)
    hidden = model.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    # Logits at the paths' places alone: the output layer costs as much as many others.
    logits = model.lm_head(hidden[lines, places])
    targets = torch.tensor([token for one in batch for token in one.path])
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (losses * torch.tensor(weights)).sum() / len(batch)
