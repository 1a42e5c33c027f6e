"""What a benchmark is to run, and what is left of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lada_lab.arms.arms import Arm
from lada_lab.arms.grid import Point
from lada_lab.arms.ledgers import SharedReleases
from lada_lab.arms.run_file import Runs
from lada_lab.arms.runs import Run, RunKey
from lada_lab.arms.study import LabSettings
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError

# Worlds from here on are for choosing settings; results are reported from worlds below.
FIRST_VALIDATION_SEED = 10_000
MAX_SEEDS = 1000
MAX_DRAWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchDraw:
    """What is left of one draw of noise: arms that share releases, and those so far."""

    number: int
    arms: tuple[Arm, ...]
    releases: Mapping[str, SharedReleases]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """What is left to do of one draw in one world at one epsilon."""

    point: Point
    seed: int
    epsilon: float
    draw: BenchDraw
    settings: LabSettings
    cache_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is to be run. points: settings by what varies in them; one empty point for nothing.

    draws: of noise, in every world, each with its own releases.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epsilons: tuple[float, ...]
    draws: int
    points: Mapping[Point, LabSettings]

    def __post_init__(self) -> None:
        """Check. Raises: ParameterError: no seeds, a negative one, no epsilon, or no draw."""
        if not self.seeds or min(self.seeds) < 0 or len(self.seeds) > MAX_SEEDS:
            raise ParameterError(
                f"seeds: expected 1 to {MAX_SEEDS} numbers >= 0, got {len(self.seeds)}"
            )
        if not self.epsilons or not all(0.0 < one < float("inf") for one in self.epsilons):
            raise ParameterError(
                f"epsilon: expected at least one number, all above 0, got {list(self.epsilons)}"
            )
        if not 1 <= self.draws <= MAX_DRAWS:
            raise ParameterError(f"draws: expected 1 to {MAX_DRAWS}, got {self.draws}")

    def arms_at(self, epsilon: float) -> tuple[Arm, ...]:
        """Ablations are run at the largest epsilon alone."""
        largest = max(self.epsilons)
        return tuple(arm for arm in self.arms if epsilon == largest or not arm.ablation)

    def tasks(self, runs: Runs, cache_dir: Path) -> list[BenchTask]:
        """What is left of it: by draw, largest epsilon first, then by seed and point.

        So an interrupted benchmark has all its worlds before a second draw of any.
        """
        tasks = []
        order = itertools.product(
            range(1, self.draws + 1),
            sorted(set(self.epsilons), reverse=True),
            self.seeds,
            self.points.items(),
        )
        for number, epsilon, seed, (point, settings) in order:
            draw = self._draw_left(runs, point, seed, epsilon, number)
            if draw is not None:
                tasks.append(
                    BenchTask(
                        point=point,
                        seed=seed,
                        epsilon=epsilon,
                        draw=draw,
                        settings=settings,
                        cache_dir=cache_dir,
                    )
                )
        return tasks

    def _draw_left(
        self, runs: Runs, point: Point, seed: int, epsilon: float, number: int
    ) -> BenchDraw | None:
        keys = {
            RunKey(point, arm.name, epsilon, seed, number): arm for arm in self.arms_at(epsilon)
        }
        left = {key: arm for key, arm in keys.items() if key not in runs.known}
        if not left:
            return None
        releases = runs.releases(next(iter(left)))
        return BenchDraw(number=number, arms=tuple(left.values()), releases=releases)

    def order(self, run: Run) -> tuple[float, ...]:
        """To sort runs: by point, condition, epsilon from the largest, seed and draw."""
        one = run.outcome
        arms = [arm.name for arm in self.arms]
        where = list(self.points).index(run.point), arms.index(one.condition)
        return *where, -one.epsilon, one.seed, run.draw

    def description(self, preset: str) -> dict[str, Any]:
        """All that decides what runs there will be, as JSON."""
        return {
            "schema_version": 1,
            "preset": preset,
            "conditions": {
                arm.name: {
                    "asks": arm.asks,
                    "baseline": arm.baseline,
                    "ablation": arm.ablation,
                    "private": arm.private,
                    "defaults": dict(arm.defaults),
                    "changes": dict(arm.changes),
                }
                for arm in self.arms
            },
            "seeds": list(self.seeds),
            "epsilons": sorted(set(self.epsilons)),
            "draws": self.draws,
            "points": [dict(point) for point in self.points],
            "settings": settings_json(next(iter(self.points.values()))),
            "settings_sha256": sha256_hex(
                canonical_json([settings_json(settings) for settings in self.points.values()])
            ),
        }


def settings_json(settings: LabSettings) -> dict[str, Any]:
    """All of a laboratory's settings as JSON."""
    return {
        "plan": settings.plan.model_dump(mode="json"),
        "noise_rate": settings.noise_rate,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "world": asdict(settings.world),
        "tuned": {name: dict(tuned) for name, tuned in settings.tuned.items()},
        "chosen": sorted(settings.chosen),
    }
