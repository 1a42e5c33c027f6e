"""`report.html`: one self-contained page made from a `Report`. No script, no outside resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from lada_clients.reports import charts
from lada_clients.reports.web_page import html_page, plain_number, prose, table, tiles
from lada_lab.mock.progress import bytes_text
from lada_lab.mock.report import Allocation, Report, SiteReport, StepCost

# The steps of a round in their order; colours follow it.
_STEPS = (
    "plan",
    "statistics",
    "opening",
    "filter",
    "scoring",
    "demand",
    "paths",
    "distillation",
    "evaluation",
    "advantage",
    "uplink",
    "close",
)


def report_page(report: Report) -> str:
    """The whole page as text."""
    run = report.run
    sections = (
        _head(report),
        _tiles(report),
        _accuracy(report),
        _epsilon(report),
        _allocation(report),
        _llm_transfer(report),
        _cost(report),
        _study(report),
    )
    return html_page(f"LaDa run, {run.preset}, {run.started}", sections)


def _head(report: Report) -> str:
    run = report.run
    failure = ""
    if run.outcome == "failed":
        failure = f'<p class="failed"><strong>The run failed.</strong> {escape(run.failure)}</p>'
    return (
        f"<h1>{escape(report.study.title)}</h1>"
        f'<p class="lead">Mock federation on one machine, preset {escape(run.preset)}, data seed '
        f"{run.seed}, started {escape(run.started)}. {len(report.sites)} sites, {run.rounds} "
        f"rounds, SLM {escape(report.study.slm)}, LLM {escape(report.study.llm)}.</p>{failure}"
    )


def _tiles(report: Report) -> str:
    gains = [site.gain for site in report.sites if site.gain is not None]
    spent = max((site.epsilon_spent for site in report.sites), default=0.0)
    traffic = sum(total.bytes_up for total in report.totals.values())
    memory = report.run.peak_memory_bytes
    named = [
        ("Wall-clock time", _duration(report.run.wall_s)),
        ("Smallest gain in accuracy", f"{100 * min(gains):+.1f} points" if gains else "-"),
        ("Largest epsilon spent", f"{spent:.2f} of {report.study.epsilon_cap:g}"),
        ("Target delta", plain_number(report.study.target_delta)),
        ("Sent by all parties", bytes_text(traffic)),
    ]
    if memory is not None:
        named.append(("Peak memory, all processes", bytes_text(memory)))
    return tiles(named)


def _accuracy(report: Report) -> str:
    rounds = sorted({point.round for site in report.sites for point in site.accuracy})
    series = [
        charts.Series(
            name=site.party,
            points=tuple(
                (
                    float(index),
                    100 * point.accuracy,
                    f"{site.party}, {_when(point.when, point.round)}: {point.accuracy:.1%} of "
                    f"{point.n} held-out records",
                )
                for index, point in enumerate(site.accuracy)
            ),
        )
        for site in report.sites
    ]
    # A run that failed early has measured nothing; the column of the start stays.
    most = max([1, *(len(site.accuracy) for site in report.sites)])
    ticks = ((0.0, "start"), *((float(k), f"after round {k}") for k in range(1, most)))
    plot = charts.line_plot(
        series,
        x=charts.Axis(low=-0.15, high=max(most - 1, 1) + 0.15, ticks=ticks, label=""),
        y=charts.axis(100.0, label="held-out accuracy, %", text=lambda value: f"{value:.0f}"),
        title="Held-out accuracy of every site",
        description=f"One line a site, before the first and after each of {len(rounds)} rounds.",
    )
    header = ["site", "records", "units", "held out", "start"]
    header += [f"after round {k}" for k in range(1, most)] + ["gain, points"]
    rows = [_accuracy_row(site, most) for site in report.sites]
    return (
        "<h2>Accuracy on each site's own held-out records</h2>"
        f'<p class="note">{escape(report.notes[0])}</p>{plot}{table(header, rows)}'
    )


def _accuracy_row(site: SiteReport, most: int) -> list[str]:
    values = [f"{point.accuracy:.1%}" for point in site.accuracy]
    values += [""] * (most - len(values))
    gain = "" if site.gain is None else f"{100 * site.gain:+.1f}"
    return [
        site.party,
        str(site.records),
        str(site.units),
        str(site.held_out),
        *values,
        gain,
    ]


def _epsilon(report: Report) -> str:
    cap = report.study.epsilon_cap
    highest = max((site.epsilon_spent for site in report.sites), default=0.0)
    end = max(
        [point.elapsed_s for site in report.sites for point in site.epsilon] + [report.run.wall_s]
    )
    series = [
        charts.Series(
            name=site.party,
            points=tuple(
                (
                    point.elapsed_s,
                    point.epsilon,
                    f"{site.party}, round {point.round + 1}, {point.step}: "
                    f"{point.epsilon:.3f} spent",
                )
                for point in site.epsilon
            ),
        )
        for site in report.sites
    ]
    plot = charts.line_plot(
        series,
        x=charts.axis(end, label="seconds since the start", text=lambda value: f"{value:g}"),
        y=charts.axis(max(cap, highest) * 1.05, label="epsilon", text=lambda value: f"{value:g}"),
        title="Epsilon spent over time",
        description="One staircase a site; the dashed line is the cap that no site can pass.",
        stairs=True,
        limits=[charts.Limit(value=cap, label=f"cap {cap:g}")],
    )
    return (
        "<h2>Privacy budget</h2>"
        f'<p class="note">Privacy unit: one {escape(report.study.unit)}, added or removed; delta '
        f"{plain_number(report.study.target_delta)}. Every site has a ledger and a budget of its "
        f"own. {prose(report.notes[2])}</p>{plot}"
    )


def _allocation(report: Report) -> str:
    highest = max(
        (cell.picked for site in report.sites for one in site.allocation for cell in one.cells),
        default=0,
    )
    blocks = []
    for site in report.sites:
        if site.allocation:
            maps = "".join(_heat_map(site, one, highest) for one in site.allocation)
            blocks.append(f'<h3>{escape(site.party)}</h3><div class="maps">{maps}</div>')
    body = "".join(blocks) or "<p>No site has picked a sample.</p>"
    return (
        "<h2>What each site picked from the pool</h2>"
        '<p class="note">Samples picked per cell: public cluster of the question by difficulty '
        f"for the LLM. {escape(report.notes[1])}</p>{body}"
    )


def _heat_map(site: SiteReport, allocation: Allocation, highest: int) -> str:
    clusters = sorted({cell.cluster for cell in allocation.cells})
    bins = sorted({cell.difficulty for cell in allocation.cells})
    cells = {(cell.cluster, cell.difficulty): cell for cell in allocation.cells}
    values: list[list[float]] = []
    tips: list[list[str]] = []
    for difficulty in bins:
        row = [cells.get((cluster, difficulty)) for cluster in clusters]
        values.append([float(cell.picked) if cell else 0.0 for cell in row])
        tips.append(
            [
                "no such cell"
                if cell is None
                else f"cluster {cell.cluster}, difficulty {cell.difficulty}: {cell.picked} picked, "
                f"{cell.trained} trained on; "
                f"utility {cell.utility:.3f}, mass {cell.mass:.3f}, band {cell.band:.3f}, "
                f"exploitation {cell.exploitation:.3f}, exploration {cell.exploration:.3f}, "
                + ("" if cell.agreement is None else f"agreement {cell.agreement:.3f}, ")
                + ("no reward yet" if cell.reward is None else f"reward {cell.reward:.3f}")
                for cell in row
            ]
        )
    number = allocation.round + 1
    drawing = charts.heat_map(
        values,
        tooltips=tips,
        rows=[str(one) for one in bins],
        columns=[str(one) for one in clusters],
        row_label="difficulty",
        column_label="cluster",
        highest=float(highest),
        title=f"{site.party}, round {number}: samples picked per cell",
        description=f"{allocation.picked} samples over {len(allocation.cells)} cells.",
    )
    return (
        f"<figure>{drawing}<figcaption>Round {number}: {allocation.picked} samples</figcaption>"
        "</figure>"
    )


def _llm_transfer(report: Report) -> str:
    if not report.uplink:
        return ""
    rows = [
        [
            str(one.round + 1),
            str(one.asked),
            str(one.received),
            str(one.used),
            f"{one.right_before} to {one.right_after} of {one.holdout}",
            f"{one.certainty_before:.3f} to {one.certainty_after:.3f}",
            "kept" if one.accepted else "dropped",
        ]
        for one in report.uplink
    ]
    header = ["round", "samples asked", "paths sent", "trained on", "right", "certainty", "update"]
    return (
        "<h2>What the LLM learned from the sites</h2>"
        '<p class="note">Sites answer with what their released models write on public questions, '
        "so this costs no privacy. An update is kept only where it does better on public "
        f"questions that the LLM is never trained on.</p>{table(header, rows)}"
    )


def _cost(report: Report) -> str:
    named = {one.step for one in report.steps}
    steps = [one for one in _STEPS if one in named] + sorted(named - set(_STEPS))
    seconds = charts.stacked_bars(
        _bars(report, steps, lambda one: one.seconds, lambda value: f"{value:.1f} s"),
        text=lambda value: f"{value:g} s" if value == int(value) else f"{value:.1f} s",
        label="seconds of work",
        title="Seconds per party and step",
        description="One bar a party, one part a step.",
    )
    sent = charts.stacked_bars(
        _bars(report, steps, lambda one: float(one.bytes_up), bytes_text),
        text=bytes_text,
        label="bytes sent",
        title="Bytes sent per party and step",
        description="One bar a party, one part a step.",
    )
    key = "".join(
        f'<li><i class="back-{index % charts.SERIES_COLOURS}"></i>{escape(step)}</li>'
        for index, step in enumerate(steps)
    )
    rows = [
        [
            one.party,
            str(one.round + 1),
            one.step,
            f"{one.seconds:.2f}",
            bytes_text(one.bytes_up),
            bytes_text(one.bytes_down),
        ]
        for one in report.steps
    ]
    header = ["party", "round", "step", "seconds", "sent", "received"]
    return (
        f'<h2>Time and traffic</h2><p class="note">{escape(report.notes[3])}</p>'
        f'<ul class="key">{key}</ul>{seconds}{sent}'
        f"<details><summary>Every step of every party</summary>{table(header, rows)}</details>"
    )


def _bars(
    report: Report,
    steps: Sequence[str],
    value_of: Callable[[StepCost], float],
    text: Callable[[float], str],
) -> list[tuple[str, list[charts.Bar]]]:
    rows = []
    for party in report.totals:
        mine = [one for one in report.steps if one.party == party]
        bars = []
        for index, step in enumerate(steps):
            value = sum(value_of(one) for one in mine if one.step == step)
            if value > 0:
                tip = f"{party}, {step}: {text(value)}"
                bars.append(charts.Bar(series=index, value=value, tooltip=tip))
        rows.append((party, bars))
    return rows


def _study(report: Report) -> str:
    study, run = report.study, report.run
    rows = [
        ["Study", study.study_id],
        ["Embedder", study.embedder],
        ["Pool", f"{study.pool_size} samples, gradients {study.pool_gradients}"],
        ["Cells", f"{study.clusters} clusters x {study.difficulty_bins} difficulty bins"],
        ["Allocation", study.strategy],
        ["Quota per site and round", str(study.quota)],
        ["Machine", f"{run.cpus} cores, {run.platform}, Python {run.python}"],
        ["Software", f"lada-secure {run.software_version}"],
    ]
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<h2>Terms of the study</h2><div class="scroll"><table>{body}</table></div>'


def _when(when: str, round_id: int) -> str:
    return "start" if when == "before" else f"after round {round_id + 1}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
