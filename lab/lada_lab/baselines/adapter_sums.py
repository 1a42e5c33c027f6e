"""Adapters as whole numbers, so that a secure aggregation can add them up exactly.

A site's adapters come from DP-SGD and are paid for in its ledger; encoding them is post-processing.
Masks, encryption and the auditor's opening (`lada_secure.encryption`) then show the sum to the
server and no site's own share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as save_safetensors

from lada_secure.arrays import IntArray
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, parse_adapter_tensors

_METADATA = {"format": "lada-adapters/1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSumSettings:
    """clip: largest magnitude of a weight, > 0; beyond it is cut off. scale: steps per unit.

    The defaults round to 2^-16 and need 19 bits and a sign per site.
    """

    clip: float = 8.0
    scale: int = 2**16

    def __post_init__(self) -> None:
        """Check ranges. Raises: ParameterError: a value out of range."""
        if not 0.0 < self.clip < float("inf") or not 1 <= self.scale <= 2**24:
            raise ParameterError(
                f"adapter sums: expected a clip above 0 and a scale of 1 to 2^24, got {self.clip} "
                f"and {self.scale}"
            )

    @property
    def site_bound(self) -> int:
        """Largest magnitude of one site's entry."""
        return round(self.clip * self.scale)

    def sum_bound(self, *, sites: int) -> int:
        """Largest magnitude of an entry of a sum over sites."""
        return sites * self.site_bound


def adapter_vector(weights: AdapterWeights, settings: AdapterSumSettings) -> IntArray:
    """A site's adapters, tensors in the order of their names, (n,) int64 within `site_bound`."""
    tensors = parse_adapter_tensors(weights)
    flat = torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double().numpy()
    rounded: IntArray = np.rint(
        np.clip(flat, -settings.clip, settings.clip) * settings.scale
    ).astype(np.int64)
    return rounded


def mean_adapters(
    opened: npt.ArrayLike,
    *,
    sites: int,
    like: AdapterWeights,
    settings: AdapterSumSettings,
) -> AdapterWeights:
    """The mean of the adapters whose vectors were added up.

    Args: opened: (n,) whole numbers, the sum over `sites` vectors. like: any adapters of the same
        model and settings; their names and shapes are used.
    Raises: ParameterError: no site, a sum of another length, or beyond the bound of the sum.
    """
    tensors = parse_adapter_tensors(like)
    sums = np.asarray(opened)
    length = sum(one.numel() for one in tensors.values())
    if sites < 1 or sums.shape != (length,) or not np.issubdtype(sums.dtype, np.integer):
        raise ParameterError(
            f"mean of adapters: expected at least one site and ({length},) whole numbers, got "
            f"{sites} sites and {sums.shape} {sums.dtype}; they may belong to another model"
        )
    if int(np.abs(sums).max(initial=0)) > settings.sum_bound(sites=sites):
        raise ParameterError("mean of adapters: an entry lies beyond the bound of the sum")
    flat = torch.from_numpy(sums.astype(np.float64) / (sites * settings.scale)).float()
    mean = {}
    first = 0
    for name in sorted(tensors):
        shape, count = tensors[name].shape, tensors[name].numel()
        mean[name] = flat[first : first + count].reshape(shape).contiguous()
        first += count
    return AdapterWeights(data=save_safetensors(mean, metadata=_METADATA))
