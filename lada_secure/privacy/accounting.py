"""Epsilon of composed releases: dp-accounting's PLD is the one source of truth, RDP checks it.

Adjacency is add or remove one privacy unit throughout. The privacy loss distribution (PLD) is
discretised pessimistically ("connect the dots", Doroshenko et al. 2022), so epsilon is never
below the truth; the interval is chosen so that it is rarely more than 1.5% above.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from numpy.typing import NDArray
from scipy import optimize

from lada_secure.errors import LocalProtocolError, ParameterError
from lada_secure.privacy.events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    DpSgdEvent,
    EventPart,
    GaussianEvent,
    PrivacyEvent,
    check_sampling_probability,
    event_parts,
    to_dp_event,
)

# Each composition gives up to 1e-15 of probability to infinite loss, and FFT rounding is of the
# same order: after 10,000 entries a delta below this would be about numerics, not privacy.
MIN_TARGET_DELTA = 1e-10
# Above this no guarantee is worth a number. It also bounds memory: cells grow with epsilon.
EPSILON_LIMIT = 500.0
# RDP is an upper bound, so PLD may pass it by discretisation only.
CROSS_CHECK_RELATIVE = 0.05
CROSS_CHECK_ABSOLUTE = 2e-3
# Calibrated noise is rounded up to a multiple of this, so that it can be written down.
NOISE_STEP = 1e-4

_INTERVALS = (1e-3, 1e-4, 1e-5)
# Standard deviation of one step's privacy loss, in intervals, from which the interval is fine
# enough: 2.5 of them were measured at 1.4% above the truth after 10,000 steps.
_CELLS_PER_STEP = 2.0

_Group: TypeAlias = "tuple[float, float]"
_Floats: TypeAlias = "NDArray[np.float64]"


def check_target_delta(value: float) -> float:
    """Refuse what is outside [1e-10, 1). Returns it as a float."""
    value = float(value)
    if not MIN_TARGET_DELTA <= value < 1.0:
        raise ParameterError(
            f"target_delta: expected at least {MIN_TARGET_DELTA:g} and below 1, got {value}"
        )
    return value


def check_target_epsilon(value: float) -> float:
    """Refuse what is not a finite epsilon in (0, 500]. Returns it as a float."""
    value = float(value)
    if not math.isfinite(value) or not 0.0 < value <= EPSILON_LIMIT:
        raise ParameterError(
            f"target_epsilon: expected above 0 and at most {EPSILON_LIMIT:g}, got {value}"
        )
    return value


def _interval_for(noise_multiplier: float, sampling_probability: float) -> float:
    # Std of one step's loss is about q sqrt(exp(1/sigma^2) - 1). The exponent is capped because
    # a large loss is resolved by any interval.
    spread = sampling_probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    for interval in _INTERVALS:
        if spread >= _CELLS_PER_STEP * interval:
            return interval
    return _INTERVALS[-1]


@lru_cache(maxsize=64)
def _step_pld(
    noise_multiplier: float, sampling_probability: float, interval: float
) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_probability,
        value_discretization_interval=interval,
    )


@lru_cache(maxsize=128)
def _chunk_pld(
    noise_multiplier: float, sampling_probability: float, steps: int, interval: float
) -> pld.PrivacyLossDistribution:
    step = _step_pld(noise_multiplier, sampling_probability, interval)
    return step if steps == 1 else step.self_compose(steps)


@lru_cache(maxsize=16)
def _gaussian_pld(precision: float, interval: float) -> pld.PrivacyLossDistribution:
    # Gaussian releases compose exactly: noise multipliers s_i act as one of (sum s_i^-2)^-1/2.
    return pld.from_gaussian_mechanism(
        1.0 / math.sqrt(precision), value_discretization_interval=interval
    )


@lru_cache(maxsize=256)
def _rdp_of_step(noise_multiplier: float, sampling_probability: float) -> _Floats:
    accountant = rdp.RdpAccountant()
    step = DpSgdEvent(
        noise_multiplier=noise_multiplier, sampling_probability=sampling_probability, steps=1
    )
    with _quiet_orders():
        accountant.compose(to_dp_event(step))
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


def _rdp_vector(precision: float, steps: Mapping[_Group, int]) -> _Floats:
    # A Gaussian's RDP is order / (2 sigma^2); Mironov 2017, Cor. 3.
    orders: _Floats = np.array(rdp.DEFAULT_RDP_ORDERS, dtype=np.float64)
    vector: _Floats = orders * (precision / 2.0)
    for group, count in steps.items():
        vector = vector + count * _rdp_of_step(*group)
    return vector


def _order_two(precision: float, steps: Mapping[_Group, int]) -> float:
    """RDP of order 2, in closed form: ln(1 + q^2 (exp(1/sigma^2) - 1)) a step."""
    total = precision
    for (noise_multiplier, q), count in steps.items():
        exponent = noise_multiplier**-2
        grown = math.log1p(q * q * math.expm1(exponent)) if exponent < 500.0 else exponent
        total += count * grown
    return total


def _epsilon_from_rdp(vector: _Floats, target_delta: float) -> float:
    if not vector.any():
        return 0.0
    return float(rdp.compute_epsilon(rdp.DEFAULT_RDP_ORDERS, vector, target_delta)[0])


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Composition:
    """Everything composed so far; immutable, so that a candidate never changes the original."""

    interval: float
    precision: float  # sum of 1 / noise_multiplier^2 over the unsampled Gaussian releases
    steps: Mapping[_Group, int]  # (noise_multiplier, sampling_probability) -> DP-SGD steps
    sampled: pld.PrivacyLossDistribution | None  # PLD of all `steps` at `interval`
    beyond: bool  # epsilon is above the limit for any delta up to 1/2; `sampled` is not kept

    def plus(self, parts: Iterable[EventPart]) -> _Composition:
        """This composition and the parts; equal DP-SGD parts are composed in one go."""
        precision, steps, interval = self.precision, dict(self.steps), self.interval
        chunks: dict[tuple[float, float, int], int] = {}
        for part in parts:
            if isinstance(part, GaussianEvent):
                precision += part.count / part.noise_multiplier**2
                continue
            if part.sampling_probability == 1.0:
                precision += part.steps / part.noise_multiplier**2
                continue
            group = (part.noise_multiplier, part.sampling_probability)
            steps[group] = steps.get(group, 0) + part.steps
            chunk = (*group, part.steps)
            chunks[chunk] = chunks.get(chunk, 0) + 1
            interval = min(interval, _interval_for(*group))
        beyond = self.beyond or _is_beyond(precision, steps, 0.5)
        sampled = None
        if not beyond and interval == self.interval:
            sampled = _composed(self.sampled, chunks, interval)
        elif not beyond:
            # A finer grid than so far: distributions on two grids cannot be composed.
            sampled = _composed(None, {(s, q, n): 1 for (s, q), n in steps.items()}, interval)
        return _Composition(
            interval=interval, precision=precision, steps=steps, sampled=sampled, beyond=beyond
        )

    def epsilon(self, target_delta: float) -> float:
        """Epsilon at delta by PLD; `math.inf` above `EPSILON_LIMIT`."""
        if not self.precision and not self.steps:
            return 0.0
        if self.beyond or _is_beyond(self.precision, self.steps, target_delta):
            return math.inf
        total = self.sampled
        if self.precision > 0.0:
            gaussian = _gaussian_pld(self.precision, self.interval)
            # Nothing is truncated here: this distribution is read once and thrown away.
            total = gaussian if total is None else total.compose(gaussian, 0.0)
        if total is None:
            raise LocalProtocolError("accounting: releases were counted but none was composed")
        return float(total.get_epsilon_for_delta(target_delta))

    def epsilon_rdp(self, target_delta: float) -> float:
        """Epsilon at delta by RDP."""
        return _epsilon_from_rdp(_rdp_vector(self.precision, self.steps), target_delta)

    def checked_epsilon(self, target_delta: float) -> float:
        """`epsilon`, after RDP has agreed that it is not too high."""
        by_pld = self.epsilon(target_delta)
        if by_pld < math.inf:
            cross_check(by_pld, self.epsilon_rdp(target_delta))
        return by_pld


def _is_beyond(precision: float, steps: Mapping[_Group, int], target_delta: float) -> bool:
    # Order 2 alone is a bound and costs nothing; only where it is not enough, all orders are.
    if _order_two(precision, steps) - math.log(target_delta) <= EPSILON_LIMIT:
        return False
    return _epsilon_from_rdp(_rdp_vector(precision, steps), target_delta) > EPSILON_LIMIT


def _composed(
    start: pld.PrivacyLossDistribution | None,
    chunks: Mapping[tuple[float, float, int], int],
    interval: float,
) -> pld.PrivacyLossDistribution | None:
    total = start
    for chunk, times in chunks.items():
        one = _chunk_pld(*chunk, interval)
        piece = one if times == 1 else one.self_compose(times)
        total = piece if total is None else total.compose(piece)
    return total


def _empty() -> _Composition:
    return _Composition(interval=_INTERVALS[0], precision=0.0, steps={}, sampled=None, beyond=False)


class PldAccountant:
    """Composes releases one by one and answers for their sum, without starting over.

    The composed distribution is kept; a further release costs one convolution, however many
    came before. Gaussian releases are merged exactly. Not safe for concurrent threads.
    """

    __slots__ = ("_candidate", "_now", "_pending")

    def __init__(self) -> None:
        self._now = _empty()
        self._pending: list[EventPart] = []
        self._candidate: tuple[PrivacyEvent, _Composition] | None = None

    def compose(self, event: PrivacyEvent) -> None:
        """Count one release. The work is done when an epsilon is next asked for."""
        if self._candidate is not None and self._candidate[0] == event and not self._pending:
            self._now = self._candidate[1]
        else:
            self._pending.extend(event_parts(event))
        self._candidate = None

    def compose_all(self, events: Iterable[PrivacyEvent]) -> None:
        """Count many releases; equal ones are composed in one go."""
        for event in events:
            self.compose(event)

    def _flushed(self) -> _Composition:
        if self._pending:
            self._now = self._now.plus(self._pending)
            self._pending = []
        return self._now

    def _with(self, event: PrivacyEvent) -> _Composition:
        base = self._flushed()
        if self._candidate is None or self._candidate[0] != event:
            self._candidate = (event, base.plus(event_parts(event)))
        return self._candidate[1]

    def epsilon(self, target_delta: float) -> float:
        """Epsilon of everything composed so far, by PLD; `math.inf` above 500.

        Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
        """
        return self._flushed().checked_epsilon(check_target_delta(target_delta))

    def epsilon_with(self, event: PrivacyEvent, target_delta: float) -> float:
        """Epsilon after one more release, which is not counted yet."""
        return self._with(event).checked_epsilon(check_target_delta(target_delta))

    def epsilon_rdp(self, target_delta: float) -> float:
        """The cross-check: epsilon by Renyi DP, an upper bound that is looser than PLD."""
        return self._flushed().epsilon_rdp(check_target_delta(target_delta))

    def epsilon_rdp_with(self, event: PrivacyEvent, target_delta: float) -> float:
        """`epsilon_rdp` after one more release, which is not counted yet."""
        return self._with(event).epsilon_rdp(check_target_delta(target_delta))


def epsilon(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together, by PLD under add/remove of one unit.

    Returns: never below the exact value; rarely more than 1.5% above. 0 without events,
        `math.inf` above 500.
    Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
    """
    check_target_delta(target_delta)
    return _empty().plus(_merged(events)).checked_epsilon(target_delta)


def epsilon_rdp(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together by Renyi DP, for cross-checking `epsilon`.

    Raises: ParameterError: delta outside [1e-10, 1).
    """
    check_target_delta(target_delta)
    precision, steps = 0.0, dict[_Group, int]()
    for part in _merged(events):
        if isinstance(part, GaussianEvent):
            precision += part.count / part.noise_multiplier**2
        else:
            steps[part.noise_multiplier, part.sampling_probability] = part.steps
    return _epsilon_from_rdp(_rdp_vector(precision, steps), target_delta)


def _merged(events: Sequence[PrivacyEvent]) -> list[EventPart]:
    """The same releases with the steps of equal DP-SGD settings added up."""
    merged: list[EventPart] = []
    steps: dict[_Group, int] = {}
    for event in events:
        for part in event_parts(event):
            if isinstance(part, DpSgdEvent):
                group = (part.noise_multiplier, part.sampling_probability)
                steps[group] = steps.get(group, 0) + part.steps
            else:
                merged.append(part)
    merged.extend(
        DpSgdEvent(noise_multiplier=s, sampling_probability=q, steps=n)
        for (s, q), n in steps.items()
    )
    return merged


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float = 1.0,
    steps: int = 1,
    other_events: Sequence[PrivacyEvent] = (),
) -> float:
    """The least noise multiplier whose composed epsilon stays at or below the target.

    Args: target_epsilon: in (0, 500]. target_delta: in [1e-10, 1). sampling_probability: in
        (0, 1]; 1 means no sampling. steps: >= 1. other_events: what else is released; the
        target is for all of it together.
    Returns: rounded up to a multiple of 1e-4, so that it can be written down and still holds.
    Raises: ParameterError: out of range, or the other events alone reach the target.
    """
    check_target_epsilon(target_epsilon)
    check_target_delta(target_delta)
    check_sampling_probability(sampling_probability)

    def event_of(noise_multiplier: float) -> PrivacyEvent:
        if sampling_probability == 1.0:
            return GaussianEvent(noise_multiplier=noise_multiplier, count=steps)
        return DpSgdEvent(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            steps=steps,
        )

    def cost(noise_multiplier: float) -> float:
        # The search asks PLD alone: cross-checking every candidate would double its time.
        parts = _merged([*other_events, event_of(noise_multiplier)])
        return _empty().plus(parts).epsilon(target_delta)

    found = least_noise(cost, target_epsilon=target_epsilon)
    _empty().plus(_merged([*other_events, event_of(found)])).checked_epsilon(target_delta)
    return found


def least_noise(cost: Callable[[float], float], *, target_epsilon: float) -> float:
    """The least noise x, to 1e-4, with `cost(x) <= target_epsilon`; `cost` falls with x.

    Raises: ParameterError: no noise up to 1e6 reaches the target.
    """
    low, high = 0.5, 1.0
    if cost(high) > target_epsilon and cost(MAX_NOISE_MULTIPLIER) > target_epsilon:
        raise ParameterError(
            f"target_epsilon: {target_epsilon:g} cannot be reached with any noise; the other "
            "releases spend it alone, so raise the target or plan fewer releases"
        )
    while cost(high) > target_epsilon:
        low, high = high, high * 2.0
    while cost(low) <= target_epsilon:
        low, high = low / 2.0, low
        if low < MIN_NOISE_MULTIPLIER:
            return high

    def excess(log_noise: float) -> float:
        # In logarithms the curve is nearly straight, which saves most evaluations.
        spent = min(max(cost(math.exp(log_noise)), 1e-9), 1e9)
        return math.log(spent / target_epsilon)

    root = math.exp(optimize.brentq(excess, math.log(low), math.log(high), xtol=1e-6))
    steps = math.ceil(root / NOISE_STEP - 1e-3)
    while cost(steps * NOISE_STEP) > target_epsilon:
        steps += 1
    return round(steps * NOISE_STEP, 4)
