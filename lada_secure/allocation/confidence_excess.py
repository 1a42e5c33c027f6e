"""Confidence excesses: by how much a site's model passes the threshold, and which
samples the LLM should ask for.

A site does not know how well the LLM does, and need not be told: it sends its excess over a public
threshold. Where the LLM itself stays below it, as only its owner can see, the sum of the excesses
is a lower bound on the sum of max(0, confidence of a site - confidence of the LLM). Elsewhere it
says nothing and is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import IntArray, float_vector, index_vector
from lada_secure.errors import ParameterError
from lada_secure.ranges import at_least


def scaled_confidence(confidence: npt.ArrayLike, scale: int) -> IntArray:
    """floor(scale x confidence), (n,) int64 in [0, scale].

    Raises: ParameterError: a confidence outside [0, 1], or scale < 1.
    """
    at_least(1, scale_of_advantages=scale)
    values = float_vector("certainty", confidence, low=0.0, high=1.0)
    return np.floor(values * scale).astype(np.int64)


def excess_over_threshold(
    confidence: npt.ArrayLike,
    pool_indices: Sequence[int],
    *,
    pool_size: int,
    threshold: float,
    clip: float,
    scale: int,
) -> IntArray:
    """One site's vector: min(max(0, confidence - threshold), clip) in whole steps of 1 / scale.

    Args: confidence: (m,) in [0, 1], of the released SLM on the candidates. places: their m pool
        indices, different. threshold: in [0, 1). clip: in (0, 1]. scale: >= 1.
    Returns: (pool_size,) int64 in [0, floor(scale x clip)], 0 for all other samples. Rounded
        towards zero, so that a confidence excess is never overstated.
    Guarantee: a function of a released model and public samples: post-processing.
    Raises: ParameterError: a value outside its range.
    """
    if not (0.0 <= threshold < 1.0 and 0.0 < clip <= 1.0 and scale >= 1):
        raise ParameterError(
            f"advantages: expected bar in [0, 1), clip in (0, 1] and scale >= 1, got {threshold}, "
            f"{clip} and {scale}"
        )
    values = float_vector("certainty", confidence, low=0.0, high=1.0)
    where = index_vector("candidates", pool_indices, below=pool_size, length=len(values))
    if len(set(where.tolist())) != len(where):
        raise ParameterError("advantages: a candidate comes twice")
    steps = np.floor(np.maximum(values - threshold, 0.0) * scale).astype(np.int64)
    vector = np.zeros(pool_size, dtype=np.int64)
    vector[where] = np.minimum(steps, math.floor(scale * clip))
    return vector


def samples_to_ask(
    opened: npt.ArrayLike,
    llm_confidence: npt.ArrayLike,
    candidates: Sequence[int],
    *,
    threshold: float,
    budget: int,
) -> list[int]:
    """Candidates on which sites have a confidence excess and the LLM is at or below the threshold.

    Args: opened: (n,) summed confidence excesses. llm_confidence: (n,) in [0, 1], the owner's own
        knowledge. budget: >= 0, most samples.
    Returns: pool indices, ascending; those with the largest sums where there are more than the
        budget, lower indices first among equals.
    """
    sums = index_vector("opened advantages", opened, below=2**40)
    own = float_vector("certainty of the LLM", llm_confidence, length=len(sums))
    at_least(0, budget_of_samples_to_ask_for=budget)
    fitting = [one for one in candidates if sums[one] > 0 and own[one] <= threshold]
    best = sorted(fitting, key=lambda one: (-int(sums[one]), one))[:budget]
    return sorted(best)
