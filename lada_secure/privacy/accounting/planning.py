"""Plans a whole study: noise per mechanism for a target epsilon, and what each release costs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.accountant import (
    check_target_delta,
    check_target_epsilon,
    epsilon,
    epsilon_rdp,
)
from lada_secure.privacy.accounting.calibration import least_noise
from lada_secure.privacy.accounting.events import (
    PrivacyEvent,
    dpsgd_event,
    gaussian_event,
)

MAX_PLAN_BYTES = 1 << 20
MAX_TIMES = 100_000
# A mechanism that publishes each record with probability delta is (0, delta)-DP: delta must be
# far below 1/units before epsilon means anything.
DELTA_TIMES_UNITS = 0.1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Noise = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class GaussianRelease(_Model):
    """A noised statistic, released `times` times (usually once a round).

    Without `noise_multiplier` it is calibrated: all calibrated releases get a common factor
    times their own `relative_noise`.
    """

    mechanism: Literal["gaussian"]
    purpose: str
    times: Annotated[int, Field(ge=1, le=MAX_TIMES)] = 1
    noise_multiplier: _Noise | None = None
    relative_noise: _Noise = 1.0

    def event(self, noise_multiplier: float) -> PrivacyEvent:
        """All `times` releases as one event."""
        return gaussian_event(noise_multiplier, count=self.times)


class DpSgdRelease(_Model):
    """DP-SGD of `steps` steps, run `times` times (usually once a round)."""

    mechanism: Literal["dpsgd"]
    purpose: str
    times: Annotated[int, Field(ge=1, le=MAX_TIMES)] = 1
    steps: Annotated[int, Field(ge=1, le=10**6)]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: _Noise | None = None
    relative_noise: _Noise = 1.0

    def event(self, noise_multiplier: float) -> PrivacyEvent:
        """All `times` runs as one event."""
        return dpsgd_event(
            noise_multiplier=noise_multiplier,
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
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
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


def _events(plan: PrivacyPlan, factor: float) -> list[PrivacyEvent]:
    return [
        one.event(
            factor * one.relative_noise if one.noise_multiplier is None else one.noise_multiplier
        )
        for one in plan.release
    ]


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
    factor = 1.0
    if any(one.noise_multiplier is None for one in plan.release):
        factor = least_noise(
            lambda noise: epsilon(_events(plan, noise), target_delta=target_delta),
            target_epsilon=target_epsilon,
        )
    events = _events(plan, factor)
    total = epsilon(events, target_delta=target_delta)
    return PlanCost(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        units=plan.units,
        epsilon=total,
        epsilon_rdp=epsilon_rdp(events, target_delta=target_delta),
        holds=total <= target_epsilon,
        releases=_rows(plan, events, factor, target_delta),
        warnings=delta_warnings(target_delta=target_delta, units=plan.units),
    )


def _rows(
    plan: PrivacyPlan, events: Sequence[PrivacyEvent], factor: float, target_delta: float
) -> tuple[ReleaseCost, ...]:
    rows: list[ReleaseCost] = []
    for position, (one, event) in enumerate(zip(plan.release, events, strict=True)):
        fixed = one.noise_multiplier
        so_far = events[: position + 1]
        rows.append(
            ReleaseCost(
                purpose=one.purpose,
                mechanism=one.mechanism,
                times=one.times,
                noise_multiplier=factor * one.relative_noise if fixed is None else fixed,
                calibrated=fixed is None,
                epsilon_alone=epsilon([event], target_delta=target_delta),
                epsilon_so_far=epsilon(so_far, target_delta=target_delta),
            )
        )
    return tuple(rows)
