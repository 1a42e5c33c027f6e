"""What each part of the method is worth: in points, in seconds and in epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lada_lab.arms.analysis import Estimate, estimate, groups_of
from lada_lab.arms.grid import Point
from lada_lab.arms.runs import Run
from lada_secure.arrays import FloatArray

# Arms that leave a part of the full method out, and what the part is called.
PARTS_LEFT_OUT: Final[Mapping[str, str]] = {
    "no-valuation": "data valuation",
    "full-gain-top": "both judges",
    "mass-valuation": "gap of topics and samples",
    "no-replay": "replay",
    "no-screen": "screen by p",
}
# Arms that add a part which the full method does without.
PARTS_ADDED: Final[Mapping[str, str]] = {"with-contrast": "contrastive term"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWorth:
    """With a part less without it.

    part: of the method, or a factor's level against its first one. worlds: that have both. seconds,
    epsilon: of one study; NaN where a file of an earlier version does not say.
    """

    part: str
    worlds: int
    accuracy: Estimate
    seconds: float
    epsilon: float


def parts_left_out(runs: Sequence[Run], *, ours: str) -> list[tuple[Point, float, PartWorth]]:
    """The full method against arms that lack one part, or have one more, in every group.

    Returns: point, epsilon and worth, of the parts that were run; empty for none.
    """
    found = []
    for group in groups_of(runs):
        inside = [
            run for run in runs if run.point == group.point and run.outcome.epsilon == group.epsilon
        ]
        for arm, part in {**PARTS_LEFT_OUT, **PARTS_ADDED}.items():
            if arm == ours or arm not in group.values or ours not in group.values:
                continue
            full, less = (arm, ours) if arm in PARTS_ADDED else (ours, arm)
            seeds, values = group.differences(full, less)
            if not seeds:
                continue
            cost = _costs(inside, full, seeds) - _costs(inside, less, seeds)
            worth = PartWorth(
                part=part,
                worlds=len(seeds),
                accuracy=estimate(values),
                seconds=float(cost[0]),
                epsilon=float(cost[1]),
            )
            found.append((group.point, group.epsilon, worth))
    return found


def main_effects(runs: Sequence[Run], *, arm: str) -> list[tuple[float, PartWorth]]:
    """What each level of each factor does to one arm, against the factor's first level.

    An effect is the mean over all combinations of the other factors, of worlds in which every
    combination was run with all draws: in a full factorial other factors cancel out.

    Returns: epsilon and effect; empty where nothing varies or no world is complete.
    """
    found = []
    for epsilon in sorted({run.outcome.epsilon for run in runs}, reverse=True):
        mine = [
            run for run in runs if run.outcome.condition == arm and run.outcome.epsilon == epsilon
        ]
        found += [(epsilon, effect) for effect in _effects_at(mine)]
    return found


def _effects_at(runs: Sequence[Run]) -> list[PartWorth]:
    """Main effects of one arm at one epsilon."""
    groups = {group.point: group for group in groups_of(runs)}
    levels = _levels(list(dict.fromkeys(run.point for run in runs)))
    if len(groups) < 2 or len(groups) < np.prod([len(found) for found in levels.values()]):
        return []
    if len({(group.sites, group.draws) for group in groups.values()}) > 1:
        return []
    arm = runs[0].outcome.condition
    seeds = sorted(set.intersection(*(set(group.values[arm]) for group in groups.values())))
    if not seeds:
        return []

    def mean_at(name: str, level: str) -> tuple[FloatArray, FloatArray]:
        """Mean (worlds, sites, draws) over all points with this level, and mean costs."""
        points = [point for point in groups if (name, level) in point]
        values = [np.stack([groups[point].values[arm][seed] for seed in seeds]) for point in points]
        costs = [
            _costs([run for run in runs if run.point == point], arm, seeds) for point in points
        ]
        return np.mean(values, axis=0), np.mean(costs, axis=0)

    effects = []
    for name, found in levels.items():
        base, base_cost = mean_at(name, found[0])
        for level in found[1:]:
            values, cost = mean_at(name, level)
            effects.append(
                PartWorth(
                    part=f"{name}: {level} for {found[0]}",
                    worlds=len(seeds),
                    accuracy=estimate(values - base),
                    seconds=float((cost - base_cost)[0]),
                    epsilon=float((cost - base_cost)[1]),
                )
            )
    return effects


def _levels(points: Sequence[Point]) -> dict[str, list[str]]:
    """By factor, its levels in the order of their first runs."""
    levels: dict[str, list[str]] = {}
    for point in points:
        for name, level in point:
            known = levels.setdefault(name, [])
            if level not in known:
                known.append(level)
    return levels


def _costs(runs: Sequence[Run], arm: str, seeds: Sequence[int]) -> FloatArray:
    """Mean seconds of a study alone and mean epsilon spent, (2,), of one arm in some worlds."""
    wanted = set(seeds)
    found = [
        (run.outcome.alone_s, run.outcome.spent)
        for run in runs
        if run.outcome.condition == arm and run.outcome.seed in wanted
    ]
    costs: FloatArray = np.mean(found, axis=0)
    return costs
