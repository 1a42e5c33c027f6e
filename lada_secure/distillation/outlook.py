"""What a training run can achieve at best, told from public settings before anything is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lada_secure.distillation.parameters import DpSgdParameters

# Below this, even units that all agree move the weights less than the noise does.
_DROWNED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutlook:
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


def training_outlook(privacy: DpSgdParameters, *, parameters: int) -> TrainingOutlook:
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
    return TrainingOutlook(parameters=parameters, signal_to_noise=ratio, hint=hint)
