"""Plots as inline SVG, drawn by matplotlib.

Plots are drawn in the colours of the light page; in the SVG each becomes its CSS variable, so one
drawing serves light and dark. No plot tells by colour alone: lines carry a marker shape of their
own, points a title with name and number. Every plot has a title and a description for
readers that do not see it. Nothing is loaded, and the same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from xml.etree import ElementTree

from cycler import cycler
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

LIGHT: Final[Mapping[str, str]] = {
    "paper": "#ffffff", "panel": "#f6f7f9", "ink": "#1b2430", "soft": "#5c6773",
    "rule": "#dde2e8", "alarm": "#b3261e", "series-0": "#0062b1", "series-1": "#c9470c",
    "series-2": "#007a56", "series-3": "#914a8e", "series-4": "#946800", "series-5": "#2f7fa6",
    "series-6": "#7a4a2b", "series-7": "#56606b", "series-8": "#b0124f", "series-9": "#5d7500",
}  # fmt: skip
DARK: Final[Mapping[str, str]] = {
    "paper": "#14181d", "panel": "#1d2329", "ink": "#e8ecf1", "soft": "#a3aeba",
    "rule": "#343c45", "alarm": "#ff8a80", "series-0": "#6cb4ff", "series-1": "#ff9a70",
    "series-2": "#46d3a3", "series-3": "#dc9dd9", "series-4": "#e9bb52", "series-5": "#86cfef",
    "series-6": "#cfa07e", "series-7": "#b1bac5", "series-8": "#ff8fb4", "series-9": "#b6cf4f",
}  # fmt: skip
_VARIABLES: Final = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_COLOUR: Final = re.compile("#[0-9a-f]{6}")
_DECIMALS: Final = re.compile(r"(\.\d\d)\d+")
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
SERIES: Final = tuple(colour for name, colour in LIGHT.items() if name.startswith("series"))
# Widths of a line plot in its own pixels: for a screen and for a telephone.
WIDE: Final = 760.0
NARROW: Final = 400.0

STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.labelcolor": LIGHT["soft"],
    # From the eleventh line on colours come again, dashed.
    "axes.prop_cycle": cycler(linestyle=["-", "--"])
    * (cycler(color=SERIES) + cycler(marker=list("os^Dv<>PX*"))),
    "font.size": 11,
    "grid.color": LIGHT["rule"],
    "legend.frameon": False,
    "lines.linewidth": 2.25,
    "lines.markersize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "lada",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line. `points` are (x, y, tooltip), x ascending."""

    name: str
    points: tuple[tuple[float, float, str], ...]


def line_plot(
    series: Sequence[Series],
    *,
    x: tuple[float, float],
    y_high: float,
    x_label: str,
    y_label: str,
    title: str,
    description: str,
    x_ticks: Mapping[float, str] | None = None,
    limits: Mapping[float, str] | None = None,
    stairs: bool = False,
    width: float = WIDE,
) -> Markup:
    """Lines with markers, and a legend above.

    Args: x: lowest and highest. x_ticks: texts by place; round numbers without. limits: names of
    levels drawn across the plot, as a budget's cap. stairs: draw a value as holding until the next
    point, for amounts that only jump. width: `WIDE` or `NARROW`; it is scaled to the page.
    """
    columns = 4 if width >= WIDE else 2
    height = 290.0 + 18 * -(-len(series) // columns)
    with rc_context(STYLE):
        figure, axes = empty_plot(width, height, grid="y", x_label=x_label, y_label=y_label)
        # A point outside would have no marker, and its tooltip would be another's.
        points = [point for line in series for point in line.points]
        places_seen = [*x, *(place for place, _, _ in points)]
        low, high = min(places_seen), max(places_seen)
        top = max([y_high, *(value for _, value, _ in points)])
        tooltips = {}
        for index, line in enumerate(series):
            if line.points:
                places, values, tooltips[f"line {index}"] = zip(*line.points, strict=True)
                marked = list(range(len(places)))
                if stairs:
                    places, values = (*places, high), (*values, values[-1])
                style = "steps-post" if stairs else "default"
                axes.plot(
                    places, values, label=line.name, drawstyle=style, markevery=marked,
                    gid=f"line {index}",
                )  # fmt: skip
        for value, name in (limits or {}).items():
            axes.axhline(value, color=LIGHT["alarm"], linestyle="--", linewidth=1.5)
            place = (low, value)
            axes.annotate(name, place, (6, 5), textcoords="offset points", color=LIGHT["alarm"])
        axes.set(xlim=(low, high), ylim=(0.0, top))
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks), list(x_ticks.values()))
        if tooltips:
            figure.legend(loc="outside upper left", ncols=columns)
        return inline_svg(figure, title=title, description=description, tooltips=tooltips)


def empty_plot(
    width: float, height: float, *, grid: Literal["x", "y"], x_label: str, y_label: str = ""
) -> tuple[Figure, Axes]:
    """An empty plot. Args: width, height: pixels. grid: the axis whose ticks have lines."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.grid(axis=grid)
    axes.tick_params(colors=LIGHT["soft"], length=0, pad=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def inline_svg(
    figure: Figure, *, title: str, description: str, tooltips: Mapping[str, Sequence[str]]
) -> Markup:
    """The drawing as an element of a page, with the page's font and colours.

    Ids and links go, for they would have to be unique on a page: a marker becomes its own shape.

    Args: tooltips: by the group id of a line, one a marker, or of a bar.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = ElementTree.fromstring(file.getvalue())  # noqa: S314 (our own)
    for element in svg.iter():
        element.tag, element.tail = element.tag.rpartition("}")[2], None
    shapes = {shape.get("id"): shape.get("d", "") for shape in svg.iterfind(".//defs/path")}
    for group in svg.iterfind(".//g[@id]"):
        tips = tooltips.get(group.get("id", ""), ())
        marks = [*group.iter("use")] or [*group.iter("path")]
        for mark, tip in zip(marks, tips, strict=bool(tips)):
            ElementTree.SubElement(mark, "title").text = tip
    for element in list(svg.iter()):
        for unused in (*element.findall("defs"), *element.findall("metadata")):
            element.remove(unused)
        found = element.attrib
        if element.tag == "use":
            element.tag, place = "path", f"translate({found.pop('x')} {found.pop('y')})"
            found |= {"d": shapes[found[_LINK][1:]], "transform": place}
        element.attrib = {
            name: _DECIMALS.sub(r"\1", found[name])
            for name in ("d", "transform", "x", "y")
            if name in found
        }
        if style := re.sub(r"font-family:[^;]*;? ?", "", found.get("style", "")):
            element.attrib["style"] = _COLOUR.sub(lambda hit: _VARIABLES[hit[0]], style)
    width, height = figure.get_size_inches() * 72
    svg.attrib = {"role": "img", "viewBox": f"0 0 {width:.0f} {height:.0f}", "width": "100%"}
    for index, (tag, told) in enumerate((("title", title), ("desc", description))):
        svg.insert(index, ElementTree.Element(tag))
        svg[index].text = told
    return Markup(ElementTree.tostring(svg, encoding="unicode"))  # noqa: S704 (escaped by it)
