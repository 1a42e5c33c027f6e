"""From outcomes to figures: means, paired differences, and their intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lada_secure.bench.allocation.simulation import Outcome

CONFIDENCE = 0.95
# What is compared with every baseline.
OURS = ("lada-secure", "lada-nonprivate")


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
    intervals are paired t over seeds. by_seed.<condition>: seed to accuracy.
    """
    by_seed: dict[str, dict[int, float]] = {}
    llm: dict[str, dict[int, float]] = {}
    for one in outcomes:
        name = label(one.condition, one.epsilon, largest)
        by_seed.setdefault(name, {})[one.seed] = one.accuracy
        if one.llm_accuracy is not None:
            llm.setdefault(name, {})[one.seed] = one.llm_accuracy
    differences: dict[str, Any] = {}
    for ours in by_seed:
        if ours.split("@")[0] in OURS:
            differences[ours] = {
                other: paired(by_seed[ours], by_seed[other]) for other in by_seed if other != ours
            }
    return {
        "accuracy": {name: summary(list(found.values())) for name, found in by_seed.items()},
        "llm_accuracy": {name: summary(list(found.values())) for name, found in llm.items()},
        "difference": differences,
        "by_seed": {
            name: {str(seed): round(found[seed], 4) for seed in sorted(found)}
            for name, found in by_seed.items()
        },
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
            *("condition", "epsilon", "seed", "site", "accuracy", "llm_accuracy"),
            *("asked", "trained", "trained_harmful"),
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
                    "" if one.llm_accuracy is None else f"{one.llm_accuracy:.4f}",
                    int(last.get("asked", 0)),
                    int(last.get("trained", 0)),
                    int(last.get("trained_harmful", 0)),
                ]
            )
    return out.getvalue()
