"""What one release costs: frozen events with the JSON form of dp_accounting's vocabulary.

Only mechanisms that this project ships have an event. There is none for a non-private release
and none for an unknown mechanism, so neither can be written into a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lada_secure.canonical import Json
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.fields import Fields

if TYPE_CHECKING:
    from dp_accounting import dp_event

# Below this a release is the data with a blur; above it, it is noise with a name.
MIN_NOISE_MULTIPLIER = 0.01
MAX_NOISE_MULTIPLIER = 1e6
# Composing takes time and memory with the number of steps, and entries come from other parties.
MAX_STEPS = 10**6
MAX_PARTS = 64


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


def _check_count(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STEPS:
        raise ParameterError(f"{field}: expected a whole number from 1 to {MAX_STEPS}, got {value}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEvent:
    """`count` Gaussian releases, each of noise std = `noise_multiplier` x L2 sensitivity."""

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", check_noise_multiplier(self.noise_multiplier))
        _check_count("count", self.count)

    def to_json(self) -> Json:
        """The event in dp_accounting's vocabulary."""
        inner: Json = {
            "class_name": "GaussianDpEvent",
            "noise_multiplier": self.noise_multiplier,
        }
        if self.count == 1:
            return inner
        return {"class_name": "SelfComposedDpEvent", "count": self.count, "event": inner}


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgdEvent:
    """`steps` Gaussian releases, each on a Poisson sample of the units.

    Abadi et al. 2016, Alg. 1, with Poisson sampling: every unit joins each step independently
    with `sampling_probability`, which comes from the plan and never from the data.
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
        return {
            "class_name": "SelfComposedDpEvent",
            "count": self.steps,
            "event": {
                "class_name": "PoissonSampledDpEvent",
                "sampling_probability": self.sampling_probability,
                "event": {
                    "class_name": "GaussianDpEvent",
                    "noise_multiplier": self.noise_multiplier,
                },
            },
        }


EventPart: TypeAlias = "GaussianEvent | DpSgdEvent"


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


PrivacyEvent: TypeAlias = "GaussianEvent | DpSgdEvent | ComposedEvent"


def gaussian_event(noise_multiplier: float, *, count: int = 1) -> GaussianEvent:
    """The event of `count` Gaussian (or discrete Gaussian of std >= 16 steps) releases.

    Args: noise_multiplier: noise std / L2 sensitivity, in [0.01, 1e6]. count: >= 1.
    Raises: ParameterError: out of range, NaN or infinite.
    """
    return GaussianEvent(noise_multiplier=noise_multiplier, count=count)


def dpsgd_event(*, noise_multiplier: float, sampling_probability: float, steps: int) -> DpSgdEvent:
    """The event of `steps` DP-SGD steps with Poisson sampling.

    Args: noise_multiplier: noise std / clip norm. sampling_probability: in (0, 1]. steps: >= 1.
    Raises: ParameterError: out of range, NaN or infinite.
    """
    return DpSgdEvent(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        steps=steps,
    )


def composed_event(events: Sequence[PrivacyEvent]) -> PrivacyEvent:
    """One event for several that leave together; a single one stays as it is.

    Raises: ParameterError: no event, or more than 64 parts.
    """
    parts = tuple(part for event in events for part in event_parts(event))
    return parts[0] if len(parts) == 1 else ComposedEvent(parts=parts)


def event_parts(event: PrivacyEvent) -> tuple[EventPart, ...]:
    """The event as a flat sequence of Gaussian and DP-SGD parts."""
    return event.parts if isinstance(event, ComposedEvent) else (event,)


def _parse_part(value: Json, *, where: str) -> EventPart:
    fields = Fields(value, where=where)
    name = fields.text("class_name")
    if name == "GaussianDpEvent":
        noise_multiplier = fields.number("noise_multiplier")
        fields.done()
        return GaussianEvent(noise_multiplier=noise_multiplier)
    if name != "SelfComposedDpEvent":
        raise LedgerError(
            f"{where}: the mechanism {name[:60]!r} is unknown or not private and may not be "
            "released; known are GaussianDpEvent and SelfComposedDpEvent of it or of "
            "PoissonSampledDpEvent"
        )
    count = fields.integer("count", low=1, high=MAX_STEPS)
    inner = Fields(fields.raw("event"), where=f"{where}: event")
    fields.done()
    kind = inner.text("class_name")
    if kind == "GaussianDpEvent":
        noise_multiplier = inner.number("noise_multiplier")
        inner.done()
        return GaussianEvent(noise_multiplier=noise_multiplier, count=count)
    if kind != "PoissonSampledDpEvent":
        raise LedgerError(f"{where}: the mechanism {kind[:60]!r} is unknown or not private")
    sampling_probability = inner.number("sampling_probability")
    base = _parse_part(inner.raw("event"), where=f"{where}: event: event")
    inner.done()
    if not isinstance(base, GaussianEvent) or base.count != 1:
        raise LedgerError(f"{where}: Poisson sampling is accounted for one Gaussian only")
    return DpSgdEvent(
        noise_multiplier=base.noise_multiplier,
        sampling_probability=sampling_probability,
        steps=count,
    )


def parse_event(value: Json, *, where: str = "event") -> PrivacyEvent:
    """Read an event from its JSON form; every value has exactly one spelling.

    Raises: LedgerError: unknown or non-private mechanism, fields missing, unknown or out of
        range, or another spelling of an event.
    """
    try:
        if isinstance(value, dict) and value.get("class_name") == "ComposedDpEvent":
            fields = Fields(value, where=where)
            fields.text("class_name")
            inner = fields.raw("events")
            fields.done()
            if not isinstance(inner, list):
                raise LedgerError(f"{where}: events: expected a list")
            event: PrivacyEvent = ComposedEvent(
                parts=tuple(_parse_part(one, where=f"{where}: events") for one in inner)
            )
        else:
            event = _parse_part(value, where=where)
    except ParameterError as error:
        raise LedgerError(f"{where}: {error}") from error
    if event.to_json() != value:
        raise LedgerError(f"{where}: not the one spelling of this event")
    return event


def to_dp_event(event: PrivacyEvent) -> dp_event.DpEvent:
    """The same event as an object of dp_accounting."""
    # Reading a ledger needs no accountant, and importing one takes two seconds.
    from dp_accounting import dp_event

    if isinstance(event, ComposedEvent):
        return dp_event.ComposedDpEvent([to_dp_event(one) for one in event.parts])
    gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
    if isinstance(event, GaussianEvent):
        if event.count == 1:
            return gaussian
        return dp_event.SelfComposedDpEvent(gaussian, event.count)
    return dp_event.SelfComposedDpEvent(
        dp_event.PoissonSampledDpEvent(event.sampling_probability, gaussian), event.steps
    )
