"""Noise: the exact discrete Gaussian of OpenDP, and its ledgered release.

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

from lada_secure.errors import LedgerError, LocalProtocolError, ParameterError
from lada_secure.privacy.ledger.book import (
    DISCRETE_GAUSSIAN,
    MIN_STD_STEPS,
    LedgerBook,
    ReleaseSpec,
    Reservation,
    numeric_parameter,
)
from lada_secure.privacy.released import Released

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


def check_std_steps(std: float) -> float:
    """Refuse a noise std that is not finite or outside [16, 2^40] integer steps."""
    std = float(std)
    if not math.isfinite(std) or not MIN_STD_STEPS <= std <= MAX_STD_STEPS:
        raise ParameterError(
            f"sigma: expected {MIN_STD_STEPS:g} to 2^40 integer steps, got {std}; below 16 the "
            "discrete Gaussian costs more than the Gaussian that it is accounted as. Scale the "
            "statistic up before rounding"
        )
    return std


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
    std = check_std_steps(sigma)
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


def encode_integers(values: Integers) -> bytes:
    """(n,) int64 as little-endian bytes, 8 per entry."""
    return values.astype("<i8").tobytes()


def decode_integers(raw: bytes) -> Integers:
    """The inverse of `encode_integers`. Raises: LedgerError: not whole entries."""
    if len(raw) % 8:
        raise LedgerError(f"stored output: expected whole 8-byte integers, got {len(raw)} bytes")
    return np.frombuffer(raw, dtype="<i8").astype(np.int64)


def release_discrete_gaussian(
    book: LedgerBook, spec: ReleaseSpec, *, compute: Callable[[Reservation], Integers]
) -> Released[Integers]:
    """Pay for, noise and release an integer statistic; the noise comes from `spec` alone.

    Args:
        spec: mechanism "discrete_gaussian"; `parameters["std"]` is the noise in integer steps.
        compute: reads the records; (n,) int64 with n >= 1, L2 sensitivity at most
            `parameters["l2_sensitivity"]`, which the caller ensures. Called after the budget
            was spent, and not at all where an output is stored already.
    Raises: ParameterError: another mechanism. Whatever `LedgerBook.release` raises.
    """
    if spec.mechanism != DISCRETE_GAUSSIAN:
        raise ParameterError(
            f"mechanism: expected {DISCRETE_GAUSSIAN}, the spec says {spec.mechanism!r}"
        )
    std = check_std_steps(numeric_parameter(spec.parameters, "std"))
    return book.release(
        spec,
        compute=lambda paid: discrete_gaussian_vector(compute(paid), sigma=std),
        encode=encode_integers,
        decode=decode_integers,
    )
