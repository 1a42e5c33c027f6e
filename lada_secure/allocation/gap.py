"""Learnability: who knows a sample better, what training on it brought, and what is in reach.

Losses are in nats per token (the mean over the tokens of a whole path, each model with its own
tokenizer); p = exp(-loss) is the geometric mean probability of a token, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import FloatArray, IntArray, float_vector, index_vector
from lada_secure.errors import ParameterError


def length_normalised(totals: npt.ArrayLike, lengths: npt.ArrayLike) -> FloatArray:
    """Joint log-probabilities of whole paths, per unit of length.

    Args: totals: (n,) <= 0, nats. lengths: (n,) > 0, tokens of the model's own tokenizer, or
        characters where models with different tokenizers are compared in absolute terms.
    Returns: (n,) float64 <= 0.
    Raises: ParameterError: a length below 1 or shapes that differ.
    """
    sums = float_vector("path log-probabilities", totals)
    sizes = float_vector("path lengths", lengths, length=len(sums))
    if (sizes < 1.0).any():
        raise ParameterError("path lengths: expected at least 1; an empty path has no probability")
    return np.minimum(sums / sizes, 0.0)


def learnability_gap(
    *,
    slm_totals: npt.ArrayLike,
    slm_lengths: npt.ArrayLike,
    llm_totals: npt.ArrayLike,
    llm_lengths: npt.ArrayLike,
) -> FloatArray:
    """How much better the LLM predicts each rationale than the SLM does, (n,) nats.

    Positive: the LLM has something to teach. Negative: the SLM knows more (the LLM transfer's
    direction). Tokens are never aligned: only log-probabilities of whole paths are compared
    (Guo et al. 2026, arXiv 2602.18749).
    """
    small = length_normalised(slm_totals, slm_lengths)
    large = length_normalised(llm_totals, llm_lengths)
    if small.shape != large.shape:
        raise ParameterError(
            f"learnability gap: {len(small)} paths under the SLM, {len(large)} under the LLM"
        )
    return large - small


def probability(losses: npt.ArrayLike) -> FloatArray:
    """p = exp(-loss), (n,) float64 in [0, 1].

    Args: losses: (n,) >= 0, nats per token; +inf gives 0.
    Raises: ParameterError: NaN or negative losses.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any() or (values < 0.0).any():
        raise ParameterError(f"losses: expected (n,) >= 0 without NaN, got shape {values.shape}")
    return np.exp(-values)


def band(probabilities: npt.ArrayLike) -> FloatArray:
    """Learnability band 4 p (1 - p), (n,) in [0, 1]: 0 for mastered and for hopeless samples.

    p (1 - p) is the variance of a success with probability p, which bounds how far one step of
    training can move it; the factor puts its largest value, at p = 1/2, to 1.
    """
    values = float_vector("probabilities", probabilities)
    if (values < 0.0).any() or (values > 1.0).any():
        raise ParameterError("probabilities: expected entries in [0, 1]")
    return 4.0 * values * (1.0 - values)


def reward(losses_before: npt.ArrayLike, losses_after: npt.ArrayLike) -> FloatArray:
    """LaDa's reward of samples: exp(-loss after) - exp(-loss before), (n,) in [-1, 1].

    Both losses come from models that were released under DP, on public samples: post-processing.
    """
    before = probability(losses_before)
    after = probability(losses_after)
    if before.shape != after.shape:
        raise ParameterError(f"reward: {len(before)} losses before, {len(after)} after training")
    return after - before


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellMeans:
    """Means per cell: `mean` (d,) float64, 0 where nothing was seen; `count` (d,) int64."""

    mean: FloatArray
    count: IntArray

    @property
    def seen(self) -> IntArray:
        """Numbers of the cells with at least one sample."""
        return np.flatnonzero(self.count).astype(np.int64)


def cell_means(values: npt.ArrayLike, cell_of_sample: npt.ArrayLike, *, cells: int) -> CellMeans:
    """Mean of a value over the samples of each cell.

    Args: values: (m,) finite. cell_of_sample: (m,) cell numbers in [0, cells).
    """
    entries = float_vector("values", values)
    places = index_vector("cells of samples", cell_of_sample, below=cells, length=len(entries))
    count = np.bincount(places, minlength=cells).astype(np.int64)
    total = np.bincount(places, weights=entries, minlength=cells)
    return CellMeans(mean=total / np.maximum(count, 1), count=count)


def cell_rewards(
    losses_before: npt.ArrayLike,
    losses_after: npt.ArrayLike,
    cell_of_sample: npt.ArrayLike,
    *,
    cells: int,
) -> CellMeans:
    """Reward of each cell: the mean reward of the samples that were trained on."""
    return cell_means(reward(losses_before, losses_after), cell_of_sample, cells=cells)


def smoothed(
    seen: CellMeans, clusters_of_cells: npt.ArrayLike, *, prior: float, strength: float = 4.0
) -> FloatArray:
    """Estimate a mean for every cell, also where nothing or little was seen, (d,) float64.

    A cell leans on its cluster, the cluster on all samples, all samples on `prior`, each as if
    the coarser estimate had been seen `strength` times (shrinkage; Efron and Morris 1975).

    Raises: ParameterError: strength <= 0, or lengths that differ.
    """
    if not strength > 0.0:
        raise ParameterError(f"shrinkage strength: expected above 0, got {strength}")
    places = np.asarray(clusters_of_cells, dtype=np.int64)
    if places.shape != seen.mean.shape:
        raise ParameterError(f"clusters of cells: expected {seen.mean.shape}, got {places.shape}")
    count = seen.count.astype(np.float64)
    total = seen.mean * count
    overall = (total.sum() + strength * prior) / (count.sum() + strength)
    cluster_count = np.bincount(places, weights=count)
    cluster_total = np.bincount(places, weights=total)
    per_cluster = (cluster_total + strength * overall) / (cluster_count + strength)
    estimate: FloatArray = (total + strength * per_cluster[places]) / (count + strength)
    return estimate
