"""What one release costs: frozen events with the JSON form of dp_accounting's vocabulary.

Only mechanisms that this project ships have an event. There is none for a non-private release
and none for an unknown mechanism, so neither can be written into a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, GetPydanticSchema
from pydantic_core import core_schema

from lada_secure.canonical import Json
from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.fields import Number

# Below this a release is the data with a blur; above it, it is noise with a name.
MIN_NOISE_MULTIPLIER = 0.01
MAX_NOISE_MULTIPLIER = 1e6
# Composing takes time and memory with the number of steps, and entries come from other parties.
MAX_STEPS = 10**6
MAX_PARTS = 64
# Each composition gives up to 1e-15 of probability to infinite loss, and FFT rounding is of the
# same order: after 10,000 entries a delta below this would be about numerics, not privacy.
MIN_TARGET_DELTA = 1e-10
_BY_CLASS: Final = Discriminator("class_name")


def check_noise_multiplier(value: float) -> float:
    """Refuse NaN, infinity, zero, negative and absurd noise. Returns it as a float."""
    value = float(value)
    if not math.isfinite(value) or not MIN_NOISE_MULTIPLIER <= value <= MAX_NOISE_MULTIPLIER:
        raise ParameterError(
            f"noise_multiplier: expected {MIN_NOISE_MULTIPLIER} to {MAX_NOISE_MULTIPLIER:g} "
            f"(noise std / L2 sensitivity), got {value}"
        )
    return value


def check_sampling_probability(value: float) -> float:
    """Refuse anything outside (0, 1]. Returns it as a float."""
    value = float(value)
    if not 0.0 < value <= 1.0:
        raise ParameterError(f"sampling_probability: expected above 0 and at most 1, got {value}")
    return value


def check_target_delta(value: float) -> float:
    """Refuse what is outside [1e-10, 1). Returns it as a float."""
    value = float(value)
    if not MIN_TARGET_DELTA <= value < 1.0:
        raise ParameterError(
            f"target_delta: expected at least {MIN_TARGET_DELTA:g} and below 1, got {value}"
        )
    return value


def _check_count(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STEPS:
        raise ParameterError(f"{field}: expected a whole number from 1 to {MAX_STEPS}, got {value}")
    return value


def _gaussian_json(noise_multiplier: float) -> Json:
    return {"class_name": "GaussianDpEvent", "noise_multiplier": noise_multiplier}


def _repeated_json(count: int, event: Json) -> Json:
    return {"class_name": "SelfComposedDpEvent", "count": count, "event": event}


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """`count` Gaussian releases, each of noise std = `noise_multiplier` x L2 sensitivity.

    Discrete ones of std >= 16 steps count as such, too.

    Args: noise_multiplier: in [0.01, 1e6]. count: >= 1.
    Raises: ParameterError: out of range, NaN or infinite.
    """

    noise_multiplier: float
    _: KW_ONLY
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", check_noise_multiplier(self.noise_multiplier))
        _check_count("count", self.count)

    def to_json(self) -> Json:
        """The event in dp_accounting's vocabulary."""
        once = _gaussian_json(self.noise_multiplier)
        return once if self.count == 1 else _repeated_json(self.count, once)


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgdEvent:
    """`steps` Gaussian releases, each on a Poisson sample of the units.

    Abadi et al. 2016, Alg. 1, with Poisson sampling: every unit joins each step independently
    with `sampling_probability`, which comes from the plan and never from the data.

    Args: noise_multiplier: noise std / clip norm, in [0.01, 1e6]. sampling_probability: in (0, 1].
        steps: >= 1.
    Raises: ParameterError: out of range, NaN or infinite.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", check_noise_multiplier(self.noise_multiplier))
        object.__setattr__(
            self, "sampling_probability", check_sampling_probability(self.sampling_probability)
        )
        _check_count("steps", self.steps)

    def to_json(self) -> Json:
        """The event in dp_accounting's vocabulary."""
        return _repeated_json(
            self.steps,
            {
                "class_name": "PoissonSampledDpEvent",
                "sampling_probability": self.sampling_probability,
                "event": _gaussian_json(self.noise_multiplier),
            },
        )


EventPart: TypeAlias = GaussianEvent | DpSgdEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedEvent:
    """Several parts that leave together as one release."""

    parts: tuple[EventPart, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.parts) <= MAX_PARTS:
            raise ParameterError(f"parts: expected 2 to {MAX_PARTS} events, got {len(self.parts)}")

    def to_json(self) -> Json:
        """The event in dp_accounting's vocabulary."""
        return {"class_name": "ComposedDpEvent", "events": [one.to_json() for one in self.parts]}


PrivacyEvent: TypeAlias = GaussianEvent | DpSgdEvent | ComposedEvent


def composed_event(events: Sequence[PrivacyEvent]) -> PrivacyEvent:
    """One event for several that leave together; a single one stays as it is.

    Raises: ParameterError: no event, or more than 64 parts.
    """
    parts = tuple(part for event in events for part in event_parts(event))
    return parts[0] if len(parts) == 1 else ComposedEvent(parts=parts)


def event_parts(event: PrivacyEvent) -> tuple[EventPart, ...]:
    """The event as a flat sequence of Gaussian and DP-SGD parts."""
    return event.parts if isinstance(event, ComposedEvent) else (event,)


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Gaussian(_Json):
    class_name: Literal["GaussianDpEvent"]
    noise_multiplier: Number


class _Sampled(_Json):
    class_name: Literal["PoissonSampledDpEvent"]
    sampling_probability: Number
    event: _Gaussian


class _Repeated(_Json):
    class_name: Literal["SelfComposedDpEvent"]
    count: int
    event: Annotated[_Gaussian | _Sampled, _BY_CLASS]


class _Composed(_Json):
    class_name: Literal["ComposedDpEvent"]
    events: list[Annotated[_Gaussian | _Repeated, _BY_CLASS]]


def _part(found: _Gaussian | _Repeated) -> EventPart:
    if isinstance(found, _Gaussian):
        return GaussianEvent(found.noise_multiplier)
    once = found.event
    if isinstance(once, _Gaussian):
        return GaussianEvent(once.noise_multiplier, count=found.count)
    return DpSgdEvent(
        noise_multiplier=once.event.noise_multiplier,
        sampling_probability=once.sampling_probability,
        steps=found.count,
    )


def _event(found: _Gaussian | _Repeated | _Composed) -> PrivacyEvent:
    if isinstance(found, _Composed):
        return ComposedEvent(parts=tuple(_part(one) for one in found.events))
    return _part(found)


# A field of a signed object that holds an event. An unknown or non-private mechanism has no class
# here and is refused; so is a second spelling of an event, for it is written back as another one.
EventField = Annotated[
    PrivacyEvent,
    GetPydanticSchema(
        lambda _, schema_of: core_schema.no_info_after_validator_function(
            _event, schema_of(Annotated[_Gaussian | _Repeated | _Composed, _BY_CLASS])
        )
    ),
]
