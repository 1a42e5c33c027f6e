"""Top-k logits along whole paths: what FedMKT and FedCoLLM send, and the loss against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lada_lab.baselines.token_alignment import TokenAlignment, TopLogits
from lada_secure.errors import ParameterError
from lada_secure.models.examples import TokenRow, encode_row
from lada_secure.models.loading import LanguageModel


class TaughtRow(NamedTuple):
    """What a teacher sends for one sample, in the learner's tokens."""

    row: TokenRow
    top: TopLogits


def rationale_logits(lm: LanguageModel, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
    """Logits about every target token.

    Args: rows: at least one.
    Returns: (sum of target lengths, vocabulary) float32, and the targets, (sum,) int64. Rows one
        after the other.
    """
    width = max(len(row.tokens) for row in rows)
    ids = torch.tensor(
        [[*row.tokens, *([lm.end_token] * (width - len(row.tokens)))] for row in rows]
    )
    ids = ids.to(lm.model.device)
    causal: Any = lm.model
    # No attention mask: under causal attention nothing sees the padding that follows it.
    logits: Tensor = causal(input_ids=ids, use_cache=False).logits
    parts = [logits[at, row.target_start - 1 : len(row.tokens) - 1] for at, row in enumerate(rows)]
    targets = [ids[at, row.target_start : len(row.tokens)] for at, row in enumerate(rows)]
    return torch.cat(parts).float(), torch.cat(targets)


def top_logits(
    lm: LanguageModel, rows: Sequence[TokenRow], *, k: int, batch_size: int
) -> list[TopLogits]:
    """The k likeliest tokens at every target place, one entry per row.

    Raises: ParameterError: k below 1.
    """
    if k < 1:
        raise ParameterError(f"top logits: expected k of at least 1, got {k}")
    found: list[TopLogits] = []
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        with torch.no_grad():
            logits, _ = rationale_logits(lm, part)
        values, tokens = logits.topk(min(k, logits.shape[-1]), dim=-1)
        lengths = [row.target_length for row in part]
        found += [
            TopLogits(tokens=ids.clone(), probabilities=shares.clone())
            for ids, shares in zip(
                torch.split(tokens, lengths),
                torch.split(values.softmax(-1), lengths),
                strict=True,
            )
        ]
    return found


def taught_rows(
    teacher: LanguageModel,
    learner: LanguageModel,
    texts: Sequence[tuple[str, str]],
    alignment: TokenAlignment,
    *,
    k: int,
    batch_size: int,
) -> list[TaughtRow]:
    """What a teacher thinks of (prompt, path) pairs, in the learner's tokens.

    Args: alignment: of this pair of models.
    """
    rows = [encode_row(teacher, *text) for text in texts]
    tops = top_logits(teacher, rows, k=k, batch_size=batch_size)
    if not alignment.same:
        own = [encode_row(learner, *text) for text in texts]
        tops = [
            alignment.carried(top, told.tokens[told.target_start :], row.tokens[row.target_start :])
            for row, told, top in zip(own, rows, tops, strict=True)
        ]
        rows = own
    return [TaughtRow(row, top) for row, top in zip(rows, tops, strict=True)]


def logit_loss(lm: LanguageModel, taught: Sequence[TaughtRow], *, weight: float) -> Tensor:
    """Mean over rows of (1 - weight) x cross-entropy + weight x KL(teacher || learner).

    Both are means over a row's target tokens. The teacher's distribution is the one over its k
    tokens, the learner's is over all of its own, so that what it gives to other tokens counts.
    """
    rows = [row for row, _ in taught]
    logits, targets = rationale_logits(lm, rows)
    log_q = logits.log_softmax(-1)
    entropy = functional.nll_loss(log_q, targets, reduction="none")
    tokens = torch.cat([top.tokens for _, top in taught])
    teacher = torch.cat([top.probabilities for _, top in taught])
    divergence = (torch.xlogy(teacher, teacher) - teacher * log_q.gather(-1, tokens)).sum(-1)
    mixed = (1.0 - weight) * entropy + weight * divergence
    lengths = [row.target_length for row in rows]
    return torch.stack([part.mean() for part in torch.split(mixed, lengths)]).mean()
