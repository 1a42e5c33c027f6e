"""What this project's pages share: one style, self-contained, light and dark, no script."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from lada_clients.reports import charts

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
td.text{text-align:left;white-space:normal}th.words,td.words{text-align:left}
svg{display:block;font-family:inherit;max-width:100%}svg text{fill:var(--ink)}
svg .tick,svg .axis{fill:var(--soft)}svg .tick{font-size:11px}svg .name,svg .value{font-size:12px}
svg .grid{stroke:var(--rule);stroke-width:1}svg .line{fill:none;stroke-width:2.25}
svg .limit{stroke:var(--alarm);stroke-width:1.5;stroke-dasharray:7 4}
svg .limit-text{fill:var(--alarm)}svg .cell{fill:var(--series-0)}
svg .cell-text{font-size:11px}svg .cell-text.on-dark{fill:var(--paper)}
.maps{display:flex;flex-wrap:wrap;gap:.5rem 1.75rem}figure{margin:0}
.wide{display:block}.narrow{display:none}
@media (max-width:34rem){.wide{display:none}.narrow{display:block}
main{padding:1.5rem 1rem 3rem}}
figcaption{font-size:.85rem;color:var(--soft)}
ul.key{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;padding:0;margin:.5rem 0;
font-size:.85rem}ul.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;
margin-right:.4em;vertical-align:-.05em}
details{margin:1rem 0}summary{cursor:pointer;color:var(--soft)}
.failed{border-left:4px solid var(--alarm);padding:.5rem 1rem;background:var(--panel)}
.failed strong{color:var(--alarm)}.failed ul{margin:.5rem 0;padding-left:1.25rem}
.failed li,code{overflow-wrap:anywhere}
.verified{border-left:4px solid var(--series-2);padding:.5rem 1rem;background:var(--panel)}
h4{font-size:.9rem;margin:1rem 0 .1rem}
dl.words dt{font-weight:600;margin-top:.6rem}dl.words dd{margin:0;max-width:46rem}
@media print{main{max-width:none}details>*{display:block}}
""" + "".join(
    f"svg .fill-{number},svg text.fill-{number}{{fill:var(--series-{number})}}"
    f"svg .stroke-{number}{{stroke:var(--series-{number})}}"
    f".key .back-{number}{{background:var(--series-{number})}}"
    for number in range(charts.SERIES_COLOURS)
)


def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole page. Args: title: plain text. sections: HTML, shown one below the other."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def tiles(named: Iterable[tuple[str, str]]) -> str:
    """The few figures that a reader looks for first, as (name, value) in plain text."""
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in named
        )
        + "</dl>"
    )


def prose(text: str) -> str:
    """Escaped text in which `words` in backquotes are code."""
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )


def plain_number(value: float) -> str:
    """A number as people write it: 1e-5 rather than 1e-05."""
    mantissa, exponent_mark, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent_mark else mantissa


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[int] = (0,)
) -> str:
    """A table of plain text; it scrolls sideways where it is wider than the screen.

    Args: words: numbers of the columns that hold words; they stand to the left.
    """
    mark = [' class="words"' if number in words else "" for number in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for kind, name in zip(mark, header, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(value)}</td>" for kind, value in zip(mark, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
