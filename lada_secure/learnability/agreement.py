"""From gains of single paths to what a site believes of cells and of each path.

A single gain is noisy (`lada_secure.distillation.guide`); paths of one cell are alike. So a path is
judged by its own gain together with its cell's, and a cell by its mean gain against that mean's
standard error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lada_secure.errors import ParameterError
from lada_secure.learnability.arrays import BoolArray, FloatArray, float_vector, index_vector
from lada_secure.learnability.gap import cell_means


def cell_agreement(
    gains: npt.ArrayLike, cell_of_path: npt.ArrayLike, *, cells: int, prior_paths: float = 2.0
) -> FloatArray:
    """How sure it is that a cell's paths agree with the private records, (d,) in [0, 1].

    The normal probability that the cell's mean gain is above 0. The spread of a gain is estimated
    over all paths; `prior_paths` of gain 0 are counted in, so an unseen cell has 1/2.

    Args: gains: (m,) nats per token. cell_of_path: (m,) in [0, cells). prior_paths: > 0.
    """
    from scipy.special import ndtr

    values = float_vector("gains", gains)
    if not prior_paths > 0.0:
        raise ParameterError(f"prior_paths: expected above 0, got {prior_paths}")
    seen = cell_means(values, cell_of_path, cells=cells)
    spread = _spread(values)
    total = seen.mean * seen.count
    counted = seen.count + prior_paths
    certainty: FloatArray = np.asarray(
        ndtr((total / counted) / (spread / np.sqrt(counted))), dtype=np.float64
    )
    return certainty


def agreeing_paths(
    gains: npt.ArrayLike,
    cell_of_path: npt.ArrayLike,
    *,
    cells: int,
    least: float = 0.0,
    cell_weight: float = 4.0,
) -> BoolArray:
    """Which paths to train on: those whose gain, leaning on their cell's mean, is above `least`.

    Args: cell_weight: >= 0, how many paths the cell's mean counts for. least: nats per token.
    Returns: (m,) bool.
    """
    values = float_vector("gains", gains)
    places = index_vector("cells of paths", cell_of_path, below=cells, length=len(values))
    if not cell_weight >= 0.0:
        raise ParameterError(f"cell_weight: expected at least 0, got {cell_weight}")
    seen = cell_means(values, places, cells=cells)
    leaning: FloatArray = (values + cell_weight * seen.mean[places]) / (1.0 + cell_weight)
    verdict: BoolArray = leaning > least
    return verdict


def _spread(values: FloatArray) -> float:
    """Standard deviation of gains around 0, never 0."""
    if not len(values):
        return 1.0
    return max(float(np.sqrt(np.mean(values**2))), 1e-6)
