"""Which samples a site asks for: the best by decrypted score, or within quotas by cluster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.cells import CellGrid
from lada_secure.arrays import BoolArray, FloatArray, IntArray, float_vector, index_vector
from lada_secure.ranges import at_least

# Scores are read in steps of this size: wider than the error that decryption leaves.
SCORE_STEP = 2.0**-10
# Decryption leaves an error of about 1e-5, so that a score of exactly 0 comes back as either sign.
SMALLEST_SCORE = 0.01


def read_scores(scores: npt.ArrayLike) -> FloatArray:
    """Scores in whole `SCORE_STEP`s, (n,): decryption, which is off by less, decides no tie.

    Raises: ParameterError: a score is NaN or infinite.
    """
    return np.round(float_vector("scores", scores) / SCORE_STEP) * SCORE_STEP


def pick(order: FloatArray, candidates: BoolArray, *, quota: int, seed: int) -> BoolArray:
    """Pick up to `quota` candidates, the first in order.

    Args: order: (n,) finite, largest first. candidates: (n,) samples that
        may be picked. seed: breaks ties, by a fixed shuffle rather than by position: a pool is
        often sorted by topic.
    Returns: (n,) bool with at most quota True; fewer where there are fewer candidates.
    """
    shuffle = np.random.default_rng(seed).permutation(len(order))
    places = np.lexsort((shuffle, -order))
    picked = np.zeros(len(order), dtype=np.bool_)
    picked[places[candidates[places]][:quota]] = True
    return picked


def pick_by_cluster(
    order: FloatArray, candidates: BoolArray, clusters: IntArray, quotas: IntArray, *, seed: int
) -> BoolArray:
    """Pick within a quota per cluster.

    Args: clusters: (n,) of samples. quotas: (C,) from `cluster_quotas`. The rest as in `pick`.
    Returns: (n,) bool.
    """
    picked = np.zeros(len(order), dtype=np.bool_)
    for cluster in np.flatnonzero(quotas).tolist():
        quota = int(quotas[cluster])
        picked |= pick(order, candidates & (clusters == cluster), quota=quota, seed=seed)
    return picked


def cluster_quotas(shares: npt.ArrayLike, quota: int, *, available: npt.ArrayLike) -> IntArray:
    """Split a quota over clusters in proportion to their shares (largest remainders).

    Args: shares: (C,) >= 0, any scale; all zero counts as equal. quota: samples to split, >= 0.
        available: (C,) samples that each cluster has.
    Returns: (C,) int64, at most `available` each; what one cannot take goes to the others with a
        share, then to any. Sums to min(quota, samples available).
    """
    at_least(0, quota=quota)
    weights = float_vector("cluster shares", shares, low=0.0)
    rooms = index_vector("available per cluster", available, below=2**31, length=len(weights))
    given = np.zeros(len(weights), dtype=np.int64)
    left = min(quota, int(rooms.sum()))
    while left > 0:
        room = rooms - given
        active = np.where(room > 0, weights, 0.0)
        if active.sum() <= 0.0:
            active = (room > 0).astype(np.float64)
        step = np.minimum(_largest_remainders(active, left), room)
        given += step
        left -= int(step.sum())
    return given


def _largest_remainders(weights: FloatArray, quota: int) -> IntArray:
    exact = quota * weights / weights.sum()
    step: IntArray = np.floor(exact).astype(np.int64)
    by_remainder = np.lexsort((np.arange(len(weights)), -(exact - step)))
    step[by_remainder[: quota - int(step.sum())]] += 1
    return step


def cluster_utilities(utilities: npt.ArrayLike, grid: CellGrid) -> FloatArray:
    """What each public cluster is worth, (C,) >= 0: the mean of its cells' positive utilities.

    Shares for `cluster_quotas`: a site that is not sure splits its quota, and one that is sure does
    not. Picking by score alone would give everything to whichever cell is ahead by a hair.
    """
    values = np.maximum(float_vector("utilities", utilities, length=grid.cells), 0.0)
    per_cluster: FloatArray = values.reshape(grid.clusters, grid.bins).mean(axis=1)
    return per_cluster
