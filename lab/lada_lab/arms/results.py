"""From outcomes to figures: means, paired differences, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lada_lab.arms.arms import ARMS
from lada_lab.arms.bench_plan import FIRST_VALIDATION_SEED, BenchPlan, settings_json
from lada_lab.arms.grid import Point
from lada_lab.arms.runs import Run
from lada_lab.arms.simulation import Outcome

CONFIDENCE = 0.95
# What is compared with every baseline.
OURS = ("lada-secure",)


def label(condition: str, epsilon: float, largest: float) -> str:
    """How a condition is called in results: with its epsilon where that is not the largest."""
    if epsilon == largest:
        return condition
    return f"{condition}@{epsilon:g}"


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of a mean by Student's t; None for fewer than two values."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return None
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * float(np.std(values, ddof=1))
    mean = float(np.mean(values))
    return mean - half / math.sqrt(count), mean + half / math.sqrt(count)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and interval, rounded to 4 decimals."""
    interval = t_interval(values)
    return {
        "mean": round(float(np.mean(values)), 4),
        "sd": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
        "interval": None if interval is None else [round(one, 4) for one in interval],
    }


def tabulate(outcomes: Sequence[Outcome], *, largest: float) -> dict[str, Any]:
    """The report's figures. Where a world has several draws of noise, their mean counts.

    accuracy.<condition>: over seeds, of the mean over sites. llm_accuracy: the same of the LLM.
    difference.<ours>.<other>: paired by seed, ours less the other, in shares (0.1 is ten points);
    intervals are paired t over seeds. Ours: LaDa-secure against all, and LaDa before each baseline
    against that baseline. llm_gain.<condition>: where the LLM learns, after less before.
    samples.<condition>: per site, over a study. transfer.<condition>: over all its rounds.
    cpu_s.<condition>: of one study, with what earlier arms had computed of it already.
    spent.<condition>: largest epsilon in a ledger, None where the condition is not private; such
    ones are named in not_private. by_seed.<condition>: accuracies.
    """
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(label(one.condition, one.epsilon, largest), []).append(one)
    by_seed = {name: _by_seed(found, lambda one: one.accuracy) for name, found in groups.items()}
    return {
        "accuracy": {name: summary(list(found.values())) for name, found in by_seed.items()},
        "llm_accuracy": {
            name: summary(list(_by_seed(found, lambda one: one.llm_accuracy).values()))
            for name, found in groups.items()
        },
        "difference": {
            ours: {other: paired(by_seed[ours], by_seed[other]) for other in others}
            for ours in by_seed
            if (others := _compared_with(ours, by_seed))
        },
        "llm_gain": {
            name: paired(
                _by_seed(found, lambda one: one.llm_accuracy),
                _by_seed(found, lambda one: one.llm_before),
            )
            for name, found in groups.items()
            if ARMS[found[0].condition].teaches_llm
        },
        "samples": {name: _samples(found) for name, found in groups.items()},
        "transfer": {
            name: _transfers(found) for name, found in groups.items() if found[0].transfers
        },
        "spent": {name: _largest_spent(found) for name, found in groups.items()},
        "not_private": [
            name for name, found in groups.items() if not ARMS[found[0].condition].private
        ],
        "cpu_s": {
            name: round(float(np.mean([one.alone_s for one in found])), 1)
            for name, found in groups.items()
        },
        "by_seed": {
            name: {str(seed): round(one, 4) for seed, one in found.items()}
            for name, found in by_seed.items()
        },
    }


def _by_seed(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> dict[int, float]:
    """Mean over draws, by seed in order."""
    found: dict[int, list[float]] = {}
    for one in sorted(outcomes, key=lambda one: one.seed):
        found.setdefault(one.seed, []).append(value(one))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _compared_with(ours: str, names: Iterable[str]) -> list[str]:
    condition, at, epsilon = ours.partition("@")
    if condition in OURS:
        return [name for name in names if name != ours]
    arm = ARMS[condition]
    if arm.baseline is None or arm.name != f"lada-{arm.baseline}":
        return []
    alone = {
        name + at + epsilon
        for name, one in ARMS.items()
        if one.baseline == arm.baseline and one != arm
    }
    return [name for name in names if name in alone]


def _largest_spent(outcomes: Sequence[Outcome]) -> float | None:
    # JSON has no infinity.
    spent = max(one.spent for one in outcomes)
    return round(spent, 4) if math.isfinite(spent) else None


def _samples(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over seeds and sites of the last round's report."""
    last = [reports[-1] for one in outcomes for reports in one.details.values() if reports]
    return {
        name: round(float(np.mean([report[name] for report in last])), 1)
        for name in (last[0] if last else {})
    }


def _transfers(outcomes: Sequence[Outcome]) -> dict[str, float]:
    rounds = [report for one in outcomes for report in one.transfers]
    return {
        name: round(float(np.mean([report[name] for report in rounds])), 3) for name in rounds[0]
    }


def paired(ours: dict[int, float], other: dict[int, float]) -> dict[str, Any]:
    """Differences over the seeds that both have."""
    seeds = sorted(set(ours) & set(other))
    if not seeds:
        return {"mean": None, "sd": None, "interval": None, "seeds": 0}
    return {**summary([ours[seed] - other[seed] for seed in seeds]), "seeds": len(seeds)}


def report_of(plan: BenchPlan, runs: Sequence[Run]) -> dict[str, Any]:
    """What was run and its figures, as JSON; with factors, one entry of `grid` per point."""
    largest = max(plan.epsilons)

    def figures_at(point: Point) -> dict[str, Any]:
        return tabulate([run.outcome for run in runs if run.point == point], largest=largest)

    if len(plan.points) == 1:
        figures = figures_at(next(iter(plan.points)))
    else:
        figures = {"grid": [{"factors": dict(point), **figures_at(point)} for point in plan.points]}
    settings = next(iter(plan.points.values()))
    return {
        "seeds": sorted(plan.seeds),
        "validation": min(plan.seeds) >= FIRST_VALIDATION_SEED,
        "epsilons": sorted(set(plan.epsilons)),
        "draws": plan.draws,
        "settings": settings_json(settings),
        "total_cpu_s": round(sum(run.outcome.cpu_s for run in runs), 1),
        **figures,
    }
