"""What a causal model is run for: scores of targets, scores of options, and continuations.

Token ids in, numbers or token ids out; what the ids mean is no concern here. Batches are padded on
the left, so that the positions that matter are the last ones of every row and only their logits are
computed: the output layer of a small model costs as much as many layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionTokens:
    """A multiple-choice question in tokens: what is read once, and each option after it.

    firsts: place of the first scored token of each option; before it stand the question's last
    tokens where another option's first token swallows them.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """The prompt with every option."""
        return [self.prompt + option for option in self.options]

    @property
    def lengths(self) -> list[int]:
        """Scored tokens of every option, >= 1."""
        return [
            len(option) - first for option, first in zip(self.options, self.firsts, strict=True)
        ]


def target_scores(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    targets: Sequence[int],
    *,
    pad: int | None,
    batch_size: int,
) -> FloatArray:
    """Joint log-probability of the last tokens of each row after the ones before them, (n,) nats.

    Args: targets: per row, how many of its last tokens are the target, >= 1 and fewer than all.
        pad: fills rows on the left; None for a model that padding would change.
    """
    total = np.zeros(len(rows), dtype=np.float64)
    for batch in _batches([len(row) for row in rows], batch_size, pads=pad is not None):
        inputs = _inputs(model, [rows[at] for at in batch], pad=pad)
        keep = max(targets[at] for at in batch)
        log_p = last_log_probabilities(model, inputs, keep=keep).cpu().double().numpy()
        for at, values in zip(batch, log_p, strict=True):
            total[at] = values[-targets[at] :].sum()
    return total


def last_log_probabilities(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], *, keep: int
) -> torch.Tensor:
    """Log-probability of each row's last `keep` tokens, (batch, keep) float32 nats."""
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, :-1]
        return _log_probabilities(logits, inputs["input_ids"][:, -keep:])


def _log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token, (n, t) float32 nats, from logits (n, t, v) of any type.

    In float32, for in bfloat16 a logit of 20 is right to a sixteenth. Row by row, for a logarithm
    of a sum takes as much memory again as what it is given.
    """
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float()
    return chosen - torch.stack([row.float().logsumexp(-1) for row in logits])


def option_scores(
    model: PreTrainedModel,
    asked: Sequence[OptionTokens],
    *,
    pad: int,
    max_tokens: int,
    batch_size: int,
) -> list[FloatArray]:
    """Log-probability per token of every option after its prompt, one array per question.

    A prompt is read once, and its keys and values serve all its options.

    Args: max_tokens: of the model; prompt and option fit in it.
    """
    found: list[FloatArray] = [np.zeros(0)] * len(asked)
    for batch in batches_by_length([len(one.prompt) for one in asked], batch_size):
        scores = _option_scores(model, [asked[at] for at in batch], pad=pad, max_tokens=max_tokens)
        for at, values in zip(batch, scores, strict=True):
            found[at] = values
    return found


def _option_scores(
    model: PreTrainedModel, asked: Sequence[OptionTokens], *, pad: int, max_tokens: int
) -> list[FloatArray]:
    ids, mask, positions = _left_padded(model, [one.prompt for one in asked], pad=pad)
    owner = [row for row, one in enumerate(asked) for _ in one.options]
    texts = [text for one in asked for text in one.options]
    firsts = [first for one in asked for first in one.firsts]
    longest = max(len(text) for text in texts)
    # Padded on the right: what stands behind an option's end cannot change its probability.
    tail = torch.full((len(texts), longest), pad, dtype=torch.long)
    for number, text in enumerate(texts):
        tail[number, : len(text)] = torch.tensor(text, dtype=torch.long)
    log_p = (
        option_log_probabilities(
            model, (ids, mask, positions), tail.to(ids.device), owner, max_tokens=max_tokens
        )
        .cpu()
        .double()
        .numpy()
    )
    scores = [
        float(log_p[row, first : len(text)].mean())
        for row, (text, first) in enumerate(zip(texts, firsts, strict=True))
    ]
    return [
        np.array([score for score, whose in zip(scores, owner, strict=True) if whose == row])
        for row in range(len(asked))
    ]


def option_log_probabilities(
    model: PreTrainedModel,
    prompts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    options: torch.Tensor,
    owner: Sequence[int],
    *,
    max_tokens: int,
) -> torch.Tensor:
    """Log-probability of each token of each option, (options, longest) float32 nats.

    Args: prompts: ids, mask and positions, padded on the left, each (questions, length). options:
        ids padded on the right, (options, longest). owner: the question of each option.
    """
    ids, mask, positions = prompts
    longest = options.shape[1]
    with torch.inference_mode():
        read = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        first = _log_probabilities(read.logits[owner], options[:, :1])
        # Letters are single tokens: the prompt's last position has said all.
        if longest == 1:
            return first
        cache = read.past_key_values
        cache.batch_select_indices(torch.tensor(owner, device=ids.device))
        steps = torch.arange(1, longest, device=ids.device)
        rest = model(
            input_ids=options[:, :-1],
            attention_mask=torch.cat([mask[owner], torch.ones_like(options[:, :-1])], dim=1),
            # Behind an option's own end only padding can come to the model's last position.
            position_ids=(positions[owner, -1:] + steps).clamp(max=max_tokens - 1),
            past_key_values=cache,
        ).logits
        return torch.cat([first, _log_probabilities(rest, options[:, 1:])], dim=1)


def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    *,
    ends: Sequence[int],
    pads: bool,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each prompt, up to one of the tokens that end it, without it.

    Args: ends: the first one pads as well. pads: False for a model that padding would change.
        temperature: 0 is greedy. top_p: in (0, 1], tokens are drawn from the fewest that have this
        share of the probability. seed: of the sampling, not for privacy.
    """
    found: list[list[int]] = [[]] * len(prompts)
    if temperature == 0.0 and pads:
        for batch in batches_by_length([len(one) for one in prompts], batch_size):
            paths = _greedy(model, [prompts[at] for at in batch], ends=ends, most=max_new_tokens)
            for at, path in zip(batch, paths, strict=True):
                found[at] = path
        return found
    how: dict[str, object] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    generator: Any = model
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for batch in _batches([len(one) for one in prompts], batch_size, pads=pads):
            ids, mask, _ = _left_padded(model, [prompts[at] for at in batch], pad=ends[0])
            written = generator.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=ends[0],
                eos_token_id=list(ends),
                **how,
            )[:, ids.shape[1] :]
            for at, tokens in zip(batch, written.tolist(), strict=True):
                found[at] = list(takewhile(lambda token: token not in ends, tokens))
    return found


def _greedy(
    model: PreTrainedModel, prompts: Sequence[Tokens], *, ends: Sequence[int], most: int
) -> list[list[int]]:
    """The most probable tokens after each prompt, one by one, `most` at most.

    A row that has ended leaves the batch, which else computes it up to the longest path's end.
    """
    found: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    ids, mask, positions = _left_padded(model, prompts, pad=ends[0])
    cache: Any = None
    with torch.inference_mode():
        for _ in range(most):
            read = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, tokens = read.past_key_values, read.logits[:, -1].argmax(-1)
            written = tokens.tolist()
            going = [at for at, token in enumerate(written) if token not in ends]
            for at in going:
                found[rows[at]].append(written[at])
            if not going:
                break
            if len(going) < len(rows):
                kept = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(kept)
                rows = [rows[at] for at in going]
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return found


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, so that little is padded."""
    if batch_size < 1:
        raise ParameterError(f"batch_size: expected 1 or more, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def _batches(lengths: Sequence[int], batch_size: int, *, pads: bool) -> Iterator[list[int]]:
    """`batches_by_length`, of equal lengths alone for a model that padding would change."""
    for batch in batches_by_length(lengths, batch_size):
        yield from (
            [batch]
            if pads
            else (list(rows) for _, rows in groupby(batch, key=lambda row: lengths[row]))
        )


def _inputs(
    model: PreTrainedModel, rows: Sequence[Tokens], *, pad: int | None
) -> dict[str, torch.Tensor]:
    """What the model is called with for rows of one of `_batches`."""
    ids, mask, positions = _left_padded(model, rows, pad=pad or 0)
    if pad is None:
        return {"input_ids": ids}
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


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
