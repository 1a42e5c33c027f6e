"""Noise for a target: the least noise multiplier whose composed epsilon stays at or below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scipy import optimize

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.accountant import (
    check_target_delta,
    check_target_epsilon,
    merged_parts,
)
from lada_secure.privacy.accounting.composition import Composition
from lada_secure.privacy.accounting.events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    DpSgdEvent,
    PrivacyEvent,
    check_sampling_probability,
)

# Calibrated noise is rounded up to a multiple of this, so that it can be written down.
NOISE_STEP = 1e-4


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

    def composed(noise_multiplier: float) -> Composition:
        event = DpSgdEvent(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            steps=steps,
        )
        return Composition().plus(merged_parts([*other_events, event]))

    # The search asks PLD alone: cross-checking every candidate would double its time.
    found = least_noise(
        lambda noise_multiplier: composed(noise_multiplier).epsilon(target_delta),
        target_epsilon=target_epsilon,
    )
    composed(found).checked_epsilon(target_delta)
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
