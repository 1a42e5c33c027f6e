"""Noise for a target epsilon, of one mechanism or a whole study, and what each release costs."""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.accountant import EPSILON_LIMIT, epsilon, epsilon_rdp
from lada_secure.privacy.accounting.events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    check_target_delta,
)
from lada_secure.storage.whole_files import read_file

MAX_PLAN_BYTES = 1 << 20
MAX_TIMES = 100_000
# A mechanism that publishes each record with probability delta is (0, delta)-DP: delta must be
# far below 1/units before epsilon means anything.
DELTA_TIMES_UNITS = 0.1
# Calibrated noise is rounded up to a multiple of this, so that it can be written down.
NOISE_STEP = 1e-4


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Noise = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class _Release(_Model):
    """What is released `times` times, usually once a round.

    Without `noise_multiplier` it is calibrated: all calibrated releases get a common factor
    times their own `relative_noise`.
    """

    purpose: str
    times: Annotated[int, Field(ge=1, le=MAX_TIMES)] = 1
    noise_multiplier: _Noise | None = None
    relative_noise: _Noise = 1.0

    def noise(self, factor: float) -> float:
        """The noise multiplier where this is the common factor."""
        return (
            factor * self.relative_noise if self.noise_multiplier is None else self.noise_multiplier
        )


class GaussianRelease(_Release):
    """A noised statistic."""

    mechanism: Literal["gaussian"]

    def event(self, factor: float) -> PrivacyEvent:
        """All `times` releases as one event."""
        return GaussianEvent(self.noise(factor), count=self.times)


class DpSgdRelease(_Release):
    """DP-SGD of `steps` steps."""

    mechanism: Literal["dpsgd"]
    steps: Annotated[int, Field(ge=1, le=10**6)]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]

    def event(self, factor: float) -> PrivacyEvent:
        """All `times` runs as one event."""
        return DpSgdEvent(
            noise_multiplier=self.noise(factor),
            sampling_probability=self.sampling_probability,
            steps=self.steps * self.times,
        )


PlannedMechanism = Annotated[GaussianRelease | DpSgdRelease, Field(discriminator="mechanism")]


class PrivacyPlan(_Model):
    """What a study will release about one population. Read with `read_plan`."""

    target_epsilon: float
    target_delta: float
    units: Annotated[int, Field(ge=1)]
    release: Annotated[list[PlannedMechanism], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseCost:
    """One row of a plan's table.

    `epsilon_alone` is what it would cost by itself, `epsilon_so_far` what it and all rows before
    it cost together; the last row's is the study's.
    """

    purpose: str
    mechanism: str
    times: int
    noise_multiplier: float
    calibrated: bool
    epsilon_alone: float
    epsilon_so_far: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """A plan with its noise settled. `holds` says whether epsilon is within the target."""

    target_epsilon: float
    target_delta: float
    units: int
    epsilon: float
    epsilon_rdp: float
    holds: bool
    releases: tuple[ReleaseCost, ...]
    warnings: tuple[str, ...]


def read_plan(path: Path) -> PrivacyPlan:
    """Read a plan from TOML; unknown keys are refused.

    Raises: ParameterError: unreadable, not TOML, or a field is missing, unknown or out of range.
    """
    raw = read_file(path)
    if len(raw) > MAX_PLAN_BYTES:
        raise ParameterError(f"{path}: {len(raw)} bytes, at most {MAX_PLAN_BYTES} are read")
    try:
        return PrivacyPlan.model_validate(tomllib.loads(raw.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{path}: {where}: {first['msg']}") from error


def delta_warnings(*, target_delta: float, units: int) -> tuple[str, ...]:
    """A warning where delta is not far below 1/units, else nothing."""
    if target_delta * units <= DELTA_TIMES_UNITS:
        return ()
    return (
        f"target_delta {target_delta:g} is not far below 1/units = {1 / units:.3g}: a mechanism "
        "that publishes a few people's records outright would satisfy it. Choose at most "
        f"{DELTA_TIMES_UNITS / units:.1g}",
    )


def cost_plan(plan: PrivacyPlan) -> PlanCost:
    """Settle the noise of a plan and compute what each release costs.

    Raises: ParameterError: a target out of range, or not reachable with any noise because the
        releases of fixed noise spend it alone.
    """
    target_epsilon = check_target_epsilon(plan.target_epsilon)
    target_delta = check_target_delta(plan.target_delta)

    def cost(factor: float) -> float:
        events = [release.event(factor) for release in plan.release]
        return epsilon(events, target_delta=target_delta)

    factor = 1.0
    if any(release.noise_multiplier is None for release in plan.release):
        factor = _least_noise(cost, target_epsilon=target_epsilon)
    events = [release.event(factor) for release in plan.release]
    rows = tuple(
        ReleaseCost(
            purpose=release.purpose,
            mechanism=release.mechanism,
            times=release.times,
            noise_multiplier=release.noise(factor),
            calibrated=release.noise_multiplier is None,
            epsilon_alone=epsilon(events[at : at + 1], target_delta=target_delta),
            epsilon_so_far=epsilon(events[: at + 1], target_delta=target_delta),
        )
        for at, release in enumerate(plan.release)
    )
    total = rows[-1].epsilon_so_far
    return PlanCost(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        units=plan.units,
        epsilon=total,
        epsilon_rdp=epsilon_rdp(events, target_delta=target_delta),
        holds=total <= target_epsilon,
        releases=rows,
        warnings=delta_warnings(target_delta=target_delta, units=plan.units),
    )


def calibrate_noise_multiplier(
    *, target_epsilon: float, target_delta: float, sampling_probability: float, steps: int
) -> float:
    """The least noise multiplier whose composed epsilon stays at or below the target.

    Args: target_epsilon: in (0, 500]. target_delta: in [1e-10, 1). sampling_probability: in
        (0, 1]; 1 means no sampling. steps: >= 1.
    Returns: rounded up to a multiple of 1e-4, so that it can be written down and still holds.
    Raises: ParameterError: out of range.
    """

    def cost(noise_multiplier: float) -> float:
        event = DpSgdEvent(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            steps=steps,
        )
        return epsilon([event], target_delta=target_delta)

    return _least_noise(cost, target_epsilon=target_epsilon)


def check_target_epsilon(value: float) -> float:
    """Refuse what is not a finite epsilon in (0, 500]. Returns it as a float."""
    value = float(value)
    if not 0.0 < value <= EPSILON_LIMIT:
        raise ParameterError(
            f"target_epsilon: expected above 0 and at most {EPSILON_LIMIT:g}, got {value}"
        )
    return value


def _least_noise(cost: Callable[[float], float], *, target_epsilon: float) -> float:
    """The least noise x, to 1e-4, with `cost(x) <= target_epsilon`; `cost` falls with x.

    Raises: ParameterError: no noise up to 1e6 reaches the target, or it is out of range.
    """
    check_target_epsilon(target_epsilon)

    def enough(noise_multiplier: float) -> bool:
        return cost(noise_multiplier) <= target_epsilon

    high = 1.0
    if not enough(high) and not enough(MAX_NOISE_MULTIPLIER):
        raise ParameterError(
            f"target_epsilon: {target_epsilon:g} cannot be reached with any noise; the other "
            "releases spend it alone, so raise the target or plan fewer releases"
        )
    while not enough(high):
        high *= 2.0
    while high / 2.0 >= MIN_NOISE_MULTIPLIER and enough(high / 2.0):
        high /= 2.0
    low = max(high / 2.0, MIN_NOISE_MULTIPLIER)
    steps = range(math.ceil(low / NOISE_STEP), math.ceil(high / NOISE_STEP))
    found = bisect_left(steps, True, key=lambda one: enough(one * NOISE_STEP))
    return round((steps.start + found) * NOISE_STEP, 4)
