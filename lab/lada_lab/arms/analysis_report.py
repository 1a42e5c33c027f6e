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
    Comparison,
    Estimate,
    RunGroup,
    compare,
    estimate,
    groups_of,
    share_harmed,
)
from lada_lab.arms.grid import Point, point_text
from lada_lab.arms.runs import Run
from lada_secure.errors import ParameterError

# Title, head and rows.
TextTable: TypeAlias = tuple[str, tuple[str, ...], list[tuple[str, ...]]]

# Trained on private records alone: what a site has without the federation.
ALONE = "no-pool"
_LEAST_P = 0.001


def analyse(
    runs: Sequence[Run], *, ours: str, rivals: Sequence[str], margin: float, harm: float
) -> dict[str, Any]:
    """Everything that the runs show, as JSON; accuracies and differences in shares.

    Args: rivals: compared in every group where they were run; empty for all other conditions that
        are private. margin, harm: see `compare`.
    Returns: groups: one entry per epsilon and point; parts: what each part is worth; effects: of
        factors on `ours`; settings: where anything varies, what was tried for every condition;
        not_private: conditions whose runs read records that no ledger knows of.
    Raises: ParameterError: no runs, `ours` or a rival in none of them, or sites that differ.
    """
    groups = groups_of(runs)
    names = list(dict.fromkeys(run.outcome.condition for run in runs))
    unknown = [name for name in (ours, *rivals) if name not in names]
    if unknown:
        raise ParameterError(
            f"{', '.join(unknown)}: no such runs; expected some of {', '.join(names) or 'none'}"
        )
    bare = list(dict.fromkeys(run.outcome.condition for run in runs if _not_private(run)))
    # What is not private is no rival but a bound: a test against it would only correct the others.
    wanted = list(rivals) or [name for name in names if name != ours and name not in bare]
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
        "groups": [
            _group_json(group, ours=ours, rivals=wanted, margin=margin, harm=harm)
            for group in groups
        ],
        "parts": [
            {**_where(point, epsilon), **_worth_json(worth)}
            for point, epsilon, worth in parts_left_out(runs, ours=ours)
        ],
        "effects": [
            {**_where((), epsilon), **_worth_json(effect)}
            for epsilon, effect in main_effects(runs, arm=ours)
        ],
        "settings": settings_tried(groups),
        "not_private": bare,
    }


def _not_private(run: Run) -> bool:
    # Files of versions before ledgers were in them have no spent, and no epsilon for such runs.
    return math.inf in (run.outcome.spent, run.outcome.epsilon)


def settings_tried(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Every condition at every setting that was tried, as JSON; empty where nothing varies.

    By condition and epsilon, best first; best: the largest mean, of which there is one where all
    settings were tried on the same worlds, and none where they were not.
    """
    if len({group.point for group in groups}) < 2:
        return []
    found: dict[tuple[str, float], list[RunGroup]] = {}
    for group in groups:
        for name, worlds in group.values.items():
            if worlds:
                found.setdefault((name, group.epsilon), []).append(group)
    return [row for (name, _), tried in found.items() for row in _tried_json(name, tried)]


def _tried_json(name: str, tried: Sequence[RunGroup]) -> list[dict[str, Any]]:
    estimates = {group.point: estimate(group.accuracies(name)) for group in tried}
    alike = len({(tuple(sorted(group.values[name])), group.draws) for group in tried}) == 1
    order = sorted(tried, key=lambda group: -estimates[group.point].mean)
    return [
        {
            "condition": name,
            **_where(group.point, group.epsilon),
            **_estimate_json(estimates[group.point]),
            "worlds": len(group.values[name]),
            "draws": group.draws,
            "best": alike and group is order[0],
        }
        for group in order
    ]


def _group_json(
    group: RunGroup, *, ours: str, rivals: Sequence[str], margin: float, harm: float
) -> dict[str, Any]:
    there = [name for name in rivals if name in group.values]
    compared = (
        compare(group, ours=ours, rivals=there, margin=margin, harm=harm)
        if ours in group.values
        else []
    )
    return {
        **_where(group.point, group.epsilon),
        "sites": list(group.sites),
        "draws": group.draws,
        "accuracy": {
            name: {
                **_estimate_json(estimate(group.accuracies(name))),
                "worlds": len(worlds),
                "missing": list(group.missing[name]),
            }
            for name, worlds in group.values.items()
            if worlds
        },
        "comparisons": [_comparison_json(one) for one in compared],
        "over_alone": _over_alone(group, ours),
        "harmed": {
            name: _estimate_json(share_harmed(group.differences(name, ALONE)[1], harm=harm))
            for name in (ours, *there)
            if name != ALONE and {name, ALONE} <= set(group.values)
        },
    }


def _over_alone(group: RunGroup, ours: str) -> dict[str, Any] | None:
    """How far `ours` is ahead of private records alone: said of every group, and never tested."""
    if ours == ALONE or not {ours, ALONE} <= set(group.values):
        return None
    seeds, values = group.differences(ours, ALONE)
    return {"worlds": len(seeds), **_estimate_json(estimate(values))} if seeds else None


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
    for group in report["groups"]:
        if report["ours"] in group["accuracy"]:
            found.append(_comparison_table(report, group))
    if report["parts"]:
        found.append(_worth_table("What each part is worth", report["parts"]))
    if report["effects"]:
        found.append(_worth_table(f"What factors do to {report['ours']}", report["effects"]))
    return found


def markdown_text(found: Sequence[TextTable]) -> str:
    """Tables as a page has them, each below its title."""
    texts = []
    for title, head, rows in found:
        lines = [head, ("---",) * len(head), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        texts.append(f"**{title}**\n\n{table}")
    return "\n\n".join(texts)


def settings_table(report: Mapping[str, Any]) -> TextTable:
    """Every condition at every setting that was tried; no rows where nothing varies."""
    tried = report["settings"]
    rows: list[tuple[str, ...]] = []
    for one in tried:
        low, high = (_percent(limit) for limit in one["interval"])
        rows.append(
            (
                one["condition"],
                _epsilon(one),
                str(one["worlds"]),
                f"{_percent(one['mean'])} [{low}, {high}]",
                "best" if one["best"] else "",
                *one["factors"].values(),
            )
        )
    # One name over each value; the last word of a dotted name says enough and is short.
    names = [name.rpartition(".")[2] for name in (tried[0]["factors"] if tried else ())]
    return "Settings tried", ("condition", "eps", "worlds", "accuracy, 95%", "", *names), rows


def _comparison_table(report: Mapping[str, Any], group: Mapping[str, Any]) -> TextTable:
    ours = report["ours"]
    rows: list[tuple[str, ...]] = []
    mine = group["accuracy"][ours]
    own = (
        _marked(report, ours),
        f"{mine['worlds']}",
        _percent(mine["mean"]),
        "",
        "",
        "",
        "",
        _harmed(group, ours),
    )
    rows.append(own)
    for one in group["comparisons"]:
        rival, worst = one["rival"], one["worst_site"]
        accuracy = group["accuracy"].get(rival, {"mean": None})
        rows.append(
            (
                _marked(report, rival),
                str(one["worlds"]),
                _percent(accuracy["mean"]),
                _points(one),
                _p(one["p_holm"]),
                one["decision"],
                "" if worst is None else f"{100 * worst['difference']:+.1f}",
                _harmed(group, rival),
            )
        )
    if group["over_alone"] is not None and ALONE not in report["rivals"]:
        found, accuracy = group["over_alone"], _percent(group["accuracy"][ALONE]["mean"])
        rows.append((ALONE, str(found["worlds"]), accuracy, _points(found), "", "", "", ""))
    for name in report["not_private"]:
        if name in group["accuracy"] and name not in (ours, *report["rivals"]):
            bound = group["accuracy"][name]
            untested = ("",) * 5
            worlds, accuracy = f"{bound['worlds']}", _percent(bound["mean"])
            rows.append((_marked(report, name), worlds, accuracy, *untested))
    head = (
        "condition", "worlds", "accuracy", "behind by, 95%", "p", "decision", "worst", "harmed",
    )  # fmt: skip
    varied = point_text(tuple(group["factors"].items()))
    return f"{ours} at epsilon {_epsilon(group)}{', ' if varied else ''}{varied}", head, rows


def _marked(report: Mapping[str, Any], name: str) -> str:
    return f"{name} (not private)" if name in report["not_private"] else name


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
                "" if one["epsilon_spent"] is None else f"{one['epsilon_spent']:+z.2f}",
            )
        )
    head = ("part", "at epsilon", "worlds", "worth in points, 95%", "seconds", "epsilon")
    return title, head, rows


def _epsilon(found: Mapping[str, Any]) -> str:
    return "unbounded" if found["epsilon"] is None else f"{found['epsilon']:g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _p(found: float | None) -> str:
    if found is None:
        return ""
    return f"{found:.3f}" if found >= _LEAST_P else f"< {_LEAST_P}"


def _points(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return ""
    low, high = found["interval"]
    return f"{100 * found['mean']:+z.1f} [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def _harmed(group: Mapping[str, Any], name: str) -> str:
    found = group["harmed"].get(name)
    if found is None or found["mean"] is None:
        return ""
    low, high = found["interval"]
    return f"{found['mean']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
