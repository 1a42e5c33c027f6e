"""What is checked of a model and of texts before a study, when nothing depends on them yet.

Training and evaluation cut what is too long, by a rule on lengths alone. Before a study, a file
whose texts would be cut is better refused than silently trained on in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Final

import numpy as np
import torch

from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.evaluation import (
    cache_deviation,
    greedy_rationales,
    rationale_log_probabilities,
)
from lada_secure.models.loading import LanguageModel
from lada_secure.models.text_model import ModelTexts, TextModel
from lada_secure.privacy.release.private_records import for_each_unit

# Any tokenizer has tokens for digits.
_PROBE: Final = "1"
# Nats a token. Rounding stays far below both, in short types as well; a fault is far above.
_CACHE_TOLERANCE: Final = 0.05
_AHEAD_TOLERANCE: Final = 0.02
# The tokenizer takes so many texts at once; more would hold all their tokens in memory.
_BLOCK: Final = 4096


def probe_model(lm: TextModel, *, what: str) -> None:
    """Call a model on made-up tokens: forward passes, with a cache and without, and a new token.

    Args: what: the model's part in the study, for messages ("the LLM").
    Raises: ParameterError: it cannot be called, its weights are broken, it is no causal model, or
        its cache changes what it says.
    """
    try:
        looks_ahead = _looks_ahead(lm)
        # A model that looks ahead has no cache that could be compared with anything.
        deviation = 0.0 if looks_ahead else cache_deviation(lm)
        scored = rationale_log_probabilities(lm, [_PROBE], [_PROBE], batch_size=1)
        greedy_rationales(lm, [_PROBE], batch_size=1, max_new_tokens=1)
    except LadaError:
        raise
    except Exception as error:
        # Models of strangers fail in every way; the text was made up here, so it may be shown.
        raise ParameterError(
            f"{what} {lm.name!r} cannot be called: {type(error).__name__}: {error}"
        ) from error
    if not bool(np.isfinite(scored.total).all()):
        raise ParameterError(
            f"{what} {lm.name!r} finds a made-up text NaN or infinitely improbable; its weights "
            "are broken"
        )
    if looks_ahead:
        raise ParameterError(
            f"{what} {lm.name!r} is no causal model: what it says of a token depends on the tokens "
            "after it; use a model that was made to generate"
        )
    if deviation > _CACHE_TOLERANCE:
        raise ParameterError(
            f"{what} {lm.name!r}: its cache changes what it says, by {deviation:.3f} nats a token; "
            "this build of the architecture cannot be used, try another version of transformers"
        )


def _looks_ahead(lm: TextModel) -> bool:
    """Whether later tokens change the logits of earlier ones; a server has been probed for it."""
    if not isinstance(lm, LanguageModel):
        return False
    ids = torch.tensor([lm.encode_prompt(_PROBE * 8)], device=lm.model.device)
    short = max(1, ids.shape[1] // 2)
    with torch.inference_mode():
        whole = lm.model(input_ids=ids, use_cache=False).logits[:, :short].float()
        part = lm.model(input_ids=ids[:, :short], use_cache=False).logits.float()
    scale = float(part.abs().max()) + 1.0
    return bool((whole - part).abs().max() > _AHEAD_TOLERANCE * scale)


def needed_tokens(
    lm: ModelTexts, records: Sequence[Record | PoolSample], *, written: Sequence[int]
) -> list[int]:
    """Most tokens of each record that the model has before it at once.

    That is the prompt with the record's own path and the end token, with the longest option, or
    with so many `written` tokens (per record; 0 where the model writes nothing).
    """
    needed: list[int] = []
    for first in range(0, len(records), _BLOCK):
        part = records[first : first + _BLOCK]
        needed += _needed(lm, part, written[first : first + _BLOCK])
    return needed


def _needed(
    lm: ModelTexts, records: Sequence[Record | PoolSample], written: Sequence[int]
) -> list[int]:
    return [
        # An option keeps its end only where it takes at most half of what the model does.
        max(one.prompt + max(one.path, one.option, new), 2 * one.option)
        for one, new in zip(_sizes(lm, records), written, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSizes:
    """Tokens of one record, or the most of several.

    prompt: with its frame. path: with its end token. row: prompt and path together. option: the
    longest. options: how many there are.
    """

    prompt: int = 1
    path: int = 1
    row: int = 2
    option: int = 0
    options: int = 0

    def largest(self, other: TextSizes) -> TextSizes:
        """The larger of both in every respect."""
        return TextSizes(
            **{
                one.name: max(getattr(self, one.name), getattr(other, one.name))
                for one in fields(self)
            }
        )


def largest_sizes(lm: ModelTexts, records: Sequence[Record | PoolSample]) -> TextSizes:
    """The most tokens of any record, cut as training and evaluation cut; of none, the least.

    A record that the tokenizer cannot encode does not count; it takes no part in a step either.
    """
    found = for_each_unit(
        records, lambda part: _sizes(lm, part), otherwise=TextSizes(), what="counting tokens"
    )
    most = reduce(TextSizes.largest, found, TextSizes())
    room = lm.max_tokens
    return TextSizes(
        prompt=min(most.prompt, room),
        path=min(most.path, room),
        row=min(most.row, room),
        option=min(most.option, room // 2),
        options=most.options,
    )


def _sizes(lm: ModelTexts, records: Sequence[Record | PoolSample]) -> list[TextSizes]:
    style = lm.style
    prompts = lm.token_counts(
        [style.question(lm.form.prompt(one.question, one.choices)) for one in records]
    )
    paths = lm.token_counts(
        [
            lm.form.target(
                one.answer, one.choices, one.rationale if isinstance(one, Record) else None
            )
            for one in records
        ]
    )
    texts = [text for one in records for text in lm.form.options(one.choices)]
    options = iter(lm.token_counts(texts))
    longest = [max((next(options) for _ in one.choices), default=0) for one in records]
    # Apart, prompt and path have as many tokens as together, or a few more where tokens merge.
    frame = len(style.head) + len(style.tail)
    return [
        TextSizes(
            prompt=frame + prompt,
            path=path + 1,
            row=frame + prompt + path + 1,
            option=option,
            options=len(record.choices),
        )
        for record, prompt, path, option in zip(records, prompts, paths, longest, strict=True)
    ]
