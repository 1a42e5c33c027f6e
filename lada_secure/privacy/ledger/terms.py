"""What a site asks of its ledger and what it answers: releases, caps, reservations, heads.

A ledger belongs to one site and one population. `book` keeps one, `replay` holds its
rules, `verification` checks one from its exported lines alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.events import (
    ComposedEvent,
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    check_target_delta,
)
from lada_secure.privacy.accounting.fields import check_hash, check_name
from lada_secure.privacy.ledger.entries import ADJACENCY, ReleaseKey, ReserveEntry

# Numbers, and as text only which noise was added.
MechanismParameters: TypeAlias = Mapping[str, float | str]
DISCRETE_GAUSSIAN = "discrete_gaussian"
DP_SGD = "dp_sgd"
FLOAT_GAUSSIAN = "float_gaussian"
# What DP-SGD may add to a clipped sum. The proof covers the discrete noise only; float noise is
# accounted the same and named, so that nobody has to guess which one it was.
DP_SGD_NOISES = (DISCRETE_GAUSSIAN, FLOAT_GAUSSIAN)
MIN_STD_STEPS = 16.0
MAX_CAP = 500.0
# `noise_multiplier` x `l2_sensitivity` may differ from `std` by rounding only.
_PRODUCT_TOLERANCE = 1e-9


def numeric_parameter(parameters: MechanismParameters, name: str) -> float:
    """A parameter that is a number. Raises: ParameterError: it is missing or text."""
    value = parameters.get(name)
    if not isinstance(value, float):
        raise ParameterError(f"{name}: expected a number, got {str(value)[:40]!r}")
    return value


def check_mechanism(mechanism: str, parameters: MechanismParameters, event: PrivacyEvent) -> None:
    """Refuse a mechanism that is unknown, or whose parameters do not carry its event.

    `discrete_gaussian` (Canonne, Kamath, Steinke 2020) is accounted as Gaussian. The difference
    is of order exp(-2 pi^2 std^2) with `std` in integer steps, and nothing at 16 steps; below,
    the claim would be too low, so it is refused.

    Args: mechanism: "discrete_gaussian" or "dp_sgd". parameters: see `ReleaseSpec`.
    Raises: ParameterError: names the field.
    """
    if mechanism == DISCRETE_GAUSSIAN:
        _check_discrete_gaussian(parameters, event)
    elif mechanism == DP_SGD:
        _check_dp_sgd(parameters, event)
    else:
        raise ParameterError(
            f"mechanism: expected {DISCRETE_GAUSSIAN} or {DP_SGD}, got {mechanism[:40]!r}; an "
            "unknown or non-private release is refused"
        )


def _check_discrete_gaussian(parameters: MechanismParameters, event: PrivacyEvent) -> None:
    if set(parameters) != {"l2_sensitivity", "std"}:
        raise ParameterError(
            "parameters: discrete_gaussian needs exactly l2_sensitivity and std (in integer "
            f"steps), got {sorted(parameters)}"
        )
    if not isinstance(event, GaussianEvent) or event.count != 1:
        raise ParameterError("event: discrete_gaussian needs one Gaussian event")
    std = numeric_parameter(parameters, "std")
    sensitivity = numeric_parameter(parameters, "l2_sensitivity")
    if not math.isfinite(std) or std < MIN_STD_STEPS:
        raise ParameterError(
            f"std: expected at least {MIN_STD_STEPS:g} integer steps, got {std}; scale the "
            "statistic up before rounding"
        )
    if not math.isfinite(sensitivity) or sensitivity <= 0:
        raise ParameterError(f"l2_sensitivity: expected above 0, got {sensitivity}")
    if event.noise_multiplier * sensitivity > std * (1 + _PRODUCT_TOLERANCE):
        raise ParameterError(
            f"event: noise_multiplier {event.noise_multiplier} claims more noise than std "
            f"{std} over l2_sensitivity {sensitivity} gives"
        )


def _check_dp_sgd(parameters: MechanismParameters, event: PrivacyEvent) -> None:
    if set(parameters) != {"expected_units", "l2_clip_norm", "noise"}:
        raise ParameterError(
            "parameters: dp_sgd needs exactly l2_clip_norm, expected_units (the fixed "
            f"denominator from the plan) and noise, got {sorted(parameters)}"
        )
    if not isinstance(event, DpSgdEvent):
        raise ParameterError("event: dp_sgd needs an event of Poisson-sampled steps")
    for name in ("expected_units", "l2_clip_norm"):
        value = numeric_parameter(parameters, name)
        if not math.isfinite(value) or value <= 0:
            raise ParameterError(f"{name}: expected above 0, got {value}")
    if parameters["noise"] not in DP_SGD_NOISES:
        raise ParameterError(
            f"noise: expected {' or '.join(DP_SGD_NOISES)}, got {str(parameters['noise'])[:40]!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSpec:
    """One release that somebody wants to make, before anything is spent.

    Args:
        study_id, plan_hash: which approved plan asks for it. plan_hash: SHA-256 hex.
        round_id: >= 0. purpose: "statistics", "training", ... chunk: part number, >= 0.
        mechanism, parameters: "discrete_gaussian" with {"l2_sensitivity", "std"} in integer
            steps, std >= 16; or "dp_sgd" with {"l2_clip_norm", "expected_units", "noise"},
            noise one of `DP_SGD_NOISES`.
        event: what it costs.
        unit: the records' column that names the privacy unit.
        adjacency: only "add_or_remove_one_unit" is known.
    Raises: ParameterError: names the field.
    """

    study_id: str
    plan_hash: str
    round_id: int
    purpose: str
    mechanism: str
    event: PrivacyEvent
    parameters: MechanismParameters
    chunk: int = 0
    unit: str = "unit"
    adjacency: str = ADJACENCY

    def __post_init__(self) -> None:
        check_name("study_id", self.study_id)
        check_hash("plan_hash", self.plan_hash)
        check_name("purpose", self.purpose)
        check_name("unit", self.unit)
        for name in ("round_id", "chunk"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ParameterError(f"{name}: expected a whole number from 0, got {value!r}")
        if self.adjacency != ADJACENCY:
            raise ParameterError(f"adjacency: only {ADJACENCY} is known, got {self.adjacency!r}")
        if not isinstance(self.event, GaussianEvent | DpSgdEvent | ComposedEvent):
            raise ParameterError(
                f"event: expected a privacy event, got {type(self.event).__name__}"
            )
        parameters = {
            name: value if isinstance(value, str) else float(value)
            for name, value in self.parameters.items()
        }
        check_mechanism(self.mechanism, parameters, self.event)
        object.__setattr__(self, "parameters", parameters)

    @property
    def key(self) -> ReleaseKey:
        """What the release is for; at most one output is ever committed for it."""
        return ReleaseKey(
            study_id=self.study_id,
            round_id=self.round_id,
            purpose=self.purpose,
            chunk=self.chunk,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCaps:
    """What one population may spend at most, from the site's own policy file.

    `total_epsilon` is over all studies, `study_epsilon` for each single one unless
    `study_overrides` names another; all at `target_delta`, each in (0, 500].
    """

    target_delta: float
    total_epsilon: float
    study_epsilon: float
    study_overrides: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_delta", check_target_delta(self.target_delta))
        caps = {"total_epsilon": self.total_epsilon, "study_epsilon": self.study_epsilon}
        for name, value in (*caps.items(), *self.study_overrides.items()):
            if not math.isfinite(value) or not 0.0 < value <= MAX_CAP:
                raise ParameterError(
                    f"{name}: expected above 0 and at most {MAX_CAP:g}, got {value}"
                )
        for name, value in caps.items():
            object.__setattr__(self, name, float(value))
        overrides = {study: float(cap) for study, cap in self.study_overrides.items()}
        object.__setattr__(self, "study_overrides", overrides)

    def for_study(self, study_id: str) -> float:
        """The cap of one study."""
        return self.study_overrides.get(study_id, self.study_epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Privacy that has been spent for one release.

    `stored_output` is None for a reservation without an output: compute, then commit. Otherwise
    the key's output was committed earlier, nothing was spent now, and these very bytes are to be
    sent.
    """

    entry: ReserveEntry
    entry_hash: str
    stored_output: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """Where a ledger ends: the index and hash of its newest entry."""

    site: str
    population: str
    ledger_id: str
    index: int
    entry_hash: str
