"""A site's noised whole-number sums: reserved in the ledger, measured, noised, committed.

The noise is OpenDP's exact discrete Gaussian. The sampler works in exact rational arithmetic on the
operating system's randomness (Canonne, Kamath, Steinke 2020, Alg. 3), so the attacks on
floating-point noise (Mironov 2012) have nothing to work on. A noised vector has one stored form,
which the ledger hashes and keeps for retries.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Protocol, cast

import numpy as np

from lada_secure.arrays import IntArray
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LadaError, LedgerError, LocalProtocolError, ParameterError, PeerError
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import (
    DISCRETE_GAUSSIAN,
    MIN_STD_STEPS,
    ReleaseSpec,
    Reservation,
)
from lada_secure.privacy.released import Released

# Sign, digits and comma of a number below 2^63.
_ENTRY_BYTES = 21

MAX_STD_STEPS = float(2**40)
# OpenDP saturates at the ends of int64. This far from them, noise of 2^40 never gets there.
MAX_ABSOLUTE_VALUE = 2**52

logger = logging.getLogger(__name__)


class VectorNoise(Protocol):
    """Public parameters that fix a vector's noise.

    length: entries of the vector. noise_multiplier: std / l2_sensitivity. l2_sensitivity: under
    add/remove of one unit, std: of the noise per entry, both in the vector's own steps.
    """

    @property
    def length(self) -> int: ...

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def l2_sensitivity(self) -> float: ...

    @property
    def std(self) -> float: ...


def vector_spec(
    purpose: str,
    noise: VectorNoise,
    *,
    study_id: str,
    plan_hash: str,
    round_id: int,
    unit: str = "unit",
) -> ReleaseSpec:
    """The ledger's description of one round's release, built from the parameters of its noise."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose=purpose,
        mechanism=DISCRETE_GAUSSIAN,
        event=GaussianEvent(noise.noise_multiplier),
        parameters={"l2_sensitivity": noise.l2_sensitivity, "std": noise.std},
        unit=unit,
    )


def release_vector(
    measure: Callable[[Reservation], IntArray],
    *,
    purpose: str,
    noise: VectorNoise,
    bound: int,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[IntArray]:
    """Pay, measure, add discrete Gaussian noise, clamp, commit.

    Args:
        measure: the sums in steps, read against the ledger's reservation; not called at all where
            this round's output is stored already. The caller answers for their sensitivity.
        bound: to which entries are clamped after the noise, which is post-processing.
    Returns: (noise.length,) int64 within `bound` of 0, read from what the ledger keeps.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` is not what `vector_spec` makes of this noise. LedgerError: see
        `LedgerBook.reserve`, or stored bytes that are no such vector.
    """
    same = vector_spec(
        purpose,
        noise,
        study_id=spec.study_id,
        plan_hash=spec.plan_hash,
        round_id=spec.round_id,
        unit=spec.unit,
    )
    if spec != same:
        raise LocalProtocolError(
            f"{purpose}: the release that would be paid for is not the one that these parameters "
            f"describe; build it with {purpose}_spec"
        )

    def noised(paid: Reservation) -> IntArray:
        sums = _measured(measure, paid, purpose=purpose, length=noise.length)
        return np.clip(discrete_gaussian_vector(sums, sigma=noise.std), -bound, bound)

    return book.release(
        spec,
        compute=noised,
        encode=vector_bytes,
        decode=partial(parse_vector, what=purpose, length=noise.length, bound=bound),
    )


def _measured(
    measure: Callable[[Reservation], IntArray], paid: Reservation, *, purpose: str, length: int
) -> IntArray:
    try:
        return measure(paid)
    except LadaError:
        # Our own checks of parameters and reservations, which no record decides.
        raise
    except Exception:
        # What a unit provokes ends with that unit (`for_each_unit`), so this is a defect that no
        # single unit decides. Zero with all of its noise still says less than a process that ends.
        logger.warning("%s: the sums could not be computed; they are zero", purpose)
        return np.zeros(length, dtype=np.int64)


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


def discrete_gaussian_vector(values: IntArray, *, sigma: float) -> IntArray:
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


def vector_bytes(vector: IntArray) -> bytes:
    """Canonical bytes of a vector."""
    return canonical_json({"version": 1, "vector": vector.tolist()})


def parse_vector(raw: bytes, *, what: str, length: int, bound: int) -> IntArray:
    """Read what `vector_bytes` wrote, (length,) int64, every entry within `bound` of 0.

    Args: what: names the release in messages.
    Raises: LedgerError: other bytes: the plan changed under the ledger, or it is damaged.
    """
    try:
        value = parse_canonical_json(raw, max_bytes=_ENTRY_BYTES * length + 64)
    except PeerError as error:
        raise LedgerError(f"stored {what}: {error}") from error
    if not isinstance(value, Mapping) or set(value) != {"version", "vector"}:
        raise LedgerError(f"stored {what}: expected the keys 'version' and 'vector'")
    entries = value["vector"]
    if value["version"] != 1 or not isinstance(entries, list):
        raise LedgerError(f"stored {what}: expected version 1 and a list of numbers")
    if not all(type(entry) is int and abs(entry) <= bound for entry in entries):
        raise LedgerError(f"stored {what}: expected whole numbers within {bound} of 0")
    if len(entries) != length:
        raise LedgerError(
            f"stored {what}: expected {length} entries, got {len(entries)}; the plan's clusters "
            "differ from those of the release"
        )
    return np.array(entries, dtype=np.int64)
