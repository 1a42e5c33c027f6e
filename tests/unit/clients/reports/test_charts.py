"""Drawings are parts of a page: the same bytes again, readable by eye, ear and in the dark."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from lada_clients.reports.charts import (
    DARK,
    LIGHT,
    NARROW,
    SERIES,
    WIDE,
    Series,
    line_plot,
)


def lines(count: int = 2, *, width: float = WIDE, stairs: bool = True) -> str:
    return line_plot(
        [
            Series(
                name=f"site-{number}",
                points=tuple((float(x), x + number / 10, f"site-{number} <{x}>") for x in range(3)),
            )
            for number in range(count)
        ],
        x=(0.0, 4.0),
        y_high=5.0,
        x_label="seconds",
        y_label="epsilon $",
        title="Spent & left",
        description="Stairs.",
        limits={4.0: "cap 4"},
        stairs=stairs,
        width=width,
    )


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter("text")]  # noqa: S314


def test_a_drawing_has_the_same_bytes_again_and_loads_nothing() -> None:
    svg = lines()
    assert svg == lines()
    assert re.search(r"://|url\(|href|<use|<script|font-family| id=", svg) is None


def test_every_colour_is_a_variable_of_the_page() -> None:
    svg = lines(12)
    assert re.search(r"#[0-9a-fA-F]{3,6}|rgb\(", svg) is None
    assert svg.count("<text") == len(re.findall(r"<text[^>]*fill: var\(", svg))
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", svg))
    assert used <= set(LIGHT) == set(DARK)
    assert {f"series-{number}" for number in range(len(SERIES))} <= used


def test_a_drawing_is_named_and_described_for_those_who_do_not_see_it() -> None:
    svg = ElementTree.fromstring(lines())  # noqa: S314
    assert svg.get("role") == "img"
    assert [(one.tag, one.text) for one in svg[:2]] == [
        ("title", "Spent & left"),
        ("desc", "Stairs."),
    ]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("stairs", [True, False])
def test_every_point_has_its_tooltip_and_every_line_its_name(width: float, stairs: bool) -> None:
    svg = lines(width=width, stairs=stairs)
    tips = [one.text for one in ElementTree.fromstring(svg).iter("title")]  # noqa: S314
    assert tips[1:] == [f"site-{number} <{x}>" for number in range(2) for x in range(3)]
    assert {"site-0", "site-1", "cap 4", "seconds", "epsilon $"} <= set(texts(svg))


def test_many_lines_differ_by_marker_and_dash_where_colours_come_again() -> None:
    drawn = ElementTree.fromstring(lines(11))  # noqa: S314
    marks = [
        (mark.get("d"), "stroke-dasharray" in (line.get("style") or ""))
        for group in drawn.iter("g")
        for line in group.findall("path")
        for mark in group.findall("g/path")[:1]
        if mark.find("title") is not None
    ]
    assert len(set(marks)) == len(marks) == 11


def test_a_point_outside_of_the_plot_widens_it() -> None:
    far = Series(name="far", points=((-3.0, 1.0, "before"), (9.0, 7.0, "after")))
    svg = line_plot(
        [far], x=(0.0, 4.0), y_high=5.0, x_label="", y_label="", title="", description=""
    )
    assert "<title>before</title>" in svg
    assert "<title>after</title>" in svg


def test_a_plot_without_lines_is_an_empty_plot() -> None:
    assert texts(lines(0))
