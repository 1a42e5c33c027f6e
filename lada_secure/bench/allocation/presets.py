"""The benchmark's frozen settings by name, and changes to them from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from lada_secure.bench.allocation.study import StudySettings
from lada_secure.bench.allocation.world import WorldSettings
from lada_secure.errors import ParameterError


def bench_settings(
    preset: str, *, harmful: float, held_out: int, changes: Sequence[str] = ()
) -> StudySettings:
    """The settings of a preset with the caller's sizes and changes.

    Args: changes: "NAME=JSON" for a field of `StudySettings`, or "world.NAME=JSON".
    Raises: ParameterError: unknown preset or name, or a value of the wrong type.
    """
    if preset != "tiny":
        raise ParameterError(f"--preset: expected tiny, got {preset!r}")
    settings = StudySettings(world=WorldSettings(harmful=harmful, held_out=held_out))
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
