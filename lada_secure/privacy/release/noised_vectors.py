"""A site's noised whole-number sums: reserved in the ledger, measured, noised, committed.

A noised vector has one stored form, which the ledger hashes and keeps for retries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lada_secure.arrays import IntArray
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LadaError, LedgerError, LocalProtocolError, PeerError
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.released import Released, post_process
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, ReleaseSpec, Reservation
from lada_secure.privacy.release.discrete_gaussian import discrete_gaussian_vector

# Sign, digits and comma of a number below 2^63.
_ENTRY_BYTES = 21

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
    after: Sequence[Released[object]] = (),
) -> Released[IntArray]:
    """Pay, measure, add discrete Gaussian noise, clamp, commit.

    Args:
        measure: the sums in steps, read against the ledger's reservation; not called at all where
            this round's output is stored already. The caller answers for their sensitivity.
        bound: to which entries are clamped after the noise, which is post-processing.
        after: releases that `measure` builds on, such as the adapters whose losses it uses.
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
    paid = book.reserve(spec)
    output = paid.stored_output
    if output is None:
        sums = _measured(measure, paid, purpose=purpose, length=noise.length)
        noised = discrete_gaussian_vector(sums, sigma=noise.std)
        output = vector_bytes(np.clip(noised, -bound, bound))
    kept = book.commit(paid, output, after=after)
    return post_process(
        kept, lambda raw: parse_vector(raw, what=purpose, length=noise.length, bound=bound)
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
