"""Cells: public topic cluster x difficulty for the LLM, the grain at which samples are allocated.

Clusters come from the public pool alone and are published, so every party places texts the same
way. Difficulty bins and the pool matrix belong to the coordinator and stay with it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from lada_secure.arrays import (
    FloatArray,
    IntArray,
    float_matrix,
    float_vector,
    frozen,
    index_vector,
)
from lada_secure.canonical import Json
from lada_secure.errors import ParameterError, PeerError
from lada_secure.ranges import within

MAX_CLUSTERS = 256
MAX_DIMENSIONS = 4096
MAX_BINS = 64
_DECIMALS = 6
# Of memberships.
_TEMPERATURE = 0.05
# k-means ends in a poor clustering more often than not: with four starts, two topics of the
# benchmark's seven shared a cluster on half of its worlds, with 32 on one in ten.
_STARTS = 32
_START_ITERATIONS = 10
_START_POINTS = 2000
_ITERATIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """Published cluster centres.

    `centroids` is (C, e) float64, rounded to 6 decimals at construction, so that the party that
    computed them and the parties that read them from a plan assign by the same numbers.
    """

    centroids: FloatArray

    def __post_init__(self) -> None:
        """Check and round. Raises: ParameterError: a wrong shape or size, or not finite."""
        rounded = np.round(float_matrix("centroids", self.centroids), _DECIMALS) + 0.0
        within(1, MAX_CLUSTERS, clusters=len(rounded))
        within(1, MAX_DIMENSIONS, dimensions=rounded.shape[1])
        object.__setattr__(self, "centroids", frozen(rounded))

    @property
    def count(self) -> int:
        """Number of clusters C."""
        return len(self.centroids)

    def squared_distances(self, embeddings: npt.ArrayLike) -> FloatArray:
        """Squared Euclidean distances, (n, C) float64, from embeddings (n, e)."""
        points = np.asarray(embeddings, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.centroids.shape[1]:
            raise ParameterError(
                f"embeddings: expected (n, {self.centroids.shape[1]}), got {points.shape}; "
                "the embedder differs from the one that made the clusters"
            )
        squares = (
            (points**2).sum(axis=1)[:, None]
            - 2.0 * points @ self.centroids.T
            + (self.centroids**2).sum(axis=1)[None, :]
        )
        distances: FloatArray = np.maximum(squares, 0.0)
        return distances

    def assign(self, embeddings: npt.ArrayLike) -> IntArray:
        """Nearest cluster of each embedding, (n,) int64; ties go to the lower index."""
        nearest: IntArray = np.argmin(self.squared_distances(embeddings), axis=1).astype(np.int64)
        return nearest

    def membership(self, embeddings: npt.ArrayLike) -> FloatArray:
        """Soft membership, (n, C) float64 in [0, 1] with rows that sum to 1.

        A softmax over -(squared distance) / 0.05: a sample between two topics counts for both, and
        a sample near a centre for that one alone.
        """
        logits = -self.squared_distances(embeddings) / _TEMPERATURE
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: FloatArray = weights / weights.sum(axis=1, keepdims=True)
        return shares

    def to_json(self) -> dict[str, Json]:
        """JSON form for the study plan; `parse_clusters` reads it back."""
        return {"version": 1, "centroids": self.centroids.tolist()}


class _PublishedClusters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    version: Annotated[int, Field(ge=1, le=1)]
    # A mean of unit vectors has no coordinate beyond 1.
    centroids: Annotated[
        list[
            Annotated[
                list[Annotated[float, Field(ge=-1.0, le=1.0)]], Field(max_length=MAX_DIMENSIONS)
            ]
        ],
        Field(max_length=MAX_CLUSTERS),
    ]


def parse_clusters(value: Json) -> Clusters:
    """Read clusters from the JSON form that another party published.

    Raises: PeerError: wrong keys, types, sizes, or numbers that are not rounded as agreed.
    """
    try:
        rows = _PublishedClusters.model_validate(value).centroids
        clusters = Clusters(centroids=np.array(rows, dtype=np.float64))
    # NumPy raises ValueError for rows that differ in length, pydantic one of its own.
    except (ValueError, ParameterError) as error:
        raise PeerError(f"clusters: {error}") from error
    if clusters.centroids.tolist() != rows:
        raise PeerError(f"clusters: numbers must be rounded to {_DECIMALS} decimals")
    return clusters


def fit_clusters(embeddings: npt.ArrayLike, count: int, seed: int) -> Clusters:
    """Cluster the public pool with k-means: the best of 32 k-means++ starts, refined.

    Starts are compared on at most 2,000 rows, so that a large pool takes no longer to start.

    Args: embeddings: (n, e), rows of norm 1. count: wanted number of clusters.
        seed: fixes the starts; the same input and seed give the same clusters.
    Returns: At most `count` clusters, largest first; fewer where the pool has fewer distinct
        embeddings, so that no cluster is empty.
    Raises: ParameterError: no embeddings, or count outside 1 to 256.
    """
    points = float_matrix("embeddings", embeddings)
    within(1, MAX_CLUSTERS, cluster_count=count)
    if not len(points):
        raise ParameterError("embeddings: expected at least one, got none")
    distinct = np.unique(points, axis=0)
    count = min(count, len(distinct))
    if count == len(distinct):
        return _largest_first(distinct, points)
    with warnings.catch_warnings():
        # Of a start that leaves a cluster empty; where the best one does, that is dropped.
        warnings.simplefilter("ignore", UserWarning)
        return _largest_first(_best_centroids(points, distinct, count, seed=seed), points)


def _best_centroids(
    points: FloatArray, distinct: FloatArray, count: int, *, seed: int
) -> FloatArray:
    """The centres of the best of many starts, refined on all points, (count, e)."""
    # Imported late: scipy.cluster takes a second, and only the coordinator ever clusters.
    from scipy.cluster.vq import kmeans2

    generator = np.random.default_rng(seed)
    # Of distinct rows: a sample of a pool that repeats itself could hold fewer than `count`.
    sample = points
    if len(points) > _START_POINTS:
        sample = distinct[generator.permutation(len(distinct))[:_START_POINTS]]
    best: FloatArray | None = None
    lowest = np.inf
    for _ in range(_STARTS):
        centroids, labels = kmeans2(
            sample, count, iter=_START_ITERATIONS, minit="++", missing="warn", rng=generator
        )
        inertia = float(((sample - centroids[labels]) ** 2).sum())
        if inertia < lowest:
            best, lowest = np.asarray(centroids, dtype=np.float64), inertia
    if best is None:
        raise ParameterError("k-means found no finite clustering of these embeddings")
    refined, _ = kmeans2(points, best, iter=_ITERATIONS, minit="matrix", missing="warn")
    return np.asarray(refined, dtype=np.float64)


def _largest_first(centroids: FloatArray, points: FloatArray) -> Clusters:
    """Drop centres without points and number the rest by size, so that reports read well."""
    clusters = Clusters(centroids=centroids)
    sizes = np.bincount(clusters.assign(points), minlength=clusters.count)
    order = np.argsort(-sizes, kind="stable")
    return Clusters(centroids=clusters.centroids[order[sizes[order] > 0]])


def difficulty_bins(losses: npt.ArrayLike, bins: int) -> IntArray:
    """Split samples into difficulty bins at the quantiles of the LLM's losses.

    Args: losses: (n,) >= 0, nats per token; +inf stands for a path of probability zero.
        bins: number of bins, 1 to 64.
    Returns: (n,) int64 in [0, bins), 0 the easiest. Equal losses share the bin of their middle
        rank, so bins may be empty where many losses are equal.
    Raises: ParameterError: bins out of range, NaN, or no losses.
    """
    values = np.asarray(losses, dtype=np.float64)
    within(1, MAX_BINS, difficulty_bins=bins)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise ParameterError(
            f"difficulty losses: expected (n,) without NaN, n > 0, got shape {values.shape}"
        )
    # Ranks rather than edges between losses: infinite losses have ranks, too.
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    middles = (below + counts / 2.0)[place] / len(values)
    return np.floor(bins * middles).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """Numbering of cells: cluster * bins + bin."""

    clusters: int
    bins: int

    def __post_init__(self) -> None:
        """Raises: ParameterError: a size out of range."""
        within(1, MAX_CLUSTERS, clusters=self.clusters)
        within(1, MAX_BINS, bins=self.bins)

    @property
    def cells(self) -> int:
        """Number of cells d."""
        return self.clusters * self.bins

    def index(self, clusters: npt.ArrayLike, bins: npt.ArrayLike) -> IntArray:
        """Cell numbers, (n,) int64, of clusters (n,) and bins (n,)."""
        first = index_vector("clusters", clusters, below=self.clusters)
        second = index_vector("bins", bins, below=self.bins, length=len(first))
        return first * self.bins + second

    def clusters_of_cells(self) -> IntArray:
        """Cluster of every cell, (d,) int64."""
        return np.arange(self.cells, dtype=np.int64) // self.bins

    def bins_of_cells(self) -> IntArray:
        """Difficulty bin of every cell, (d,) int64."""
        return np.arange(self.cells, dtype=np.int64) % self.bins

    def spread(self, per_cluster: npt.ArrayLike) -> FloatArray:
        """Repeat one value per cluster (C,) over its cells, (d,) float64."""
        values = float_vector("values per cluster", per_cluster, length=self.clusters)
        return np.repeat(values, self.bins)


def pool_features(
    grid: CellGrid,
    *,
    membership: npt.ArrayLike,
    difficulty: npt.ArrayLike,
    confidence: npt.ArrayLike,
) -> FloatArray:
    """The coordinator's private matrix M for blind scores M u (SPEC.md, section 8).

    Entry (i, cell) is membership[i, cluster] x confidence[i] in the sample's own difficulty bin
    and 0 elsewhere. A row sums to its confidence, so for utilities in [-1, 1] every score lies in
    [-1, 1] as well.

    Args:
        membership: (n, C) in [0, 1], rows sum to 1; see `Clusters.membership`.
        difficulty: (n,) bins in [0, bins).
        confidence: (n,) in [0, 1], how likely the LLM's path for the sample is right; 0 for a
            sample whose paths were all wrong, which then scores 0 whatever a site wants.
    Returns: (n, d) float64 in [0, 1].
    Raises: ParameterError: shapes that differ, or values out of range.
    """
    shares = float_matrix("membership", membership, columns=grid.clusters, low=0.0, high=1.0)
    samples = len(shares)
    if not np.allclose(shares.sum(axis=1), 1.0, atol=1e-6):
        raise ParameterError("membership: expected rows that sum to 1")
    bins = index_vector("difficulty", difficulty, below=grid.bins, length=samples)
    trust = float_vector("confidence", confidence, length=samples, low=0.0, high=1.0)
    matrix = np.zeros((samples, grid.clusters, grid.bins), dtype=np.float64)
    matrix[np.arange(samples), :, bins] = np.clip(shares * trust[:, None], 0.0, 1.0)
    return matrix.reshape(samples, grid.cells)
