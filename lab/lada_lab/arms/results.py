"""From outcomes to figures: means, paired differences, and their intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lada_lab.arms.arms import ARMS
from lada_lab.arms.simulation import Outcome

CONFIDENCE = 0.95
# What is compared with every baseline.
OURS = ("lada-secure", "lada-nonprivate")
_COUNTS = ("asked", "received", "received_harmful", "trained", "trained_harmful")


def label(condition: str, epsilon: float | None, largest: float) -> str:
    """How a condition is called in results: with its epsilon where that is not the largest."""
    if epsilon is None or epsilon == largest:
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
    """The report's figures.

    accuracy.<condition>: over seeds, of the mean over sites. llm_accuracy: the same of the LLM.
    difference.<ours>.<other>: paired by seed, ours less the other, in shares (0.1 is ten points);
    intervals are paired t over seeds. Ours: LaDa-secure against all, and LaDa before each baseline
    against that host. llm_gain.<condition>: where the LLM learns, after the study less before it.
    samples.<condition>: per site, over a study. uplink.<condition>: over all rounds with an LLM
    transfer. cpu_s.<condition>: of one study, without what its arms share. by_seed.<condition>:
    accuracies.
    """
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(label(one.condition, one.epsilon, largest), []).append(one)
    by_seed = {
        name: {one.seed: one.accuracy for one in sorted(found, key=lambda one: one.seed)}
        for name, found in groups.items()
    }
    return {
        "accuracy": {name: summary(list(found.values())) for name, found in by_seed.items()},
        "llm_accuracy": {
            name: summary([one.llm_accuracy for one in found]) for name, found in groups.items()
        },
        "difference": {
            ours: {other: paired(by_seed[ours], by_seed[other]) for other in others}
            for ours in by_seed
            if (others := _compared_with(ours, by_seed))
        },
        "llm_gain": {
            name: paired(
                {one.seed: one.llm_accuracy for one in found},
                {one.seed: one.llm_before for one in found},
            )
            for name, found in groups.items()
            if ARMS[found[0].condition].teaches_llm
        },
        "samples": {name: _samples(found) for name, found in groups.items()},
        "uplink": {name: _uplinks(found) for name, found in groups.items() if found[0].uplinks},
        "cpu_s": {
            name: round(float(np.mean([one.cpu_s for one in found])), 1)
            for name, found in groups.items()
        },
        "by_seed": {
            name: {str(seed): round(one, 4) for seed, one in found.items()}
            for name, found in by_seed.items()
        },
    }


def _compared_with(ours: str, names: Iterable[str]) -> list[str]:
    condition, at, epsilon = ours.partition("@")
    if condition in OURS:
        return [name for name in names if name != ours]
    arm = ARMS[condition]
    if arm.host is None or not arm.guided:
        return []
    alone = {
        name + at + epsilon for name, one in ARMS.items() if one.host == arm.host and one != arm
    }
    return [name for name in names if name in alone]


def _samples(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over seeds and sites of the last round's report."""
    last = [reports[-1] for one in outcomes for reports in one.details.values() if reports]
    return {
        name: round(float(np.mean([report[name] for report in last])), 1)
        for name in (last[0] if last else {})
    }


def _uplinks(outcomes: Sequence[Outcome]) -> dict[str, float]:
    rounds = [report for one in outcomes for report in one.uplinks]
    return {
        name: round(float(np.mean([report[name] for report in rounds])), 3) for name in rounds[0]
    }


def paired(ours: dict[int, float], other: dict[int, float]) -> dict[str, Any]:
    """Differences over the seeds that both have."""
    seeds = sorted(set(ours) & set(other))
    if not seeds:
        return {"mean": None, "sd": None, "interval": None, "seeds": 0}
    return {**summary([ours[seed] - other[seed] for seed in seeds]), "seeds": len(seeds)}


def csv_text(outcomes: Sequence[Outcome], *, largest: float) -> str:
    """One line per condition, epsilon, seed and site."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            *("condition", "epsilon", "seed", "site", "accuracy", "llm_before", "llm_accuracy"),
            *_COUNTS,
        )
    )
    for one in outcomes:
        for (site, reports), accuracy in zip(one.details.items(), one.by_site, strict=True):
            last = reports[-1] if reports else {}
            writer.writerow(
                [
                    label(one.condition, one.epsilon, largest),
                    "" if one.epsilon is None else f"{one.epsilon:g}",
                    one.seed,
                    site,
                    f"{accuracy:.4f}",
                    f"{one.llm_before:.4f}",
                    f"{one.llm_accuracy:.4f}",
                    *(last.get(name, 0) for name in _COUNTS),
                ]
            )
    return out.getvalue()
