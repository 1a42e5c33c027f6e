"""What a benchmark's runs show: paired differences over worlds, their intervals and decisions.

The endpoint of a world is the mean held-out accuracy over its sites, averaged over draws of noise.
Two conditions are compared on the worlds that have both, draw by draw, because the arms of one draw
share their releases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lada_lab.arms.grid import Point
from lada_lab.arms.runs import Run
from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError

CONFIDENCE: Final = 0.95
ALPHA: Final = 0.05
RESAMPLES: Final = 10_000
# Up to so many worlds all patterns of signs are counted, above as many are drawn.
EXACT_WORLDS: Final = 20
RANDOM_PATTERNS: Final = 100_000
# Percentile intervals over fewer worlds are too short to decide anything by.
WORLDS_TO_DECIDE: Final = 6
# Fixes resamples, so that the same runs give the same figures.
_SEED: Final = 20_260


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Accuracies at one epsilon and one point of a grid.

    values: by condition and seed, (sites, draws), of the worlds whose draws are all there. missing:
    by condition, seeds of worlds that lack a draw.
    """

    point: Point
    epsilon: float
    sites: tuple[str, ...]
    draws: int
    values: Mapping[str, Mapping[int, FloatArray]]
    missing: Mapping[str, tuple[int, ...]]

    def differences(self, ours: str, other: str) -> tuple[tuple[int, ...], FloatArray]:
        """Seeds that both conditions have, and ours less the other, (worlds, sites, draws)."""
        mine, others = self.values.get(ours, {}), self.values.get(other, {})
        seeds = tuple(sorted(set(mine) & set(others)))
        shape = (0, len(self.sites), self.draws)
        found = [mine[seed] - others[seed] for seed in seeds]
        return seeds, np.stack(found) if found else np.zeros(shape)

    def accuracies(self, condition: str) -> FloatArray:
        """(worlds, sites, draws), by seed."""
        return np.stack([found for _, found in sorted(self.values[condition].items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and the limits of its 95% interval, in shares; NaN for no world."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSite:
    """The site that does worst against a rival, over its draws."""

    seed: int
    site: str
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against one rival in one group.

    p: of the sign-flip test, two-sided; adjusted: by Holm over the rivals of the group. superior,
    no_harm: the interval lies above the margin, above the harm limit; False for fewer than six
    worlds. significant: adjusted p at most 0.05. by_site: over worlds.
    """

    rival: str
    seeds: tuple[int, ...]
    difference: Estimate
    p: float
    adjusted: float
    superior: bool
    no_harm: bool
    by_site: Mapping[str, Estimate]
    worst: WorstSite | None

    @property
    def significant(self) -> bool:
        return self.adjusted <= ALPHA


def groups_of(runs: Iterable[Run]) -> list[RunGroup]:
    """Sort runs into groups: points in the order of their first runs, largest epsilon first.

    A world counts for a condition where it has all draws that any world of the group has.

    Raises: ParameterError: worlds of a group have different sites.
    """
    groups: dict[tuple[Point, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.point, run.outcome.epsilon), []).append(run)
    points = list(dict.fromkeys(point for point, _ in groups))
    order = sorted(groups, key=lambda found: (points.index(found[0]), -found[1]))
    return [_group(point, epsilon, groups[point, epsilon]) for point, epsilon in order]


def _group(point: Point, epsilon: float, runs: Sequence[Run]) -> RunGroup:
    draws = sorted({run.draw for run in runs})
    sites = tuple(sorted(runs[0].outcome.details))
    found: dict[str, dict[int, dict[int, list[float]]]] = {}
    for run in runs:
        one = run.outcome
        by_site = dict(zip(one.details, one.by_site, strict=True))
        if tuple(sorted(by_site)) != sites:
            raise ParameterError(
                f"epsilon {epsilon:g}: seed {one.seed} has the sites {', '.join(by_site)}, another "
                f"world has {', '.join(sites)}; analyse worlds with the same sites together"
            )
        world = found.setdefault(one.condition, {}).setdefault(one.seed, {})
        world[run.draw] = [by_site[site] for site in sites]
    seeds = {run.outcome.seed for run in runs}
    complete = {
        condition: {
            seed: np.array([world[draw] for draw in draws]).T
            for seed, world in worlds.items()
            if len(world) == len(draws)
        }
        for condition, worlds in found.items()
    }
    return RunGroup(
        point=point,
        epsilon=epsilon,
        sites=sites,
        draws=len(draws),
        values=complete,
        missing={name: tuple(sorted(seeds - set(worlds))) for name, worlds in complete.items()},
    )


def compare(
    group: RunGroup, *, ours: str, rivals: Sequence[str], margin: float, harm: float
) -> list[Comparison]:
    """Ours against each rival.

    Args: margin: superior is an interval above it. harm: no harm is one above it, at most 0. Both
        in shares, 0.03 is three points.
    Raises: ParameterError: `ours` or a rival has no runs in this group.
    """
    for name in (ours, *rivals):
        if name not in group.values:
            raise ParameterError(
                f"{name}: no runs at epsilon {group.epsilon:g}; expected some of "
                f"{', '.join(sorted(group.values))}"
            )
    pairs = [group.differences(ours, rival) for rival in rivals]
    tests = [sign_flip_p(values.mean(axis=(1, 2))) for _, values in pairs]
    found = []
    for rival, (seeds, values), p, adjusted in zip(rivals, pairs, tests, holm(tests), strict=True):
        difference = estimate(values)
        decided = len(seeds) >= WORLDS_TO_DECIDE
        found.append(
            Comparison(
                rival=rival,
                seeds=seeds,
                difference=difference,
                p=p,
                adjusted=adjusted,
                superior=decided and difference.low > margin,
                no_harm=decided and difference.low > harm,
                by_site={site: estimate(values[:, [at], :]) for at, site in enumerate(group.sites)},
                worst=_worst(group.sites, seeds, values),
            )
        )
    return found


def _worst(sites: Sequence[str], seeds: Sequence[int], values: FloatArray) -> WorstSite | None:
    if not len(values):
        return None
    means = values.mean(axis=2)
    world, site = divmod(int(np.argmin(means)), len(sites))
    return WorstSite(seed=seeds[world], site=sites[site], difference=float(means[world, site]))


def estimate(values: FloatArray) -> Estimate:
    """Mean over worlds, sites and draws with its interval. values: (worlds, sites, draws)."""
    if not len(values):
        return Estimate(mean=np.nan, low=np.nan, high=np.nan)
    return _interval(float(values.mean()), resampled_sites(values).mean(axis=(1, 2)))


def share_harmed(values: FloatArray, *, harm: float) -> Estimate:
    """Share of sites, of all worlds, whose mean over draws lies below `harm`, with its interval.

    Resamples of sites that are all alike never differ. Where none is harmed, the upper limit is at
    least the exact one of a binomial share with no hit in so many worlds; where all are, likewise.

    Args: values: (worlds, sites, draws), differences against private records alone.
    """
    if not len(values):
        return Estimate(mean=np.nan, low=np.nan, high=np.nan)
    share = float((values.mean(axis=2) < harm).mean())
    found = _interval(share, (resampled_sites(values) < harm).mean(axis=(1, 2)))
    exact = 1.0 - (0.5 - CONFIDENCE / 2) ** (1.0 / len(values))
    return Estimate(
        mean=share,
        low=min(found.low, 1.0 - exact) if share == 1.0 else found.low,
        high=max(found.high, exact) if share == 0.0 else found.high,
    )


def _interval(mean: float, resampled: FloatArray) -> Estimate:
    tail = 0.5 - CONFIDENCE / 2
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Estimate(mean=mean, low=float(low), high=float(high))


def resampled_sites(values: FloatArray, *, resamples: int = RESAMPLES) -> FloatArray:
    """Hierarchical bootstrap: worlds with replacement, sites within them, draws within these.

    Each level's spread is in the levels below it as well, so that intervals come out a little long
    where a world has few sites and draws, and a little short where there are few worlds (Davison
    and Hinkley 1997, section 3.8).

    Args: values: (worlds, sites, draws), at least one of each.
    Returns: (resamples, worlds, sites), means over draws; the same values give the same resamples.
    """
    rng = np.random.default_rng(_SEED)
    worlds, sites, draws = values.shape
    world = rng.integers(worlds, size=(resamples, worlds, 1, 1))
    site = rng.integers(sites, size=(resamples, worlds, sites, 1))
    draw = rng.integers(draws, size=(resamples, worlds, sites, draws))
    found: FloatArray = values[world, site, draw].mean(axis=3)
    return found


def sign_flip_p(differences: FloatArray) -> float:
    """Two-sided p of a paired permutation test of the mean: worlds' differences change their signs.

    Exact up to 20 worlds; beyond that over 100,000 patterns, drawn by a fixed seed. 1 for none.

    Args: differences: (worlds,).
    """
    if not len(differences):
        return 1.0
    if len(differences) > EXACT_WORLDS:
        return _random_sign_flip_p(differences)
    # All sums by doubling: SciPy's own exact test takes seconds for what this does at once.
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    # Patterns that give the same sum differ by rounding.
    bound = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    return float((np.abs(sums) >= bound).mean())


def _random_sign_flip_p(differences: FloatArray) -> float:
    from scipy.stats import permutation_test

    found = permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RANDOM_PATTERNS,
        batch=10_000,
        rng=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of several tests, in their order (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted
