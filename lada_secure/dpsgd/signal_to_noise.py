"""What a training run can achieve at best, told from public settings before anything is spent."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from lada_secure.dpsgd.parameters import DpSgdParameters

# Steps that the estimate of the time left looks back on: a batch's size is random.
_REMEMBERED_STEPS = 20
# Below this, even units that all agree move the weights less than the noise does.
_DROWNED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalToNoiseEstimate:
    """signal_to_noise: best case over the whole run; `hint` is None where it looks fine."""

    parameters: int
    signal_to_noise: float
    hint: str | None


def signal_to_noise(
    *, expected_units: float, noise_multiplier: float, parameters: int, steps: int = 1
) -> float:
    """Best-case ratio of the private gradient's length to the noise's, over `steps` steps.

    If all units agreed, the sum of a step were expected_units clip norms long; the noise is
    noise_multiplier sqrt(parameters) of them. Signal adds up over steps, noise by its square root.
    Needs no data.
    """
    return math.sqrt(steps) * expected_units / (noise_multiplier * math.sqrt(parameters))


def estimate_signal_to_noise(privacy: DpSgdParameters, *, parameters: int) -> SignalToNoiseEstimate:
    """Judge privacy parameters against the number of trainable parameters.

    Args: parameters: > 0, of `trainable_summary`.
    """
    ratio = signal_to_noise(
        expected_units=privacy.expected_units,
        noise_multiplier=privacy.noise_multiplier,
        parameters=parameters,
        steps=privacy.steps,
    )
    hint = None
    if ratio < _DROWNED:
        hint = (
            f"noise would drown the private gradients: best-case signal-to-noise {ratio:.2g} over "
            f"{privacy.steps} steps with {parameters} trainable parameters. Lower the rank, adapt "
            "fewer layers (last_layers), train B alone (train_a = false), raise expected_units, "
            "or lower private_weight"
        )
    return SignalToNoiseEstimate(parameters=parameters, signal_to_noise=ratio, hint=hint)


@dataclass(slots=True, kw_only=True)
class TimeLeft:
    """How long the rest of a run takes, at the mean pace of its latest steps.

    The first step warms caches up and the sizes of batches are random, so early answers are rough.
    """

    started_s: float
    _ends_s: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STEPS + 1))

    def __post_init__(self) -> None:
        self._ends_s.append(self.started_s)

    def after_step(self, now_s: float, *, steps_left: int) -> float:
        """Seconds left, >= 0. Args: now_s: at the end of a step, on the clock of `started_s`."""
        self._ends_s.append(now_s)
        taken = len(self._ends_s) - 1
        return max(0.0, (now_s - self._ends_s[0]) / taken * steps_left)
