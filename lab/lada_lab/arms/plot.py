"""Plots as SVG: accuracies as bars, and differences against rivals, each with its interval."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_OURS, _OTHER, _INK, _RULE = "#1f6f8b", "#b7c4cc", "#1d2529", "#e3e8eb"
# The same figures give the same bytes.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lada", "text.parse_math": False}


def accuracy_plot(accuracy: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """An SVG document; conditions in the order given.

    Args: accuracy: of `results.tabulate`, mean and interval in [0, 1].
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 1.1 + 0.36 * len(accuracy)), layout="constrained")
        axes = figure.subplots()
        for row, (name, found) in enumerate(accuracy.items()):
            end = mean = float(found["mean"])
            axes.barh(
                row,
                mean,
                height=0.62,
                color=_OURS if name.startswith("lada") else _OTHER,
                gid=f"condition {name}",
            )
            if found["interval"]:
                ends = [min(max(limit, 0.0), 1.0) for limit in found["interval"]]
                axes.plot(ends, [row, row], color=_INK, linewidth=1, marker="|", clip_on=False)
                end = max(end, *ends)
            axes.annotate(
                f"{mean:.1%}", (end, row), (7, 0), textcoords="offset points", va="center"
            )
        axes.set(xlim=(0.0, 1.0), ylim=(len(accuracy) - 0.5, -0.5))
        axes.set_yticks(range(len(accuracy)), list(accuracy))
        axes.set_title(title, loc="left", weight="bold")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=_RULE)
        return _svg(figure)


def difference_plot(report: Mapping[str, Any]) -> str:
    """An SVG document: one line per group and rival, with the limits of the two decisions.

    Args: report: of `analysis_report.analyse`.
    """
    rows = [
        (f"{one['rival']}{_group_text(group, report)}", one)
        for group in report["groups"]
        for one in group["comparisons"]
        if one["mean"] is not None
    ]
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 1.6 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for limit, style in ((0.0, "-"), (report["margin"], "--"), (report["harm"], ":")):
            axes.axvline(100 * limit, color=_OTHER, linestyle=style, linewidth=1)
        for row, (name, one) in enumerate(rows):
            ends = [100 * limit for limit in one["interval"]]
            axes.plot(ends, [row, row], color=_INK, linewidth=1, marker="|", gid=f"against {name}")
            axes.plot(100 * one["mean"], row, color=_OURS, marker="o", linestyle="none")
            axes.annotate(
                f"{100 * one['mean']:+.1f} {one['decision']}",
                (max(ends), row),
                (7, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set(ylim=(len(rows) - 0.5, -0.5))
        axes.margins(x=0.2)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_title(
            f"{report['ours']} ahead of, in points (dashed: superior, dotted: harm)",
            loc="left",
            weight="bold",
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=_RULE)
        return _svg(figure)


def _group_text(group: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What tells a group from the others of its report."""
    if len(report["groups"]) == 1:
        return ""
    named = {"epsilon": group["epsilon"], **group["factors"]}
    return " at " + ", ".join(f"{name}={level}" for name, level in named.items())


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().decode("utf-8")
