"""Shared by the encryption tests: a roster that contributes to one secure aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.parameters import AggregationParameters, aggregation_parameters
from lada_secure.encryption.sealing import parse_public_key, seal


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the parties of one secure aggregation hold."""

    params: AggregationParameters
    key: AggregateKey
    vectors: list[npt.NDArray[np.int64]]
    sealed: list[bytes]

    @property
    def total(self) -> npt.NDArray[np.int64]:
        return np.sum(self.vectors, axis=0)


def make_opening(sites: int, length: int, site_bound: int) -> Opening:
    params = aggregation_parameters(length=length, sum_bound=sites * site_bound)
    key = AggregateKey.generate(params)
    sealing_key = parse_public_key(key.public_bytes, params)
    keys = {f"site-{index}": MaskKey.generate() for index in range(sites)}
    rng = np.random.default_rng(sites * 1_000_003 + length)
    vectors, sealed = [], []
    for name, own in keys.items():
        vector = rng.integers(-site_bound, site_bound + 1, length)
        # The bounds themselves are always among the values.
        vector[0] = site_bound
        vector[-1] = -site_bound
        mask = pairwise_mask(
            own,
            name,
            {other: one.public_bytes for other, one in keys.items() if other != name},
            context=b"test",
            length=length,
            modulus=params.plain_modulus,
        )
        hidden = masked(vector, mask, bound=site_bound, modulus=params.plain_modulus)
        vectors.append(vector)
        sealed.append(seal(sealing_key, params, hidden))
    return Opening(params=params, key=key, vectors=vectors, sealed=sealed)


@pytest.fixture(scope="session")
def make() -> Callable[[int, int, int], Opening]:
    return make_opening


@pytest.fixture(scope="session")
def small() -> Opening:
    """Three sites, 50 entries."""
    return make_opening(3, 50, 1000)
