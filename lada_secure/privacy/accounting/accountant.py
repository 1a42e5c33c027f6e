"""Epsilon of composed releases: dp-accounting's PLD is the one source of truth, RDP checks it.

Adjacency is add or remove one privacy unit throughout. The privacy loss distribution (PLD) is
discretised pessimistically ("connect the dots", Doroshenko et al. 2022), so epsilon is never
below the truth; the interval is chosen so that it is rarely more than 1.5% above.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from numpy.typing import NDArray

from lada_secure.errors import LocalProtocolError, ParameterError
from lada_secure.privacy.accounting.events import (
    MAX_STEPS,
    GaussianEvent,
    PrivacyEvent,
    check_target_delta,
    event_parts,
)

# Above this no guarantee is worth a number. It also bounds memory: cells grow with epsilon.
EPSILON_LIMIT = 500.0
# RDP is an upper bound, so PLD may pass it by discretisation only.
CROSS_CHECK_RELATIVE = 0.05
CROSS_CHECK_ABSOLUTE = 2e-3

_INTERVALS = (1e-3, 1e-4, 1e-5)
# Standard deviation of one step's privacy loss, in intervals, from which the interval is fine
# enough: 2.5 of them were measured at 1.4% above the truth after 10,000 steps.
_CELLS_PER_STEP = 2.0

# Noise multiplier and sampling probability of DP-SGD steps.
Group: TypeAlias = "tuple[float, float]"
# A group and how many of its steps were released together.
_Chunk: TypeAlias = "tuple[float, float, int]"
_Pld: TypeAlias = "pld.PrivacyLossDistribution"
_Floats: TypeAlias = "NDArray[np.float64]"


def _interval_for(noise_multiplier: float, sampling_probability: float) -> float:
    # Std of one step's loss is about q sqrt(exp(1/sigma^2) - 1). The exponent is capped because
    # a large loss is resolved by any interval.
    spread = sampling_probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    for interval in _INTERVALS:
        if spread >= _CELLS_PER_STEP * interval:
            return interval
    return _INTERVALS[-1]


@lru_cache(maxsize=64)
def _step_pld(noise_multiplier: float, sampling_probability: float, interval: float) -> _Pld:
    return pld.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_probability, value_discretization_interval=interval
    )


@lru_cache(maxsize=128)
def _chunk_pld(
    noise_multiplier: float, sampling_probability: float, steps: int, interval: float
) -> _Pld:
    step = _step_pld(noise_multiplier, sampling_probability, interval)
    return step if steps == 1 else step.self_compose(steps)


# Ledgers of one study have the same releases in the same order, and each is read many times: the
# same steps are composed once. `start` is looked up as the object that it is.
@lru_cache(maxsize=16)
def _composed(
    start: _Pld | None, chunks: tuple[tuple[_Chunk, int], ...], interval: float
) -> _Pld | None:
    total = start
    for chunk, times in chunks:
        one = _chunk_pld(*chunk, interval)
        piece = one if times == 1 else one.self_compose(times)
        total = piece if total is None else total.compose(piece)
    return total


@lru_cache(maxsize=16)
def _gaussian_pld(precision: float, interval: float) -> _Pld:
    """PLD of Gaussian releases with noise multipliers s_i, precision = sum of s_i^-2.

    They compose exactly: together they are one release of noise multiplier precision^-1/2.
    """
    return pld.from_gaussian_mechanism(precision**-0.5, value_discretization_interval=interval)


@lru_cache(maxsize=256)
def _rdp_of_step(noise_multiplier: float, sampling_probability: float) -> _Floats:
    accountant = rdp.RdpAccountant()
    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    with _quiet_orders():
        accountant.compose(dp_event.PoissonSampledDpEvent(sampling_probability, gaussian))
    vector: _Floats = np.array(accountant.rdp, dtype=np.float64)
    vector.setflags(write=False)
    return vector


@contextmanager
def _quiet_orders() -> Iterator[None]:
    """Hide the library's note that it leaves out a few fractional orders.

    Leaving orders out can only raise the RDP epsilon, which is a cross-check from above.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=16)
def _epsilon_of(
    sampled: _Pld | None, precision: float, interval: float, target_delta: float
) -> float:
    """Epsilon of DP-SGD steps that are composed already, with Gaussian releases beside them."""
    total = sampled
    if precision > 0.0:
        gaussian = _gaussian_pld(precision, interval)
        # Nothing is truncated here: this distribution is read once and thrown away.
        total = gaussian if total is None else total.compose(gaussian, 0.0)
    if total is None:
        raise LocalProtocolError("accounting: releases were counted but none was composed")
    return float(total.get_epsilon_for_delta(target_delta))


def cross_check(epsilon_pld: float, epsilon_rdp: float) -> None:
    """Refuse to go on where PLD claims more loss than RDP, an upper bound, allows.

    Raises: LocalProtocolError: a defect in one of the accountants.
    """
    if epsilon_pld > epsilon_rdp * (1 + CROSS_CHECK_RELATIVE) + CROSS_CHECK_ABSOLUTE:
        raise LocalProtocolError(
            f"accounting: PLD gives epsilon {epsilon_pld:.6g}, above the RDP bound of "
            f"{epsilon_rdp:.6g}; the two accountants contradict each other, so nothing is "
            "released. Please report the parameters"
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Composition:
    """Releases counted so far, and what they cost together. `plus` leaves the original as it is.

    Counting is cheap. The distribution of all DP-SGD steps is composed when an epsilon is first
    asked for, from the newest one that is known. Not safe for concurrent threads.
    """

    precision: float = 0.0  # sum of 1 / noise_multiplier^2 over the unsampled Gaussian releases
    steps: Counter[Group] = field(default_factory=Counter)  # of DP-SGD with sampling
    _sampled: _Pld | None = None  # of all `steps`, unless there is a `_base`
    _base: Composition | None = None  # the newest one before this whose `_sampled` is known
    _added: Counter[_Chunk] = field(default_factory=Counter)  # to the steps of `_base`

    def plus(self, *events: PrivacyEvent) -> Composition:
        """These releases and further ones; equal DP-SGD settings among them are counted together.

        Raises: ParameterError: more than 10^6 DP-SGD steps in all.
        """
        precision, added = self.precision, Counter[Group]()
        for part in (part for event in events for part in event_parts(event)):
            if isinstance(part, GaussianEvent):
                precision += part.count / part.noise_multiplier**2
            elif part.sampling_probability == 1.0:
                precision += part.steps / part.noise_multiplier**2
            else:
                added[part.noise_multiplier, part.sampling_probability] += part.steps
        steps = self.steps + added
        if steps.total() > MAX_STEPS:
            raise ParameterError(
                f"DP-SGD steps: expected at most {MAX_STEPS} in one ledger, got "
                f"{steps.total()}; composing more takes minutes and gigabytes"
            )
        return Composition(
            precision=precision,
            steps=steps,
            _base=self._base or self,
            _added=self._added + Counter((*group, count) for group, count in added.items()),
        )

    @property
    def interval(self) -> float:
        """Of the grid that is fine enough for all steps."""
        return min((_interval_for(*group) for group in self.steps), default=_INTERVALS[0])

    def _sampled_pld(self) -> _Pld | None:
        interval = self.interval
        if self._base is not None and self._base.interval == interval:
            added = tuple(self._added.items())
            self._sampled = _composed(self._base._sampled, added, interval)
        elif self._base is not None:
            # A finer grid than so far: distributions on two grids cannot be composed.
            whole = tuple(((*group, count), 1) for group, count in self.steps.items())
            self._sampled = _composed(None, whole, interval)
        self._base, self._added = None, Counter()
        return self._sampled

    def epsilon(self, target_delta: float) -> float:
        """Epsilon at delta by PLD, after RDP has agreed that it is not too high.

        Returns: 0 without releases; `math.inf` above `EPSILON_LIMIT`.
        Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
        """
        by_rdp = self.epsilon_rdp(target_delta)
        if not self.precision and not self.steps:
            return 0.0
        if by_rdp > EPSILON_LIMIT:
            return math.inf
        by_pld = _epsilon_of(self._sampled_pld(), self.precision, self.interval, target_delta)
        cross_check(by_pld, by_rdp)
        return by_pld

    def epsilon_rdp(self, target_delta: float) -> float:
        """Epsilon at delta by Renyi DP: an upper bound that is looser than PLD.

        Raises: ParameterError: delta outside [1e-10, 1).
        """
        check_target_delta(target_delta)
        # A Gaussian's RDP is order / (2 sigma^2); Mironov 2017, Cor. 3.
        orders: _Floats = np.array(rdp.DEFAULT_RDP_ORDERS, dtype=np.float64)
        vector: _Floats = orders * (self.precision / 2.0)
        for group, count in self.steps.items():
            vector = vector + count * _rdp_of_step(*group)
        if not vector.any():
            return 0.0
        return float(rdp.compute_epsilon(rdp.DEFAULT_RDP_ORDERS, vector, target_delta)[0])


class Spending:
    """What a ledger has cost: over all its studies, and each of them alone."""

    __slots__ = ("_asked", "_scopes")

    def __init__(self) -> None:
        self._scopes: dict[str | None, Composition] = {}
        self._asked: dict[str | None, tuple[PrivacyEvent, Composition]] = {}

    def count(self, event: PrivacyEvent, *studies: str) -> None:
        """Count one event for all of these studies, and once in total."""
        for scope in (None, *studies):
            self._scopes[scope] = self._with(event, scope)
        self._asked.clear()

    def _with(self, event: PrivacyEvent, scope: str | None) -> Composition:
        """A release is asked about before it is counted; what was composed serves for both."""
        if scope not in self._asked or self._asked[scope][0] != event:
            self._asked[scope] = (event, self.of(scope).plus(event))
        return self._asked[scope][1]

    def of(self, study_id: str | None = None) -> Composition:
        """What one study has cost, or all of them."""
        return self._scopes.get(study_id) or Composition()

    def after(self, event: PrivacyEvent, study_id: str, target_delta: float) -> dict[str, float]:
        """What a reservation states once this event is counted, by the names of its fields."""
        study = self._with(event, study_id)
        by_pld, by_rdp = study.epsilon(target_delta), study.epsilon_rdp(target_delta)
        total_by_pld, total_by_rdp = by_pld, by_rdp
        if not self._scopes.keys() <= {None, study_id}:
            total = self._with(event, None)
            total_by_pld, total_by_rdp = (
                total.epsilon(target_delta),
                total.epsilon_rdp(target_delta),
            )
        return {
            "study_epsilon_after": by_pld,
            "study_epsilon_rdp_after": by_rdp,
            "epsilon_after": total_by_pld,
            "epsilon_rdp_after": total_by_rdp,
        }


def epsilon(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together, by PLD under add/remove of one unit.

    Returns: never below the exact value; rarely more than 1.5% above. 0 without events,
        `math.inf` above 500.
    Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
    """
    return Composition().plus(*events).epsilon(target_delta)


def epsilon_rdp(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together by Renyi DP, for cross-checking `epsilon`.

    Raises: ParameterError: delta outside [1e-10, 1).
    """
    return Composition().plus(*events).epsilon_rdp(target_delta)
