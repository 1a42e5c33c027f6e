"""Noise: the exact discrete Gaussian of OpenDP.

The sampler works in exact rational arithmetic on the operating system's randomness (Canonne,
Kamath, Steinke 2020, Alg. 3), so the attacks on floating-point noise (Mironov 2012) have nothing
to work on. The input must be integers already; scaling and rounding are the statistic's matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from lada_secure.errors import LocalProtocolError, ParameterError
from lada_secure.privacy.ledger.terms import MIN_STD_STEPS

Integers: TypeAlias = "NDArray[np.int64]"

MAX_STD_STEPS = float(2**40)
# OpenDP saturates at the ends of int64. This far from them, noise of 2^40 never gets there.
MAX_ABSOLUTE_VALUE = 2**52


@lru_cache(maxsize=32)
def _measurement(std: float) -> Callable[[list[int]], list[int]]:
    import opendp.prelude as opendp

    opendp.enable_features("contrib")
    return cast(
        "Callable[[list[int]], list[int]]",
        opendp.m.make_gaussian(
            opendp.vector_domain(opendp.atom_domain(T="i64")),
            opendp.l2_distance(T="f64"),
            scale=std,
        ),
    )


def discrete_gaussian_vector(values: Integers, *, sigma: float) -> Integers:
    """Add independent discrete Gaussian noise to integers. Canonne et al. 2020, Def. 1.

    P[noise = z] is proportional to exp(-z^2 / (2 sigma^2)) for every integer z.

    Args:
        values: (n,) int64, |values| <= 2^52. An empty vector gives an empty vector.
        sigma: in integer steps, 16 to 2^40. `sigma` >= `noise_multiplier` x L2 sensitivity.
    Returns: (n,) int64, a new array.
    Guarantee: for statistics of L2 sensitivity s under add/remove of one unit, exactly
        s^2 / (2 sigma^2)-zCDP; its PLD is that of a Gaussian of noise multiplier sigma / s up to
        a factor of order exp(-2 pi^2 sigma^2). The randomness is the operating system's.
    Raises: ParameterError: other dtype or shape, values too large, sigma out of range.
    """
    std = float(sigma)
    if not math.isfinite(std) or not MIN_STD_STEPS <= std <= MAX_STD_STEPS:
        raise ParameterError(
            f"sigma: expected {MIN_STD_STEPS:g} to 2^40 integer steps, got {std}; below 16 the "
            "discrete Gaussian costs more than the Gaussian that it is accounted as. Scale the "
            "statistic up before rounding"
        )
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.ndim != 1:
        raise ParameterError(
            "values: expected a one-dimensional int64 array, got "
            f"{type(values).__name__} {getattr(values, 'dtype', '')} "
            f"{getattr(values, 'shape', '')}"
        )
    # Not np.abs: it leaves the smallest int64 negative.
    if values.size and (values.max() > MAX_ABSOLUTE_VALUE or values.min() < -MAX_ABSOLUTE_VALUE):
        raise ParameterError(
            f"values: expected at most {MAX_ABSOLUTE_VALUE} in absolute value; clip first"
        )
    noised = np.array(_measurement(std)(values.tolist()), dtype=np.int64)
    if noised.shape != values.shape:
        raise LocalProtocolError("discrete Gaussian: OpenDP returned a vector of another length")
    return noised
