"""`report.html`: one self-contained page made from a `Report`. No script, no outside resource."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from lada_clients.mock import charts
from lada_clients.mock.progress import bytes_text
from lada_clients.mock.report import Allocation, Report, SiteReport, StepCost

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
    "close",
)

_STYLE = """
:root{--paper:#fff;--panel:#f6f7f9;--ink:#1b2430;--soft:#5c6773;--rule:#dde2e8;--alarm:#b3261e;
--series-0:#0062b1;--series-1:#c9470c;--series-2:#007a56;--series-3:#914a8e;--series-4:#946800;
--series-5:#2f7fa6;--series-6:#7a4a2b;--series-7:#56606b;--series-8:#b0124f;--series-9:#5d7500}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--panel:#1d2329;--ink:#e8ecf1;
--soft:#a3aeba;--rule:#343c45;--alarm:#ff8a80;--series-0:#6cb4ff;--series-1:#ff9a70;
--series-2:#46d3a3;--series-3:#dc9dd9;--series-4:#e9bb52;--series-5:#86cfef;--series-6:#cfa07e;
--series-7:#b1bac5;--series-8:#ff8fb4;--series-9:#b6cf4f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.2rem;margin:2.75rem 0 .25rem}h3{font-size:.95rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0 1rem;max-width:46rem}.lead,.note{color:var(--soft)}.note{font-size:.875rem}
dl.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.75rem;
margin:1.5rem 0}
dl.tiles div{background:var(--panel);border-radius:.5rem;padding:.75rem 1rem}
dl.tiles dt{font-size:.8rem;color:var(--soft)}
dl.tiles dd{margin:0;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--soft)}th:first-child,td:first-child{text-align:left;padding-left:0}
td.text{text-align:left;white-space:normal}
svg{display:block;font-family:inherit;max-width:100%}svg text{fill:var(--ink)}
svg .tick,svg .axis{fill:var(--soft)}svg .tick{font-size:11px}svg .name,svg .value{font-size:12px}
svg .grid{stroke:var(--rule);stroke-width:1}svg .line{fill:none;stroke-width:2.25}
svg .limit{stroke:var(--alarm);stroke-width:1.5;stroke-dasharray:7 4}
svg .limit-text{fill:var(--alarm)}svg .cell{fill:var(--series-0)}
svg .cell-text{font-size:11px}svg .cell-text.on-dark{fill:var(--paper)}
.maps{display:flex;flex-wrap:wrap;gap:.5rem 1.75rem}figure{margin:0}
figcaption{font-size:.85rem;color:var(--soft)}
ul.key{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;padding:0;margin:.5rem 0;
font-size:.85rem}ul.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;
margin-right:.4em;vertical-align:-.05em}
details{margin:1rem 0}summary{cursor:pointer;color:var(--soft)}
.failed{border-left:4px solid var(--alarm);padding:.5rem 1rem;background:var(--panel)}
@media print{main{max-width:none}details>*{display:block}}
""" + "".join(
    f"svg .fill-{number},svg text.fill-{number}{{fill:var(--series-{number})}}"
    f"svg .stroke-{number}{{stroke:var(--series-{number})}}"
    f".key .back-{number}{{background:var(--series-{number})}}"
    for number in range(charts.SERIES_COLOURS)
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
        _cost(report),
        _study(report),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>LaDa run, {escape(run.preset)}, {escape(run.started)}</title>"
        f"<style>{_STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


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
    tiles = [
        ("Wall-clock time", _duration(report.run.wall_s)),
        ("Smallest gain in accuracy", f"{100 * min(gains):+.1f} points" if gains else "-"),
        ("Largest epsilon spent", f"{spent:.2f} of {report.study.epsilon_cap:g}"),
        ("Target delta", plain_number(report.study.target_delta)),
        ("Sent by all parties", bytes_text(traffic)),
    ]
    if memory is not None:
        tiles.append(("Peak memory, all processes", bytes_text(memory)))
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
        )
        + "</dl>"
    )


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
    most = max((len(site.accuracy) for site in report.sites), default=0)
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
        f'<p class="note">{escape(report.notes[0])}</p>{plot}{_table(header, rows)}'
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
        limit=charts.Limit(value=cap, label=f"cap {cap:g}"),
    )
    return (
        "<h2>Privacy budget</h2>"
        f'<p class="note">Privacy unit: one {escape(report.study.unit)}, added or removed; delta '
        f"{plain_number(report.study.target_delta)}. Every site has a ledger and a budget of its "
        f"own. {_prose(report.notes[2])}</p>{plot}"
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
        f"<details><summary>Every step of every party</summary>{_table(header, rows)}</details>"
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
        ["Quota per site and round", str(study.quota)],
        ["Machine", f"{run.cpus} cores, {run.platform}, Python {run.python}"],
        ["Software", f"lada-secure {run.software_version}"],
    ]
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<h2>Terms of the study</h2><div class="scroll"><table>{body}</table></div>'


def _prose(text: str) -> str:
    """Escaped text in which `words` in backquotes are code."""
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )


def plain_number(value: float) -> str:
    """A number as people write it: 1e-5 rather than 1e-05."""
    mantissa, exponent_mark, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent_mark else mantissa


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _when(when: str, round_id: int) -> str:
    return "start" if when == "before" else f"after round {round_id + 1}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
