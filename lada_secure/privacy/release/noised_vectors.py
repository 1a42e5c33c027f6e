"""Ledgered releases of whole-number sums under discrete Gaussian noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from lada_secure.arrays import IntArray
from lada_secure.errors import LadaError, LocalProtocolError
from lada_secure.privacy.accounting.events import gaussian_event
from lada_secure.privacy.ledger.book import DISCRETE_GAUSSIAN, LedgerBook, ReleaseSpec, Reservation
from lada_secure.privacy.release.discrete_gaussian import discrete_gaussian_vector
from lada_secure.privacy.released import Released

T = TypeVar("T")

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
    unit: str,
) -> ReleaseSpec:
    """The ledger's description of one round's release, built from the parameters of its noise."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose=purpose,
        mechanism=DISCRETE_GAUSSIAN,
        event=gaussian_event(noise.noise_multiplier),
        parameters={"l2_sensitivity": noise.l2_sensitivity, "std": noise.std},
        unit=unit,
    )


def release_vector(
    exact: Callable[[Reservation], IntArray],
    *,
    purpose: str,
    noise: VectorNoise,
    finish: Callable[[IntArray], T],
    encode: Callable[[T], bytes],
    decode: Callable[[bytes], T],
    book: LedgerBook,
    spec: ReleaseSpec,
    after: Sequence[Released[object]] = (),
) -> Released[T]:
    """Pay, compute, add discrete Gaussian noise, commit.

    Args:
        exact: the sums in steps, read against the ledger's reservation; not called at all where
            this round's output is stored already. The caller answers for their sensitivity.
        finish: post-processing of the noised vector. encode, decode: the result to bytes and back.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` is not what `vector_spec` makes of this noise. LedgerError: see
        `LedgerBook.reserve`, or stored bytes that `decode` refuses.
    """
    wanted = vector_spec(
        purpose,
        noise,
        study_id=spec.study_id,
        plan_hash=spec.plan_hash,
        round_id=spec.round_id,
        unit=spec.unit,
    )
    if spec != wanted:
        raise LocalProtocolError(
            f"{purpose}: the release that would be paid for is not the one that these parameters "
            f"describe; build it with {purpose}_spec"
        )

    def noised(paid: Reservation) -> T:
        try:
            sums = exact(paid)
        except LadaError:
            # Our own checks of parameters and reservations, which no record decides.
            raise
        except Exception:
            # What a unit provokes ends with that unit (`for_each_unit`), so this is a defect that
            # no single unit decides. Zero with all of its noise still says less than a process
            # that ends.
            logger.warning("%s: the sums could not be computed; they are zero", purpose)
            sums = np.zeros(noise.length, dtype=np.int64)
        vector = discrete_gaussian_vector(sums, sigma=noise.std)
        return finish(np.asarray(vector, dtype=np.int64))

    return book.release(spec, compute=noised, encode=encode, decode=decode, after=after)
