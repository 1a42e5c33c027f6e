"""Calling a model once, on a made-up text, before anything depends on it."""

from __future__ import annotations

from typing import Final

import numpy as np

from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities
from lada_secure.models.loading import LanguageModel

# Any tokenizer has tokens for digits.
_PROBE: Final = "1"


def probe_model(lm: LanguageModel, *, what: str) -> None:
    """A forward pass and a generated token.

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
