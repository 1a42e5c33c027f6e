"""What noised statistics say about a site's clusters, in units of privacy and nats per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.statistics_parameters import StatisticsParameters, check_vector
from lada_secure.arrays import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterEstimates:
    """Readable estimates per cluster from noised numbers; all (C,) float64.

    masses: units of privacy per cluster, >= 0; what is within one standard deviation of the noise
    counts as 0. mean_losses: nats per token in [0, loss clip].
    """

    masses: FloatArray
    mean_losses: FloatArray

    @property
    def shares(self) -> FloatArray:
        """Masses as shares that sum to 1; equal shares where all masses are 0."""
        total = float(self.masses.sum())
        if total <= 0.0:
            return np.full(len(self.masses), 1.0 / len(self.masses))
        shares: FloatArray = self.masses / total
        return shares


def cluster_estimates(vector: npt.ArrayLike, parameters: StatisticsParameters) -> ClusterEstimates:
    """Decode a noised vector.

    A mean loss is a ratio of two noised numbers: below three standard deviations of mass it would
    be noise, and the mean over all clusters stands in for it.

    Args: vector: (2C,) whole numbers within the bound of a site's vector.
    Raises: ParameterError: wrong length, or an entry beyond the bound.
    """
    entries = np.asarray(vector)
    check_vector(entries, parameters.length, parameters.sum_bound(sites=1))
    numbers = entries.astype(np.float64) / parameters.scale
    masses, loss_masses = numbers[: parameters.clusters], numbers[parameters.clusters :]
    std = parameters.std / parameters.scale
    overall = 0.5
    if float(masses.sum()) > std * math.sqrt(parameters.clusters):
        overall = float(np.clip(loss_masses.sum() / masses.sum(), 0.0, 1.0))
    firm = masses > 3.0 * std
    ratios = np.where(firm, loss_masses / np.where(firm, masses, 1.0), overall)
    return ClusterEstimates(
        masses=np.where(masses > std, masses, 0.0),
        mean_losses=parameters.loss_clip * np.clip(ratios, 0.0, 1.0),
    )
