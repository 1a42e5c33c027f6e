"""The learnability gap: the LLM is right and sure of a sample, and the SLM is not, yet.

A gap has two sides, and no party holds both. They meet at the site, in three numbers:

| number | says | whose |
|---|---|---|
| cell's utility | records lie here, and the SLM errs on them | the site's, noised; encrypted |
| pool matrix | the LLM's rationale is right, and how sure it is | the coordinator's, private |
| SLM's confidence | the SLM does not know this sample | the site's, of public questions |

The first two come back as a sample's decrypted score; `sample_values` puts the third beside it.
Questions and gold answers of the pool are public and the SLM is public or was released under
differential privacy, so its answers to them are post-processing and cost nothing.

What a gap promises is another matter than what training then brings: that is the reward of a cell.
Losses are in nats per token (the mean over the tokens of a whole path, each model with its own
tokenizer); p = exp(-loss) is the geometric mean probability of a token, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import BoolArray, FloatArray, IntArray, float_vector, frozen, index_vector
from lada_secure.errors import ParameterError

SampleValue: TypeAlias = Literal["score", "gap", "gain"]

# Confidences are read in steps of this size: another batch size rounds them by less.
CONFIDENCE_STEP = 2.0**-10
# How many samples a coarser estimate counts for.
_STRENGTH = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlmKnowledge:
    """What a site's SLM makes of the n pool samples as it is now.

    right: (n,) bool, whether its answer is the gold one. confidence: (n,) float64 in [0, 1], in the
    gold answer, read in whole `CONFIDENCE_STEP`s; paths: n texts that it wrote, or none where
    nobody learns from them; see `lada_secure.models.confidence.answer_pool`.
    """

    right: BoolArray
    confidence: FloatArray
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises: ParameterError: lengths that differ, or a confidence that is none."""
        found = float_vector(
            "confidence", self.confidence, length=len(self.right), low=0.0, high=1.0
        )
        steps = np.round(found / CONFIDENCE_STEP) * CONFIDENCE_STEP
        object.__setattr__(self, "confidence", frozen(steps))


def sample_values(
    form: SampleValue, scores: npt.ArrayLike, slm: SlmKnowledge | None = None
) -> FloatArray:
    """What each pool sample is worth to a site, (n,) float64 >= 0.

    With s the sample's score and p the SLM's confidence in the gold answer:

    form | value | reads as
    ---|---|---
    score | s | the LLM is right and sure, in a cell that matters
    gap | s where the SLM's answer is not the gold one, else 0 | and the SLM is wrong
    gain | s (1 - p) | the expected gain: by how much the SLM may still rise

    Args: scores: (n,) decrypted; below 0 (a cell that is predicted to do harm) counts as 0.
        slm: needed by all forms but "score".
    Raises: ParameterError: lengths that differ, or a form without what it reads.
    """
    wanted = np.maximum(float_vector("scores", scores), 0.0)
    if form == "score":
        return wanted
    if slm is None or len(slm.confidence) != len(wanted):
        known = "nothing" if slm is None else f"{len(slm.confidence)} answers"
        raise ParameterError(
            f"sample value {form}: expected the SLM's answers to {len(wanted)} samples, got {known}"
        )
    lacking = 1.0 - slm.confidence if form == "gain" else np.where(slm.right, 0.0, 1.0)
    values: FloatArray = wanted * lacking
    return values


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
