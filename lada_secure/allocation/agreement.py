"""From gains of single paths to what a site believes of cells and of each path.

A single gain is noisy (`lada_secure.models.reference_model`); paths of one cell are alike. So a
path is judged by its own gain together with its cell's, and a cell by its mean gain against that
mean's standard error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.gap import CellMeans, cell_means
from lada_secure.arrays import BoolArray, FloatArray, float_vector, index_vector
from lada_secure.ranges import within

_PRIOR_PATHS = 2.0
# How many paths a cell's mean counts for beside one of its own.
_CELL_WEIGHT = 4.0
# Of the best cell's mean gain, for a cell to be one that agrees.
_LEAST_SHARE = 0.5


def cell_agreement(
    gains: npt.ArrayLike, cell_of_rationale: npt.ArrayLike, *, cells: int
) -> FloatArray:
    """How sure it is that a cell's paths agree with the private records, (d,) in [0, 1].

    The normal probability that the cell's mean gain is above half of the best cell's mean. The
    spread of a gain is estimated over all paths; two paths at the bound are counted in, so an
    unseen cell has 1/2.

    Args: gains: (m,) nats per token. cell_of_rationale: (m,) in [0, cells).
    """
    from scipy.special import ndtr

    values = float_vector("gains", gains)
    seen = cell_means(values, cell_of_rationale, cells=cells)
    bound = _bound(seen, _LEAST_SHARE)
    counted = seen.count + _PRIOR_PATHS
    excess = (seen.mean - bound) * seen.count / counted
    return np.asarray(
        ndtr(excess * np.sqrt(counted) / _spread(values, seen, cell_of_rationale)), dtype=np.float64
    )


def agreeing_rationales(
    gains: npt.ArrayLike,
    cell_of_rationale: npt.ArrayLike,
    *,
    cells: int,
    least_share: float,
) -> BoolArray:
    """Which paths to train on: those that gain enough beside the cell that gains most.

    A path's gain leans on its cell's mean, and must be above `least_share` of the best cell's mean
    (which leans on 0) and above 0. Noise raises and lowers all texts together, so what counts is a
    path's place among the others.

    Args: least_share: in [0, 1].
    Returns: (m,) bool.
    """
    values = float_vector("gains", gains)
    places = index_vector("cells of paths", cell_of_rationale, below=cells, length=len(values))
    seen = cell_means(values, places, cells=cells)
    leaning: FloatArray = (values + _CELL_WEIGHT * seen.mean[places]) / (1.0 + _CELL_WEIGHT)
    return leaning > _bound(seen, least_share)


def _bound(seen: CellMeans, least_share: float) -> float:
    within(0.0, 1.0, least_share=least_share)
    leaning = seen.mean * seen.count / (seen.count + _PRIOR_PATHS)
    return least_share * max(float(leaning.max(initial=0.0)), 0.0)


def _spread(values: FloatArray, seen: CellMeans, cell_of_rationale: npt.ArrayLike) -> float:
    """Standard deviation of gains around their cells' means, never 0."""
    if not len(values):
        return 1.0
    away = values - seen.mean[np.asarray(cell_of_rationale)]
    free = max(len(values) - len(seen.seen), 1)
    return max(float(np.sqrt(np.sum(away**2) / free)), 1e-3)
