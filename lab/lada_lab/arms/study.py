"""A simulated study's plan: the method's own settings, and the noise that an epsilon asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from lada_lab.worlds.chain_world import WorldSettings
from lada_lab.worlds.natural import NaturalSettings
from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.statistics_parameters import statistics_scale
from lada_secure.canonical import Json
from lada_secure.data.records import pool_hash
from lada_secure.errors import ParameterError
from lada_secure.method.plan import (
    AllocationPlan,
    DistillationPlan,
    MethodPlan,
    PrivacyPlan,
    RationalesPlan,
    ReferenceModelPlan,
    StatisticsPlan,
    TrainingPlan,
    ValuationPlan,
)
from lada_secure.models.embedding import HASHED_NGRAMS
from lada_secure.models.placement import Dtype, Placement
from lada_secure.privacy.accounting.planning import DpSgdRelease, GaussianRelease, cost_plan
from lada_secure.privacy.accounting.planning import PrivacyPlan as Budget

# Noise multipliers over that of one statistics release: of DP-SGD, and of one data valuation.
_TRAINING_RELATIVE_NOISE = 1.0 / 6.0
_VALUATION_RELATIVE_NOISE = 0.5
# Replaced for every study: what is calibrated, and what the data decide.
_CALIBRATED = 1.0
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

TINY_PLAN = MethodPlan(
    study_id="bench",
    rounds=4,
    embedder=HASHED_NGRAMS,
    seed=0,
    pool_sha256="00" * 32,
    pool_size=10,
    privacy=PrivacyPlan(
        unit="unit", target_delta=1e-5, epsilon_cap=8.0, max_records_per_unit=4, max_units=2_000
    ),
    statistics=StatisticsPlan(loss_clip=4.0, integer_scale=64, noise_multiplier=_CALIBRATED),
    training=TrainingPlan(
        noise_multiplier=_CALIBRATED,
        l2_clip_norm=1.0,
        sampling_probability=_CALIBRATED,
        expected_units=200.0,
        steps_per_round=18,
        pool_gradients="public",
    ),
    distillation=DistillationPlan(
        adapter_rank=8,
        adapter_layers=2,
        adapter_targets=ALL_LINEAR,
        train_a=True,
        learning_rate=2e-2,
        pool_batch_size=16,
        private_weight=1.0,
        contrastive_weight=0.0,
        contrastive_form="margin",
    ),
    allocation=AllocationPlan(
        strategy="valued_gain",
        sample_value="gain",
        clusters=8,
        difficulty_bins=2,
        quota=30,
        threshold=0.1,
        exploration_weight=0.1,
        screen_low=0.02,
        screen_high=1.0,
    ),
    paths=RationalesPlan(budget=90, max_new_tokens=12, attempts=2),
    guide=ReferenceModelPlan(
        records_with_reasons=True,
        own_paths=5,
        least_share=0.5,
        rate_decay=0.5,
        private_share=0.5,
        pool_steps=30,
        last_pool_steps=160,
        pool_learning_rate=1e-2,
        finish=True,
        own_reasons=True,
        replay_batch_size=8,
        trials=ValuationPlan(noise_multiplier=_CALIBRATED, gain_clip=0.5, least_gain=-0.1),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What all arms share; frozen before fresh seeds are run.

    plan: its noise, sampling probability and learning rate are set for each epsilon, the pool and
    the seed for each world. noise_rate: largest product of the learning rate of DP-SGD and its
    noise per expected unit, see `study_plan`. batch_size: texts at a time, as memory allows.
    dtype: of both frozen bases, as parties set it in their `[model]`. tuned: by arm, what its
    tuning on worlds of this kind has found best, named as in `Arm.defaults`. chosen: what the
    caller has set, by dotted name; an arm's defaults and tuning give way to it.
    """

    plan: MethodPlan = TINY_PLAN
    noise_rate: float = 2.4e-4
    batch_size: int = 256
    dtype: Dtype = "float32"
    world: WorldSettings | NaturalSettings = field(default_factory=WorldSettings)
    tuned: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        Placement(dtype=self.dtype)
        if not self.noise_rate > 0.0:
            raise ParameterError(f"noise_rate: expected above 0, got {self.noise_rate}")


def changed_plan(plan: MethodPlan, changes: Mapping[str, Json]) -> MethodPlan:
    """A plan with other values of some fields, by dotted name as `allocation.quota`.

    A field may be None where the plan has no such part.

    Raises: ParameterError: an unknown name, or a value that the plan refuses.
    """
    document: dict[str, Any] = plan.model_dump()
    for name, value in changes.items():
        *parts, last = name.split(".")
        inner: Any = document
        for part in parts:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise ParameterError(f"{name}: a study's plan has no such field")
        inner[last] = value
    try:
        return MethodPlan.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or ", ".join(changes)
        raise ParameterError(f"{where}: {first['msg']}") from error


@lru_cache(maxsize=32)
def calibrated_noise(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    steps: int,
    sampling_probability: float,
    valuation: bool,
) -> Mapping[str, float]:
    """The least noise multipliers, by purpose, for which a study costs at most `epsilon`."""
    valued = GaussianRelease(
        mechanism="gaussian",
        purpose="trials",
        times=rounds,
        relative_noise=_VALUATION_RELATIVE_NOISE,
    )
    found = cost_plan(
        Budget(
            target_epsilon=epsilon,
            target_delta=delta,
            units=1,
            release=[
                GaussianRelease(mechanism="gaussian", purpose="statistics", times=rounds),
                DpSgdRelease(
                    mechanism="dpsgd",
                    purpose="training",
                    steps=steps,
                    sampling_probability=sampling_probability,
                    relative_noise=_TRAINING_RELATIVE_NOISE,
                ),
                *([valued] if valuation else []),
            ],
        )
    )
    return {release.purpose: release.noise_multiplier for release in found.releases}


def study_plan(
    settings: LabSettings,
    changes: Mapping[str, Json],
    data: BenchData,
    *,
    clusters: int,
    units: int,
    epsilon: float,
    seed: int,
) -> MethodPlan:
    """The plan of one arm in one world at one epsilon.

    Noise is calibrated for every release that the plan allows, whether its strategy makes it or
    not, so that arms with the same releases otherwise have the same noise.

    AdamW moves every weight by about the learning rate, whatever the gradient's size. Where noise
    makes most of the gradient, a rate that is right without noise carries the model far off in a
    few steps. Small steps stay where the signal adds up step by step and the noise only as its
    root. Noise is public.

    Args: clusters: of the pool. units: of a site, about; public and rounded to tens.
    """
    samples = len(data.pool)
    plan = changed_plan(settings.plan, {"pool_size": samples, **changes})
    rounded = max(10, 10 * round(units / 10))
    expected = plan.training.expected_units
    probability = min(1.0, round(expected / rounded, 4))
    trials = None if plan.guide is None else plan.guide.trials
    noise = calibrated_noise(
        epsilon=epsilon,
        delta=plan.privacy.target_delta,
        rounds=plan.rounds,
        steps=plan.training.steps_per_round * plan.rounds,
        sampling_probability=probability,
        valuation=trials is not None,
    )
    rate = plan.distillation.learning_rate
    if plan.guide is not None:
        rate = min(rate, settings.noise_rate * expected / noise["training"])
    calibrated: dict[str, Json] = {
        "seed": seed,
        "pool_sha256": pool_hash(data.pool),
        "privacy.epsilon_cap": epsilon * 1.001,  # a hair above, for the calibration's rounding
        "privacy.max_units": 2 * max(units, 1),
        "statistics.noise_multiplier": noise["statistics"],
        "statistics.integer_scale": statistics_scale(noise["statistics"]),
        "training.noise_multiplier": noise["training"],
        "training.sampling_probability": probability,
        "distillation.learning_rate": rate,
        "allocation.clusters": clusters,
    }
    if trials is not None:
        calibrated["guide.trials.noise_multiplier"] = noise["trials"]
    return changed_plan(plan, calibrated)
