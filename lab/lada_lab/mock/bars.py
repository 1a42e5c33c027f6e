"""Stacked bars in the look of the product's pages: what each step of a run has cost a party."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter

from lada_clients.reports.charts import LIGHT, SERIES, STYLE, WIDE, empty_plot, inline_svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One part of a stacked bar. `series` is the index of its colour."""

    series: int
    value: float
    tooltip: str


def stacked_bars(
    rows: Mapping[str, Sequence[Bar]],
    *,
    text: Callable[[float], str],
    label: str,
    title: str,
    description: str,
) -> Markup:
    """Horizontal stacked bars, one a row, with the row's total at its end."""
    with rc_context(STYLE):
        figure, axes = empty_plot(WIDE, 30.0 * len(rows) + 50, grid="x", x_label=label)
        tooltips = {}
        for row, bars in enumerate(rows.values()):
            end = 0.0
            for bar in bars:
                colour, group = SERIES[bar.series % len(SERIES)], f"bar {row} {bar.series}"
                axes.barh(row, bar.value, left=end, height=0.66, color=colour, gid=group)
                tooltips[group] = (bar.tooltip,)
                end += bar.value
            axes.annotate(text(end), (end, row), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), list(rows), color=LIGHT["ink"])
        axes.margins(x=0.12)
        axes.set(xlim=(0.0, None), ylim=(len(rows) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
        return inline_svg(figure, title=title, description=description, tooltips=tooltips)
