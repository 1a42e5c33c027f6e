"""`lada bench analyse`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lada_lab.arms.analysis_report import TextTable

# As wide as a terminal that nobody has made wider.
_WIDTH = 100


def analyse(
    runs: Annotated[list[Path], typer.Argument(help="What `lada bench allocation --csv` wrote.")],
    ours: Annotated[str, typer.Option(help="The condition in question.")] = "lada-secure",
    rivals: Annotated[
        str | None, typer.Option(help="Whom it is compared with, by commas [all others].")
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, help="Superior: the interval lies above so many points.")
    ] = 3.0,
    harm: Annotated[
        float, typer.Option(max=0.0, help="No harm: the interval lies above so many points.")
    ] = -2.0,
    settings: Annotated[
        bool,
        typer.Option("--settings", help="Show what was tried, best first, and compare nothing."),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the differences as SVG.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables for a page, nothing else.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
) -> None:
    """Paired differences over worlds, with intervals, tests and decisions (docs/allocation.md).

    Takes files of versions before there were draws of noise as well.
    """
    from lada_lab.arms.analysis_report import analyse as analysed
    from lada_lab.arms.run_file import read_runs

    report = analysed(
        read_runs(runs),
        ours=ours,
        rivals=[name.strip() for name in (rivals or "").split(",") if name.strip()],
        margin=margin / 100,
        harm=harm / 100,
    )
    if plot is not None:
        from lada_lab.arms.plot import difference_plot
        from lada_secure.storage.whole_files import write_atomically

        write_atomically(plot, difference_plot(report).encode("utf-8"))
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True))
        return
    from lada_lab.arms.analysis_report import markdown_text, settings_table, tables

    found = [settings_table(report)] if settings else tables(report)
    if markdown:
        typer.echo(markdown_text(found))
        return
    _show_tables(found)
    if not settings:
        _explain(report)


def _show_tables(tables: Sequence[TextTable]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=_WIDTH)
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for number, column in enumerate(head):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _explain(report: dict[str, Any]) -> None:
    from rich.console import Console

    hours = report["machine_hours"]
    Console(width=_WIDTH).print(
        f"Superior: interval above {100 * report['margin']:g} points and p <= {report['alpha']:g} "
        f"(sign flips over worlds, Holm). No harm: interval above {100 * report['harm']:g}. "
        f"Neither with fewer than {report['worlds_to_decide']} worlds. Worst: the lead at the site "
        f"where it is smallest. Harmed: share of sites more than {-100 * report['harm']:g} points "
        "below private records alone." + ("" if hours is None else f" {hours:.2f} machine hours."),
        highlight=False,
    )
