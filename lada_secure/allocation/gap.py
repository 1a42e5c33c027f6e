"""Learnability: what training on a sample brought, and what is in reach.

Losses are in nats per token (the mean over the tokens of a whole path, each model with its own
tokenizer); p = exp(-loss) is the geometric mean probability of a token, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import FloatArray, IntArray, float_vector, index_vector
from lada_secure.errors import ParameterError

# How many samples a coarser estimate counts for.
_STRENGTH = 4.0


def probability(losses: npt.ArrayLike) -> FloatArray:
    """p = exp(-loss), (n,) float64 in [0, 1].

    Args: losses: (n,) >= 0, nats per token; +inf gives 0.
    Raises: ParameterError: NaN or negative losses.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any() or (values < 0.0).any():
        raise ParameterError(f"losses: expected (n,) >= 0 without NaN, got shape {values.shape}")
    return np.exp(-values)


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
    """LaDa's reward of each cell: the mean of exp(-loss after) - exp(-loss before), in [-1, 1].

    Over the samples that were trained on. Both losses come from models that were released under
    DP, on public samples: post-processing.
    """
    before, after = probability(losses_before), probability(losses_after)
    if before.shape != after.shape:
        raise ParameterError(f"reward: {len(before)} losses before, {len(after)} after training")
    return cell_means(after - before, cell_of_sample, cells=cells)


def smoothed(seen: CellMeans, clusters_of_cells: npt.ArrayLike, *, prior: float) -> FloatArray:
    """Estimate a mean for every cell, also where nothing or little was seen, (d,) float64.

    A cell leans on its cluster, the cluster on all samples, all samples on `prior`, each as if
    the coarser estimate had been seen four times (shrinkage; Efron and Morris 1975).

    Raises: ParameterError: lengths that differ.
    """
    places = np.asarray(clusters_of_cells, dtype=np.int64)
    if places.shape != seen.mean.shape:
        raise ParameterError(f"clusters of cells: expected {seen.mean.shape}, got {places.shape}")
    count = seen.count.astype(np.float64)
    total = seen.mean * count
    overall = (total.sum() + _STRENGTH * prior) / (count.sum() + _STRENGTH)
    cluster_count = np.bincount(places, weights=count)
    cluster_total = np.bincount(places, weights=total)
    per_cluster = (cluster_total + _STRENGTH * overall) / (cluster_count + _STRENGTH)
    estimate: FloatArray = (total + _STRENGTH * per_cluster[places]) / (count + _STRENGTH)
    return estimate
