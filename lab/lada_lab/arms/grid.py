"""Settings that are varied: factors, and the points of the grid that they span."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lada_secure.errors import ParameterError

# One value per factor, as (name, JSON text); empty where nothing is varied.
Point: TypeAlias = tuple[tuple[str, str], ...]

MAX_POINTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A setting by its name in `--set`, and the values to run it at, as JSON texts."""

    name: str
    levels: tuple[str, ...]


def parse_factor(text: str) -> Factor:
    """Read "NAME=JSON,JSON,..." as given on the command line.

    Raises: ParameterError: no name, no JSON, fewer than two values, or one of them twice.
    """
    name, _, values = text.partition("=")
    try:
        found = json.loads(f"[{values}]")
    except ValueError as error:
        raise ParameterError(f"--factor {text}: expected NAME=JSON,JSON,...") from error
    # A value is told apart by its text, so that 0 and 0.0 must not both be there.
    levels = tuple(json.dumps(value) for value in found)
    differ = all(one != other for one, other in itertools.combinations(found, 2))
    if not name or len(levels) < 2 or not differ:
        raise ParameterError(f"--factor {text}: expected NAME= and at least two different values")
    return Factor(name=name, levels=levels)


def points_of(factors: Sequence[Factor]) -> list[Point]:
    """All combinations, the last factor changing fastest; one empty point for no factors.

    Raises: ParameterError: one factor twice, or more than 1,000 points.
    """
    names = [factor.name for factor in factors]
    if len(set(names)) < len(names):
        raise ParameterError(f"--factor: expected each name once, got {', '.join(names)}")
    points = [
        tuple(zip(names, levels, strict=True))
        for levels in itertools.product(*(factor.levels for factor in factors))
    ]
    if len(points) > MAX_POINTS:
        raise ParameterError(
            f"--factor: {len(points)} combinations, at most {MAX_POINTS}; run them in parts"
        )
    return points


def point_text(point: Point) -> str:
    """For titles and progress: "world.marked=0.25, allocation.clusters=8"."""
    return ", ".join(f"{name}={level}" for name, level in point)
