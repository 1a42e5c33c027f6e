"""Stacked bars are parts of a page, as the product's line plots are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lada_clients.reports.charts import LIGHT, SERIES
from lada_lab.mock.bars import Bar, stacked_bars


def bars(count: int = 2) -> str:
    parts = [Bar(series=index, value=1.5, tooltip=f"step {index}") for index in range(count)]
    return stacked_bars(
        {"site-a": parts, "idle": []},
        text=lambda value: f"{value:g} s",
        label="seconds",
        title="Seconds",
        description="Bars.",
    )


def test_a_drawing_has_the_same_bytes_again_and_loads_nothing() -> None:
    svg = bars()
    assert svg == bars()
    assert re.search(r"://|url\(|href|<use|<script|font-family| id=", svg) is None


def test_every_colour_is_a_variable_of_the_page() -> None:
    svg = bars(12)
    assert re.search(r"#[0-9a-fA-F]{3,6}|rgb\(", svg) is None
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", svg))
    assert used <= set(LIGHT)
    assert {f"series-{number}" for number in range(len(SERIES))} <= used


def test_a_bar_says_its_total_and_every_part_its_name() -> None:
    svg = bars(3)
    tips = [one.text for one in ElementTree.fromstring(svg).iter("title")]  # noqa: S314
    assert tips[1:] == ["step 0", "step 1", "step 2"]
    texts = {one.text for one in ElementTree.fromstring(svg).iter("text")}  # noqa: S314
    assert {"site-a", "idle", "4.5 s", "0 s", "seconds"} <= texts
