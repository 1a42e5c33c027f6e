"""What a causal model is run for: scores of targets, scores of options, and continuations.

Token ids in, numbers or token ids out; what the ids mean is no concern here. Batches are padded on
the left, so that the positions that matter are the last ones of every row and only their logits are
computed: the output layer of a small model costs as much as many layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError

Tokens = Sequence[int]


def target_scores(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    targets: Sequence[int],
    *,
    pad: int,
    batch_size: int,
) -> FloatArray:
    """Joint log-probability of the last tokens of each row after the ones before them, (n,) nats.

    Args: targets: per row, how many of its last tokens are the target, >= 1 and fewer than all.
    """
    total = np.zeros(len(rows), dtype=np.float64)
    for batch in batches_by_length([len(row) for row in rows], batch_size):
        ids, mask, positions = _left_padded(model, [rows[at] for at in batch], pad=pad)
        keep = max(targets[at] for at in batch)
        with torch.inference_mode():
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep + 1
            ).logits[:, :-1]
            wanted = ids[:, -keep:]
            # log p = logit - logsumexp, without a second tensor of the logits' size.
            chosen = logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
            log_p = (chosen - logits.logsumexp(-1)).cpu().double().numpy()
        for at, values in zip(batch, log_p, strict=True):
            total[at] = values[-targets[at] :].sum()
    return total


def option_scores(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    options: Sequence[Sequence[Tokens]],
    *,
    pad: int,
    max_tokens: int,
    batch_size: int,
) -> list[FloatArray]:
    """Log-probability per token of every option after its prompt, one array per prompt.

    A prompt is read once, and its keys and values serve all its options.

    Args: max_tokens: of the model; prompt and option fit in it.
    """
    found: list[FloatArray] = [np.zeros(0)] * len(prompts)
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        scores = _option_scores(
            model,
            [prompts[at] for at in batch],
            [options[at] for at in batch],
            pad=pad,
            max_tokens=max_tokens,
        )
        for at, values in zip(batch, scores, strict=True):
            found[at] = values
    return found


def _option_scores(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    options: Sequence[Sequence[Tokens]],
    *,
    pad: int,
    max_tokens: int,
) -> list[FloatArray]:
    ids, mask, positions = _left_padded(model, prompts, pad=pad)
    owner = [row for row, texts in enumerate(options) for _ in texts]
    texts = [text for group in options for text in group]
    longest = max(len(text) for text in texts)
    # Padded on the right: what stands behind an option's end cannot change its probability.
    tail = torch.full((len(texts), longest), pad, dtype=torch.long)
    for number, text in enumerate(texts):
        tail[number, : len(text)] = torch.tensor(text, dtype=torch.long)
    tail = tail.to(ids.device)
    with torch.inference_mode():
        read = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = read.past_key_values
        cache.batch_select_indices(torch.tensor(owner, device=ids.device))
        steps = torch.arange(1, longest, device=ids.device)
        rest = model(
            input_ids=tail[:, :-1],
            attention_mask=torch.cat([mask[owner], torch.ones_like(tail[:, :-1])], dim=1),
            # Behind an option's own end only padding can come to the model's last position.
            position_ids=(positions[owner, -1:] + steps).clamp(max=max_tokens - 1),
            past_key_values=cache,
        ).logits
        logits = torch.cat([read.logits[owner], rest], dim=1)
        chosen = logits.gather(-1, tail.unsqueeze(-1)).squeeze(-1)
        log_p = (chosen - logits.logsumexp(-1)).cpu().double().numpy()
    scores = [float(log_p[row, : len(text)].mean()) for row, text in enumerate(texts)]
    return [
        np.array([score for score, whose in zip(scores, owner, strict=True) if whose == row])
        for row in range(len(prompts))
    ]


def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    *,
    end: int,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each prompt, up to its end token and without it.

    Args: temperature: 0 is greedy. seed: of the sampling, not for privacy.
    """
    found: list[list[int]] = [[]] * len(prompts)
    how: dict[str, object] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    generator: Any = model
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for batch in batches_by_length([len(one) for one in prompts], batch_size):
            ids, mask, _ = _left_padded(model, [prompts[at] for at in batch], pad=end)
            written = generator.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=end,
                eos_token_id=end,
                **how,
            )[:, ids.shape[1] :]
            for at, tokens in zip(batch, written.tolist(), strict=True):
                found[at] = tokens[: tokens.index(end)] if end in tokens else tokens
    return found


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, so that little is padded."""
    if batch_size < 1:
        raise ParameterError(f"batch_size: expected 1 or more, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def _left_padded(
    model: PreTrainedModel, rows: Sequence[Tokens], *, pad: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and positions, each (batch, longest) int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[number, longest - len(row) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    device = model.device
    return ids.to(device), mask.to(device), positions.to(device)
