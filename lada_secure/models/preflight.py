"""What is checked of a model and of texts before a study, when nothing depends on them yet.

Training and evaluation cut what is too long, by a rule on lengths alone. Before a study, a file
whose texts would be cut is better refused than silently trained on in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from lada_secure.data.prompts import option_text, prompt_of, rationale_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities
from lada_secure.models.loading import TextModel

# Any tokenizer has tokens for digits.
_PROBE: Final = "1"
# The tokenizer takes so many texts at once; more would hold all their tokens in memory.
_BLOCK: Final = 4096


def probe_model(lm: TextModel, *, what: str) -> None:
    """Call a model once, on a made-up text: a forward pass and a generated token.

    Args: what: the model's part in the study, for messages ("the LLM").
    Raises: ParameterError: it cannot be called, or its weights are broken.
    """
    try:
        scored = rationale_log_probabilities(lm, [_PROBE], [_PROBE], batch_size=1)
        greedy_rationales(lm, [_PROBE], batch_size=1, max_new_tokens=1)
    except ParameterError:
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


def needed_tokens(
    lm: TextModel, records: Sequence[Record | PoolSample], *, written: Sequence[int]
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
    lm: TextModel, records: Sequence[Record | PoolSample], written: Sequence[int]
) -> list[int]:
    prompts = lm.token_counts([prompt_of(one.question, one.choices) for one in records])
    paths = lm.token_counts(
        [
            rationale_of(
                one.answer, one.choices, one.rationale if isinstance(one, Record) else None
            )
            for one in records
        ]
    )
    options = iter(lm.token_counts([option_text(text) for one in records for text in one.choices]))
    longest = [max((next(options) for _ in one.choices), default=0) for one in records]
    # An option keeps its end only where it takes at most half of what the model does.
    return [
        max(prompt + max(path + 1, option, new), 2 * option)
        for prompt, path, option, new in zip(prompts, paths, longest, written, strict=True)
    ]
