"""A plot of the accuracies: one bar per condition with its interval, as SVG."""

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
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().decode("utf-8")
