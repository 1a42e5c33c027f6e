"""The analysis of a benchmark's runs as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lada_lab.arms.ablation import PartWorth, main_effects, parts_left_out
from lada_lab.arms.analysis import (
    ALPHA,
    CONFIDENCE,
    RESAMPLES,
    WORLDS_TO_DECIDE,
    Cell,
    Comparison,
    Estimate,
    cells_of,
    compare,
    estimate,
    share_harmed,
)
from lada_lab.arms.grid import Point, point_text
from lada_lab.arms.runs import Run
from lada_secure.errors import ParameterError

# Title, head and rows.
TextTable: TypeAlias = tuple[str, tuple[str, ...], list[tuple[str, ...]]]

# Trained on private records alone: what a site has without the federation.
ALONE = "no-pool"


def analyse(
    runs: Sequence[Run], *, ours: str, rivals: Sequence[str], margin: float, harm: float
) -> dict[str, Any]:
    """Everything that the runs show, as JSON; accuracies and differences in shares.

    Args: rivals: compared in every cell where they were run; empty for all other conditions.
        margin, harm: see `compare`.
    Returns: cells: one entry per epsilon and point; parts: what each part is worth; effects: of
        factors on `ours`.
    Raises: ParameterError: no runs, `ours` or a rival in none of them, or sites that differ.
    """
    cells = cells_of(runs)
    names = list(dict.fromkeys(run.outcome.condition for run in runs))
    unknown = [name for name in (ours, *rivals) if name not in names]
    if unknown:
        raise ParameterError(
            f"{', '.join(unknown)}: no such runs; expected some of {', '.join(names) or 'none'}"
        )
    wanted = list(rivals) or [name for name in names if name != ours]
    return {
        "ours": ours,
        "rivals": wanted,
        "margin": margin,
        "harm": harm,
        "confidence": CONFIDENCE,
        "alpha": ALPHA,
        "resamples": RESAMPLES,
        "worlds_to_decide": WORLDS_TO_DECIDE,
        "runs": len(runs),
        "machine_hours": _finite(sum(run.outcome.cpu_s for run in runs) / 3600),
        "cells": [
            _cell_json(cell, ours=ours, rivals=wanted, margin=margin, harm=harm) for cell in cells
        ],
        "parts": [
            {**_where(point, epsilon), **_worth_json(worth)}
            for point, epsilon, worth in parts_left_out(runs, ours=ours)
        ],
        "effects": [
            {**_where((), epsilon), **_worth_json(effect)}
            for epsilon, effect in main_effects(runs, arm=ours)
        ],
    }


def _cell_json(
    cell: Cell, *, ours: str, rivals: Sequence[str], margin: float, harm: float
) -> dict[str, Any]:
    there = [name for name in rivals if name in cell.values]
    compared = (
        compare(cell, ours=ours, rivals=there, margin=margin, harm=harm)
        if ours in cell.values
        else []
    )
    return {
        **_where(cell.point, cell.epsilon),
        "sites": list(cell.sites),
        "draws": cell.draws,
        "accuracy": {
            name: {
                **_estimate_json(estimate(cell.accuracies(name))),
                "worlds": len(worlds),
                "missing": list(cell.missing[name]),
            }
            for name, worlds in cell.values.items()
            if worlds
        },
        "comparisons": [_comparison_json(one) for one in compared],
        "harmed": {
            name: _estimate_json(share_harmed(cell.differences(name, ALONE)[1], harm=harm))
            for name in (ours, *there)
            if name != ALONE and {name, ALONE} <= set(cell.values)
        },
    }


def _comparison_json(one: Comparison) -> dict[str, Any]:
    return {
        "rival": one.rival,
        "worlds": len(one.seeds),
        "seeds": list(one.seeds),
        **_estimate_json(one.difference),
        "p": _finite(one.p, digits=6),
        "p_holm": _finite(one.adjusted, digits=6),
        "significant": one.significant,
        "superior": one.superior,
        "no_harm": one.no_harm,
        "decision": decision(one),
        "by_site": {site: _estimate_json(found) for site, found in one.by_site.items()},
        "worst_site": None
        if one.worst is None
        else {
            "seed": one.worst.seed,
            "site": one.worst.site,
            "difference": _finite(one.worst.difference),
        },
    }


def decision(one: Comparison) -> str:
    """In words: "superior" needs the interval and the test, "no harm" the interval alone."""
    if one.superior and one.significant:
        return "superior"
    return "no harm" if one.no_harm else "open"


def _where(point: Point, epsilon: float) -> dict[str, Any]:
    return {"factors": dict(point), "epsilon": _finite(epsilon, digits=9)}


def _estimate_json(found: Estimate) -> dict[str, Any]:
    limits = [_finite(found.low), _finite(found.high)]
    return {"mean": _finite(found.mean), "interval": limits}


def _worth_json(worth: PartWorth) -> dict[str, Any]:
    return {
        "part": worth.part,
        "worlds": worth.worlds,
        **_estimate_json(worth.accuracy),
        "seconds": _finite(worth.seconds, digits=2),
        "epsilon_spent": _finite(worth.epsilon),
    }


def _finite(value: float, *, digits: int = 4) -> float | None:
    """JSON has no NaN."""
    return round(value, digits) if math.isfinite(value) else None


def tables(report: Mapping[str, Any]) -> list[TextTable]:
    """The same as title, head and rows of each table; at most 100 columns wide with short names."""
    found = []
    for cell in report["cells"]:
        if report["ours"] in cell["accuracy"]:
            found.append(_comparison_table(report, cell))
    if report["parts"]:
        found.append(_worth_table("What each part is worth", report["parts"]))
    if report["effects"]:
        found.append(_worth_table(f"What factors do to {report['ours']}", report["effects"]))
    return found


def _comparison_table(report: Mapping[str, Any], cell: Mapping[str, Any]) -> TextTable:
    ours = report["ours"]
    rows: list[tuple[str, ...]] = []
    mine = cell["accuracy"][ours]
    own = (ours, f"{mine['worlds']}", _percent(mine["mean"]), "", "", "", "", _harmed(cell, ours))
    rows.append(own)
    for one in cell["comparisons"]:
        rival, worst = one["rival"], one["worst_site"]
        accuracy = cell["accuracy"].get(rival, {"mean": None})
        rows.append(
            (
                rival,
                str(one["worlds"]),
                _percent(accuracy["mean"]),
                _points(one),
                "" if one["p_holm"] is None else f"{one['p_holm']:.3f}",
                one["decision"],
                "" if worst is None else f"{100 * worst['difference']:+.1f}",
                _harmed(cell, rival),
            )
        )
    head = (
        "condition", "worlds", "accuracy", "behind by, 95%", "p", "decision", "worst", "harmed",
    )  # fmt: skip
    varied = point_text(tuple(cell["factors"].items()))
    return f"{ours} at epsilon {_epsilon(cell)}{', ' if varied else ''}{varied}", head, rows


def _worth_table(title: str, worths: Sequence[Mapping[str, Any]]) -> TextTable:
    rows: list[tuple[str, ...]] = []
    for one in worths:
        varied = point_text(tuple(one.get("factors", {}).items()))
        rows.append(
            (
                f"{one['part']}{' at ' if varied else ''}{varied}",
                _epsilon(one),
                str(one["worlds"]),
                _points(one),
                "" if one["seconds"] is None else f"{one['seconds']:+.1f}",
                "" if one["epsilon_spent"] is None else f"{one['epsilon_spent']:+.2f}",
            )
        )
    head = ("part", "at epsilon", "worlds", "worth in points, 95%", "seconds", "epsilon")
    return title, head, rows


def _epsilon(found: Mapping[str, Any]) -> str:
    return "unbounded" if found["epsilon"] is None else f"{found['epsilon']:g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _points(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return ""
    low, high = found["interval"]
    return f"{100 * found['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _harmed(cell: Mapping[str, Any], name: str) -> str:
    found = cell["harmed"].get(name)
    if found is None or found["mean"] is None:
        return ""
    low, high = found["interval"]
    return f"{found['mean']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
