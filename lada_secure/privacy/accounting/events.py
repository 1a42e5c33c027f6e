"""What one release costs: frozen events with the JSON form of dp_accounting's vocabulary.

Only mechanisms that this project ships have an event. There is none for a non-private release
and none for an unknown mechanism, so neither can be written into a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from lada_secure.canonical import Json
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.fields import Reader, integer, number, read_fields, text

# Below this a release is the data with a blur; above it, it is noise with a name.
MIN_NOISE_MULTIPLIER = 0.01
MAX_NOISE_MULTIPLIER = 1e6
# Composing takes time and memory with the number of steps, and entries come from other parties.
MAX_STEPS = 10**6
MAX_PARTS = 64
# Each composition gives up to 1e-15 of probability to infinite loss, and FFT rounding is of the
# same order: after 10,000 entries a delta below this would be about numerics, not privacy.
MIN_TARGET_DELTA = 1e-10


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


_Forms: TypeAlias = Mapping[str, Sequence[Reader]]
_CLASS: _Forms = {"class_name": (text(),)}
# By class name, what may stand on its own, what may be repeated, and what may be sampled.
_ONE: Mapping[str, _Forms] = {"GaussianDpEvent": {"noise_multiplier": (number(),)}}
_PARTS: Mapping[str, _Forms] = {
    **_ONE,
    "SelfComposedDpEvent": {"count": (integer(1, MAX_STEPS),), "event": ()},
}
_REPEATED: Mapping[str, _Forms] = {
    **_ONE,
    "PoissonSampledDpEvent": {"sampling_probability": (number(),), "event": ()},
}


def _opened(value: Json, known: Mapping[str, _Forms], *, where: str) -> dict[str, Any]:
    """The fields of an event of one of these classes."""
    name = value.get("class_name", "") if isinstance(value, dict) else ""
    if isinstance(name, str) and name and name not in known:
        raise LedgerError(
            f"{where}: the mechanism {name[:60]!r} is unknown or not private and may not be "
            f"released here; known are {', '.join(known)}"
        )
    return read_fields(value, {**_CLASS, **known.get(str(name), {})}, where=where)


def _parse_part(value: Json, *, where: str) -> EventPart:
    outer = _opened(value, _PARTS, where=where)
    if "count" not in outer:
        return GaussianEvent(outer["noise_multiplier"])
    inner = _opened(outer["event"], _REPEATED, where=f"{where}: event")
    if "event" not in inner:
        return GaussianEvent(inner["noise_multiplier"], count=outer["count"])
    gaussian = _opened(inner["event"], _ONE, where=f"{where}: event: event")
    return DpSgdEvent(
        noise_multiplier=gaussian["noise_multiplier"],
        sampling_probability=inner["sampling_probability"],
        steps=outer["count"],
    )


def parse_event(value: Json, *, where: str = "event") -> PrivacyEvent:
    """Read an event from its JSON form; every value has exactly one spelling.

    Raises: LedgerError: unknown or non-private mechanism, fields missing, unknown or out of
        range, or another spelling of an event.
    """
    event: PrivacyEvent
    try:
        if isinstance(value, dict) and value.get("class_name") == "ComposedDpEvent":
            parts = read_fields(value, {**_CLASS, "events": ()}, where=where)["events"]
            if not isinstance(parts, list):
                raise LedgerError(f"{where}: events: expected a list")
            event = ComposedEvent(
                parts=tuple(_parse_part(part, where=f"{where}: events") for part in parts)
            )
        else:
            event = _parse_part(value, where=where)
    except ParameterError as error:
        raise LedgerError(f"{where}: {error}") from error
    if event.to_json() != value:
        raise LedgerError(f"{where}: not the one spelling of this event")
    return event
