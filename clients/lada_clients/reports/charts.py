"""Plots as inline SVG: pure functions from figures to text.

Colours are CSS variables of the page (`--series-0` to `--series-9`), so one drawing serves light
and dark. No plot tells by colour alone: lines carry their name and a marker shape of their own,
cells and bars carry numbers or a title. Every plot has a title and a description for readers that
do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

SERIES_COLOURS = 10
_LABEL_GAP = 15.0
_FONT = 12
# Widths of a line plot: for a screen and for a telephone.
WIDE = 760.0
NARROW = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line. `points` are (x, y, tooltip), x ascending."""

    name: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its range, and its ticks as (value, text)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str

    def position(self, value: float, start: float, end: float) -> float:
        """Map a value of the axis to [start, end]."""
        span = self.high - self.low or 1.0
        return start + (value - self.low) / span * (end - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A level drawn across the plot, as a budget's cap."""

    value: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One part of a stacked bar. `series` is the index of its colour."""

    series: int
    value: float
    tooltip: str


def axis(high: float, *, low: float = 0.0, label: str, text: Callable[[float], str]) -> Axis:
    """An axis from `low` to at least `high` with about six round ticks."""
    step = _round_step((high - low) / 5 if high > low else 1.0)
    first, last = floor(low / step), ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple((number * step, text(number * step)) for number in range(first, last + 1))
    return Axis(low=first * step, high=last * step, ticks=ticks, label=label)


def line_plot(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    title: str,
    description: str,
    stairs: bool = False,
    limits: Sequence[Limit] = (),
    width: float = WIDE,
) -> str:
    """Lines with markers and their names at the right end.

    Args: stairs: draw a value as holding until the next point, for amounts that only jump.
    width: in the drawing's own pixels, `WIDE` or `NARROW`; it is scaled to the page.
    """
    height = 320.0
    room = 130.0 if width >= WIDE else 92.0
    left, right, top, bottom = 58.0, width - room, 16.0, height - 46.0
    parts = [_grid(x, y, left, right, top, bottom)]
    for limit in limits:
        level = y.position(limit.value, bottom, top)
        parts.append(
            f'<line class="limit" x1="{left:.1f}" x2="{right:.1f}" y1="{level:.1f}" '
            f'y2="{level:.1f}"/><text class="limit-text" x="{left + 6:.1f}" y="{level - 6:.1f}">'
            f"{escape(limit.label)}</text>"
        )
    ends: list[tuple[float, int, str]] = []
    for index, one in enumerate(series):
        if not one.points:
            continue
        spots = [
            (x.position(a, left, right), y.position(b, bottom, top), tip)
            for a, b, tip in one.points
        ]
        parts.append(_line(spots, index=index, stairs=stairs, until=right if stairs else None))
        ends.append((spots[-1][1], index, one.name))
    parts += _end_labels(ends, x=right + 10, top=top, bottom=bottom)
    return _svg(parts, width=width, height=height, title=title, description=description)


def heat_map(
    values: Sequence[Sequence[float]],
    *,
    tooltips: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    highest: float,
    title: str,
    description: str,
) -> str:
    """A grid of numbers, darker where larger. `highest` is the value of the full colour."""
    cell_width, cell_height, left, top = 28.0, 24.0, 52.0, 22.0
    width = left + cell_width * len(columns) + 6
    height = top + cell_height * len(rows) + 24
    parts = [
        f'<text class="tick" x="{left + cell_width * (index + 0.5):.1f}" y="{top - 7:.1f}" '
        f'text-anchor="middle">{escape(name)}</text>'
        for index, name in enumerate(columns)
    ]
    for row, name in enumerate(rows):
        y = top + cell_height * row
        parts.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{y + cell_height / 2 + 4:.1f}" '
            f'text-anchor="end">{escape(name)}</text>'
        )
        for column, value in enumerate(values[row]):
            share = min(1.0, value / highest) if highest > 0 else 0.0
            x = left + cell_width * column
            parts.append(_cell(x, y, cell_width, cell_height, value, share, tooltips[row][column]))
    parts.append(
        f'<text class="axis" x="{left + cell_width * len(columns) / 2:.1f}" '
        f'y="{height - 7:.1f}" text-anchor="middle">{escape(column_label)}</text>'
        f'<text class="axis" transform="translate(11 {top + cell_height * len(rows) / 2:.1f}) '
        f'rotate(-90)" text-anchor="middle">{escape(row_label)}</text>'
    )
    return _svg(parts, width=width, height=height, title=title, description=description, fixed=True)


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[Bar]]],
    *,
    text: Callable[[float], str],
    label: str,
    title: str,
    description: str,
) -> str:
    """Horizontal stacked bars, one a row, with the row's total at its end."""
    bar, gap, left, top = 20.0, 10.0, 110.0, 8.0
    width, right = 760.0, 670.0
    height = top + (bar + gap) * len(rows) + 42
    bottom = top + (bar + gap) * len(rows)
    totals = [sum(one.value for one in bars) for _, bars in rows]
    x = axis(max(totals, default=1.0) or 1.0, label=label, text=text)
    parts = [
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<text class="tick" x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">'
        f"{escape(tick)}</text>"
        for value, tick in x.ticks
        for at in (x.position(value, left, right),)
    ]
    for index, (name, bars) in enumerate(rows):
        y = top + gap / 2 + (bar + gap) * index
        parts.append(
            f'<text class="name" x="{left - 10:.1f}" y="{y + bar / 2 + 4:.1f}" '
            f'text-anchor="end">{escape(name)}</text>'
        )
        at = left
        for one in bars:
            end = at + (x.position(one.value, left, right) - left)
            # A hair of space between neighbours, but never a part that cannot be seen.
            parts.append(
                f'<rect class="fill-{one.series % SERIES_COLOURS}" x="{at:.1f}" y="{y:.1f}" '
                f'width="{max(end - at - 0.8, 0.4):.1f}" height="{bar:.1f}">'
                f"<title>{escape(one.tooltip)}</title></rect>"
            )
            at = end
        parts.append(
            f'<text class="value" x="{at + 6:.1f}" y="{y + bar / 2 + 4:.1f}">'
            f"{escape(text(totals[index]))}</text>"
        )
    parts.append(
        f'<text class="axis" x="{(left + right) / 2:.1f}" y="{height - 6:.1f}" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return _svg(parts, width=width, height=height, title=title, description=description)


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    return 10.0 * power


def _grid(x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> str:
    lines = [
        f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" x="{left - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">'
        f"{escape(text)}</text>"
        for value, text in y.ticks
        for at in (y.position(value, bottom, top),)
    ]
    lines += [
        f'<text class="tick" x="{x.position(value, left, right):.1f}" y="{bottom + 18:.1f}" '
        f'text-anchor="middle">{escape(text)}</text>'
        for value, text in x.ticks
    ]
    lines.append(
        f'<text class="axis" x="{(left + right) / 2:.1f}" y="{bottom + 38:.1f}" '
        f'text-anchor="middle">{escape(x.label)}</text>'
        f'<text class="axis" transform="translate(13 {(top + bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(lines)


def _line(
    spots: Sequence[tuple[float, float, str]], *, index: int, stairs: bool, until: float | None
) -> str:
    colour = index % SERIES_COLOURS
    path = f"M{spots[0][0]:.1f} {spots[0][1]:.1f}"
    for a, b, _ in spots[1:]:
        path += f"H{a:.1f}V{b:.1f}" if stairs else f"L{a:.1f} {b:.1f}"
    if until is not None:
        path += f"H{until:.1f}"
    marks = "".join(
        f'<g transform="translate({a:.1f} {b:.1f})"><title>{escape(tip)}</title>'
        f"{_marker(index)}</g>"
        for a, b, tip in spots
    )
    # From the eleventh line on colours come again, dashed.
    dash = ' stroke-dasharray="6 4"' if index >= SERIES_COLOURS else ""
    return (
        f'<path class="line stroke-{colour}" d="{path}"{dash}/><g class="fill-{colour}">{marks}</g>'
    )


def _marker(index: int) -> str:
    shapes = (
        '<circle r="4.5"/>',
        '<rect x="-4" y="-4" width="8" height="8"/>',
        '<path d="M0 -5.5L5 4H-5Z"/>',
        '<path d="M0 -6L6 0L0 6L-6 0Z"/>',
        '<path d="M0 5.5L5 -4H-5Z"/>',
        '<path d="M-5 -2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z"/>',
        '<rect x="-5.5" y="-3" width="11" height="6"/>',
        '<rect x="-3" y="-5.5" width="6" height="11"/>',
        '<path d="M-5 -5H5L-5 5H5Z"/>',
        '<path d="M-5 -5V5L5 -5V5Z"/>',
    )
    return shapes[index % len(shapes)]


def _end_labels(
    ends: Sequence[tuple[float, int, str]], *, x: float, top: float, bottom: float
) -> list[str]:
    """Names beside the lines' ends, pushed apart so that none covers another."""
    placed: list[tuple[float, int, str]] = []
    for level, index, name in sorted(ends):
        floor_level = placed[-1][0] + _LABEL_GAP if placed else top
        placed.append((max(level, floor_level), index, name))
    # What was pushed below the plot pushes the others back up.
    ceiling = bottom + 4
    settled: list[tuple[float, int, str]] = []
    for level, index, name in reversed(placed):
        settled.append((min(level, ceiling), index, name))
        ceiling = settled[-1][0] - _LABEL_GAP
    return [
        f'<text class="name fill-{index % SERIES_COLOURS}" x="{x:.1f}" y="{level + 4:.1f}">'
        f"{escape(name)}</text>"
        for level, index, name in settled
    ]


def _cell(
    x: float, y: float, width: float, height: float, value: float, share: float, tooltip: str
) -> str:
    on_dark = " on-dark" if share > 0.5 else ""
    number = f"{value:g}" if value else ""
    return (
        f"<g><title>{escape(tooltip)}</title>"
        f'<rect class="cell" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
        f'height="{height - 2:.1f}" rx="2" fill-opacity="{0.06 + 0.94 * share:.2f}"/>'
        f'<text class="cell-text{on_dark}" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" '
        f'text-anchor="middle">{number}</text></g>'
    )


def _svg(
    parts: Sequence[str],
    *,
    width: float,
    height: float,
    title: str,
    description: str,
    fixed: bool = False,
) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}"' if fixed else 'width="100%"'
    return (
        f'<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}" {size} font-size="{_FONT}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
