"""A plot of the accuracies: one bar per condition with its interval, as SVG without a library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 210, 60, 26, 46
_OURS, _OTHER, _INK = "#1f6f8b", "#b7c4cc", "#1d2529"


def accuracy_plot(accuracy: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """An SVG document; conditions in the order given.

    Args: accuracy: of `results.tabulate`, mean and interval in [0, 1].
    """
    span = _WIDTH - _LEFT - _RIGHT
    height = _TOP + _ROW * len(accuracy) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    bottom = _TOP + _ROW * len(accuracy)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + span * share
        lines.append(
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e3e8eb"/>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share:.0%}</text>'
        )
    for row, (name, found) in enumerate(accuracy.items()):
        y = _TOP + _ROW * row
        colour = _OURS if name.startswith("lada") else _OTHER
        width = span * float(found["mean"])
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{y + 5}" width="{width:.1f}" height="16" fill="{colour}"/>'
        )
        end = width
        if found["interval"]:
            low, high = (span * min(max(one, 0.0), 1.0) for one in found["interval"])
            end = max(end, high)
            lines.append(
                f'<path d="M{_LEFT + low:.1f} {y + 13}H{_LEFT + high:.1f}M{_LEFT + low:.1f} '
                f'{y + 9}v8M{_LEFT + high:.1f} {y + 9}v8" stroke="{_INK}" fill="none"/>'
            )
        lines.append(f'<text x="{_LEFT + end + 6:.1f}" y="{y + 17}">{found["mean"]:.1%}</text>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"
