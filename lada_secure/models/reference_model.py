"""A DP reference model: adapters of private records alone, to judge which pool paths agree.

DP-SGD on a site's records releases adapters. On their own they may be too noisy to answer well,
yet they tell what the records favour: over many paths, noise averages out. A path *agrees* where
the model raised its log-probability more than that of what the model would say by itself. (A
contrast of two models for selecting data: Moore and Lewis 2010; with a private one: Yu et al.
2023, arXiv 2305.13865.) The contrast removes whatever noise did to all texts alike.

All inputs are released adapters and public text, so gains are post-processing and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import (
    AdapterWeights,
    adapters_kept,
    load_adapters,
    parse_adapter_tensors,
    weights_of,
)
from lada_secure.models.evaluation import generate_texts, rationale_log_probabilities
from lada_secure.models.loading import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastedRationale:
    """A received path, and paths that the reference model drew by itself for the same prompt."""

    prompt: str
    path: str
    own_paths: tuple[str, ...]


def sampled_responses(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    count: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
) -> list[tuple[str, ...]]:
    """Paths that the model as it is now draws at temperature 1, `count` per prompt.

    Fewer where a draw is empty. `seed` is for public prompts only.
    """
    if count < 1:
        raise ParameterError(f"own paths: expected at least 1 per prompt, got {count}")
    drawn = [
        generate_texts(
            lm,
            prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            seed=seed + number,
        )
        for number in range(count)
    ]
    return [tuple(text for text in texts if text.strip()) for texts in zip(*drawn, strict=True)]


def lead_gains(
    lm: LanguageModel,
    paths: Sequence[ContrastedRationale],
    *,
    reference: AdapterWeights,
    guide: AdapterWeights,
    batch_size: int,
) -> FloatArray:
    """By how much the guide favours each path over the model's own ones, (n,) nats per token.

    The change from reference to guide of the path's log-probability, less the mean change of its
    own paths'; 0 for a path without own paths. The model's adapters are left as they were.

    Args: lm: with adapters. reference, guide: of this model.
    """
    prompts = [one.prompt for one in paths for _ in range(1 + len(one.own_paths))]
    texts = [text for one in paths for text in (one.path, *one.own_paths)]
    if not texts:
        return np.zeros(0, dtype=np.float64)
    scores = []
    with adapters_kept(lm):
        for weights in (reference, guide):
            load_adapters(lm, weights)
            scores.append(
                rationale_log_probabilities(lm, prompts, texts, batch_size=batch_size).mean
            )
    change = scores[1] - scores[0]
    gains = np.zeros(len(paths), dtype=np.float64)
    first = 0
    for at, one in enumerate(paths):
        last = first + 1 + len(one.own_paths)
        if one.own_paths:
            gains[at] = change[first] - change[first + 1 : last].mean()
        first = last
    return gains


def scaled_adapters(weights: AdapterWeights, share: float) -> AdapterWeights:
    """Adapters whose update is `share` times as large: 0 is the model before, 1 all of it.

    Raises: ParameterError: share outside [0, 1], or weights without a B to scale.
    """
    if not 0.0 <= share <= 1.0:
        raise ParameterError(f"share of the adapters' update: expected 0 to 1, got {share}")
    tensors = parse_adapter_tensors(weights)
    if not any("lora_B" in name for name in tensors):
        raise ParameterError("scaling adapters needs low-rank ones with a B")
    return weights_of(
        {name: one * share if "lora_B" in name else one for name, one in tensors.items()}
    )
