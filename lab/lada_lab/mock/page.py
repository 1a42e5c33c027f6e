"""`report.html`: one self-contained page made from a `Report`. No script, no outside resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from lada_clients.reports import charts
from lada_clients.reports.web_page import render
from lada_lab.mock.bars import Bar, stacked_bars
from lada_lab.mock.progress import bytes_text
from lada_lab.mock.report import Cell, Report, StepCost

# The steps of a round in their order; colours follow it.
_STEPS = (
    *("plan", "statistics", "opening", "filter", "scoring", "demand", "paths", "distillation"),
    *("evaluation", "advantage", "uplink", "close"),
)


def report_page(report: Report) -> str:
    """The whole page as text."""
    named = {cost.step for cost in report.steps}
    steps = [step for step in _STEPS if step in named] + sorted(named - set(_STEPS))
    # A run that failed early has measured nothing; the column of the start stays.
    most = max([1, *(len(site.accuracy) for site in report.sites)])
    moments = ["start", *(f"after round {number}" for number in range(1, most))]
    picks = [
        pick for site in report.sites for allocation in site.allocation for pick in allocation.cells
    ]
    return render(
        __name__,
        "page.html.j2",
        report=report,
        accuracy=_accuracy(report, moments),
        bytes_text=bytes_text,
        cell_text=_cell_text,
        prose=_prose,
        number_of_colours=len(charts.SERIES),
        duration=_duration(report.run.wall_s),
        epsilon=_epsilon(report),
        most_picked=max((cell.picked for cell in picks), default=0),
        moments=moments,
        seconds=stacked_bars(
            _bars(report, steps, lambda cost: cost.seconds, lambda value: f"{value:.1f} s"),
            text=lambda value: f"{value:.{0 if value == int(value) else 1}f} s",
            label="seconds of work",
            title="Seconds per party and step",
            description="One bar a party, one part a step.",
        ),
        sent=stacked_bars(
            _bars(report, steps, lambda cost: float(cost.bytes_up), bytes_text),
            text=bytes_text,
            label="bytes sent",
            title="Bytes sent per party and step",
            description="One bar a party, one part a step.",
        ),
        steps=steps,
    )


def _accuracy(report: Report, moments: Sequence[str]) -> Markup:
    series = []
    for site in report.sites:
        points = []
        for index, point in enumerate(site.accuracy):
            when = "start" if point.when == "before" else f"after round {point.round + 1}"
            tip = f"{site.party}, {when}: {point.accuracy:.1%} of {point.n} held-out records"
            points.append((float(index), 100 * point.accuracy, tip))
        series.append(charts.Series(name=site.party, points=tuple(points)))
    measured = len({point.round for site in report.sites for point in site.accuracy})
    return charts.line_plot(
        series,
        x=(-0.15, max(len(moments) - 1, 1) + 0.15),
        y_high=100.0,
        x_label="",
        y_label="held-out accuracy, %",
        title="Held-out accuracy of every site",
        description=f"One line a site, before the first and after each of {measured} rounds.",
        x_ticks=dict(enumerate(moments)),
    )


def _epsilon(report: Report) -> Markup:
    cap = report.study.epsilon_cap
    series = [
        charts.Series(
            name=site.party,
            points=tuple(
                (
                    point.elapsed_s,
                    point.epsilon,
                    f"{site.party}, round {point.round + 1}, {point.step}: {point.epsilon:.3f} "
                    "spent",
                )
                for point in site.epsilon
            ),
        )
        for site in report.sites
    ]
    ends = [point.elapsed_s for site in report.sites for point in site.epsilon]
    return charts.line_plot(
        series,
        x=(0.0, max([*ends, report.run.wall_s])),
        y_high=1.05 * max([cap, *(site.epsilon_spent for site in report.sites)]),
        x_label="seconds since the start",
        y_label="epsilon",
        title="Epsilon spent over time",
        description="One staircase a site; the dashed line is the cap that no site can pass.",
        stairs=True,
        limits={cap: f"cap {cap:g}"},
    )


def _bars(
    report: Report,
    steps: Sequence[str],
    value_of: Callable[[StepCost], float],
    text: Callable[[float], str],
) -> dict[str, list[Bar]]:
    rows: dict[str, list[Bar]] = {party: [] for party in report.totals}
    for party, bars in rows.items():
        for index, step in enumerate(steps):
            mine = (cost for cost in report.steps if (cost.party, cost.step) == (party, step))
            if value := sum(map(value_of, mine)):
                tip = f"{party}, {step}: {text(value)}"
                bars.append(Bar(series=index, value=value, tooltip=tip))
    return rows


def _cell_text(cell: Cell) -> str:
    numbers = {
        name: value
        for name in ("utility", "mass", "band", "exploitation", "exploration", "agreement")
        if (value := getattr(cell, name)) is not None
    }
    return (
        f"cluster {cell.cluster}, difficulty {cell.difficulty}: {cell.picked} picked, "
        f"{cell.trained} trained on; "
        + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        + (", no reward yet" if cell.reward is None else f", reward {cell.reward:.3f}")
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _prose(text: str) -> Markup:
    """Escaped text in which `words` in backquotes are code."""
    parts = escape(text).split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )
