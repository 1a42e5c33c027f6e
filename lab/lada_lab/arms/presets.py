"""The benchmark's frozen settings by name, and changes to them from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lada_lab.arms.study import StudySettings
from lada_lab.worlds.wards import WardSettings
from lada_secure.errors import ParameterError

# A study in some ten minutes of one core: fewer records, two rounds, adapters at the top alone.
_SMOLLM2 = StudySettings(
    rounds=2,
    quota=24,
    private_steps=(6, 6),
    pool_steps=15,
    final_steps=30,
    expected_units=80.0,
    private_learning_rate=2e-3,
    noise_rate=1.0,
    rate_decay=1.0,
    pool_batch_size=8,
    learning_rate=2e-3,
    own_paths=2,
    adapter_targets=("q_proj", "v_proj"),
    adapter_layers=6,
    loss_clip=8.0,
    # These students learn little from a few paths, but what suits the records raises them.
    trial_gain_clip=0.05,
    trial_least_gain=0.3,
    max_new_tokens=32,
    attempts=1,
    batch_size=32,
    world=WardSettings(),
)
PRESETS: Mapping[str, StudySettings] = {"tiny": StudySettings(), "smollm2": _SMOLLM2}


def bench_settings(
    preset: str, *, harmful: float, held_out: int | None, changes: Sequence[str] = ()
) -> StudySettings:
    """The settings of a preset with the caller's sizes and changes.

    Args: held_out: None for the preset's own number. changes: "NAME=JSON" for a field of
        `StudySettings`, or "world.NAME=JSON".
    Raises: ParameterError: unknown preset or name, or a value of the wrong type.
    """
    if preset not in PRESETS:
        raise ParameterError(f"--preset: expected {' or '.join(PRESETS)}, got {preset!r}")
    settings = PRESETS[preset]
    size = settings.world.held_out if held_out is None else held_out
    settings = replace(settings, world=replace(settings.world, harmful=harmful, held_out=size))
    own: dict[str, Any] = {}
    world: dict[str, Any] = {}
    for change in changes:
        name, value = _parsed(settings, change)
        inner = name.removeprefix("world.")
        (own if inner == name else world)[inner] = value
    # All at once, because some settings only fit each other.
    return replace(settings, **own, world=replace(settings.world, **world))


def _parsed(settings: StudySettings, change: str) -> tuple[str, Any]:
    name, equals, text = change.partition("=")
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"--set {change}: expected NAME=JSON") from error
    inner = name.removeprefix("world.")
    target: Any = settings.world if inner != name else settings
    known = {one.name: getattr(target, one.name) for one in fields(target) if one.name != "world"}
    if not equals or inner not in known:
        raise ParameterError(f"--set {name}: expected one of {', '.join(sorted(known))}")
    if isinstance(known[inner], tuple):
        value = tuple(value) if isinstance(value, list) else value
    wanted = (int, float) if isinstance(known[inner], float) else type(known[inner])
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ParameterError(f"--set {name}: expected a value like {known[inner]!r}, got {text}")
    return name, value
