"""The benchmark's frozen settings by name, and changes to them from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lada_lab.arms.study import ALL_LINEAR, TINY_PLAN, LabSettings, changed_plan
from lada_lab.worlds.natural import NaturalSettings
from lada_secure.canonical import Json
from lada_secure.errors import ParameterError
from lada_secure.models.embedding import MINILM

# A study in some ten minutes of one core: fewer records, two rounds, adapters at the top alone.
_FACTS = LabSettings(
    plan=changed_plan(
        TINY_PLAN,
        {
            "embedder": MINILM,
            "rounds": 2,
            "statistics.loss_clip": 8.0,
            "training.steps_per_round": 6,
            "training.expected_units": 40.0,
            "distillation.adapter_layers": 10,
            "distillation.adapter_targets": ["q_proj", "v_proj"],
            "distillation.learning_rate": 2e-3,
            "distillation.pool_batch_size": 8,
            "allocation.quota": 24,
            "paths.budget": 96,
            "paths.max_new_tokens": 24,
            "paths.attempts": 1,
            "guide.own_paths": 2,
            "guide.rate_decay": 1.0,
            "guide.pool_steps": 15,
            "guide.last_pool_steps": 30,
            "guide.pool_learning_rate": 2e-3,
            # These students learn little from a few rationales.
            "guide.trials.gain_clip": 0.05,
        },
    ),
    noise_rate=1.0,
    batch_size=32,
    world=NaturalSettings(source="facts"),
)
# A code book is a new skill: more of the model moves, for longer, and code words that the model has
# never seen are no reason to drop a rationale.
_CODING = replace(
    _FACTS,
    plan=changed_plan(
        _FACTS.plan,
        {
            "distillation.adapter_targets": list(ALL_LINEAR),
            # There are 33 collections, and a topic of several says little about any.
            "allocation.clusters": 32,
            "allocation.quota": 12,
            "allocation.screen_low": 0.0,
            # It solves about half, and only what it solves is asked for.
            "allocation.least_llm_right": 0.25,
            "guide.pool_steps": 30,
            "guide.last_pool_steps": 60,
            "paths.budget": 36,
        },
    ),
    world=NaturalSettings(source="coding", sites=3, smallest=100, concentration=0.2, slm_read=0.5),
)
# What each arm's tuning found best (docs/results/tuning.md). That of `lada-secure` is the plan.
_TINY = LabSettings(
    tuned={
        "mass-valuation": {"guide.pool_learning_rate": 0.02},
        "topic-quotas": {"guide.pool_learning_rate": 0.02, "allocation.screen_low": 0.0},
        "random": {"guide.pool_learning_rate": 0.005},
        "random-screen": {"guide.pool_learning_rate": 0.02},
        "full-gain-top": {"guide.pool_learning_rate": 0.02},
        "no-pool": {"noise_rate": 1.2e-4, "guide.rate_decay": 1.0},
    }
)
PRESETS: Mapping[str, LabSettings] = {
    "tiny": _TINY,
    "facts": _FACTS,
    "coding": _CODING,
}


def bench_settings(
    preset: str, *, harmful: float | None, held_out: int | None, changes: Sequence[str] = ()
) -> LabSettings:
    """The settings of a preset with the caller's sizes and changes.

    Args: harmful, held_out: None for the preset's own. changes: "NAME=JSON" for a field of the plan
        by dotted name, for "noise_rate", "batch_size" and "dtype", or for "world.NAME".
    Raises: ParameterError: unknown preset or name, or a value of the wrong type.
    """
    if preset not in PRESETS:
        raise ParameterError(f"--preset: expected {' or '.join(PRESETS)}, got {preset!r}")
    settings = PRESETS[preset]
    world: dict[str, Any] = {} if held_out is None else {"held_out": held_out}
    if harmful is not None:
        if isinstance(settings.world, NaturalSettings):
            raise ParameterError(f"--harmful: the preset {preset!r} has natural questions alone")
        world["harmful"] = harmful
    own: dict[str, Any] = {}
    plan: dict[str, Json] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ParameterError(f"--set {change}: expected NAME=JSON") from error
        if name.startswith("world."):
            world[name.removeprefix("world.")] = _checked(name, value, settings.world)
        elif name in ("noise_rate", "batch_size", "dtype"):
            own[name] = _checked(name, value, settings)
        else:
            plan[name] = value
    try:
        changed = changed_plan(settings.plan, plan)
    except ParameterError as error:
        raise ParameterError(f"--set {error}") from error
    # All at once, because some settings only fit each other.
    return replace(
        settings,
        **own,
        plan=changed,
        world=replace(settings.world, **world),
        chosen=frozenset({*plan, *own}),
    )


def _checked(name: str, value: Any, target: Any) -> Any:
    """A value that is like the one it replaces."""
    known = {one.name: getattr(target, one.name) for one in fields(target)}
    inner = name.rpartition(".")[2]
    if inner not in known:
        raise ParameterError(f"--set {name}: expected one of {', '.join(sorted(known))}")
    wanted = (int, float) if isinstance(known[inner], float) else type(known[inner])
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ParameterError(f"--set {name}: expected a value like {known[inner]!r}, got {value}")
    return value
