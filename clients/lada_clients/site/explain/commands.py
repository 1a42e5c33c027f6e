"""`lada explain`: which cells a site was given, why, and what each brought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lada_clients.site.explain.folder import ExplainedRound

app = typer.Typer(
    help="Which pool cells a site was given, why, and what each brought.",
    # `lada` collects groups; this one is a single command, and its options may follow RUN.
    subcommand_metavar="",
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True},
)


@app.callback(
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True},
    epilog="Example:  lada explain runs/first --site site-a --round 1",
)
def explain(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A mock run's folder, or a site's own folder.")
    ],
    site: Annotated[
        str | None, typer.Option(help="Which site; needed where there are several.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Which study; needed where the site took part in several.")
    ] = None,
    round_id: Annotated[
        int | None, typer.Option("--round", min=0, help="One round, counted from 0.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Which pool cells a site was given, why, and what each brought.

    A cell is a public topic x how hard the LLM finds it. The files that this reads never leave
    the site.
    """
    from lada_clients.site.explain.folder import allocated, read_rounds, site_study
    from lada_clients.site.explain.words import outcome, reasons

    name, folder = site_study(run, site, study)
    rounds = read_rounds(folder, round_id)
    if not as_json:
        _show(name, rounds)
        return
    told = [
        {
            "round": one.round,
            "cells": [
                {
                    **cell.model_dump(),
                    "why": reasons(cell, clusters=_clusters(one), first_round=one.round == 0),
                    "brought": outcome(cell),
                }
                for cell in allocated(one)
            ],
        }
        for one in rounds
    ]
    typer.echo(json.dumps({"site": name, "rounds": told}, sort_keys=True))


def _clusters(one: ExplainedRound) -> int:
    return len({cell.cluster for cell in one.cells}) or 1


def _show(name: str, rounds: list[ExplainedRound]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lada_clients.site.explain.folder import allocated
    from lada_clients.site.explain.words import outcome, reasons

    console = Console()
    for one in rounds:
        cells = allocated(one)
        picked = sum(cell.picked for cell in cells)
        title = f"{name}, round {one.round}: {picked} samples from {len(cells)} of "
        table = Table(title=f"{title}{len(one.cells)} cells", show_lines=True)
        table.add_column("topic", justify="right")
        table.add_column("difficulty", justify="right")
        table.add_column("samples", justify="right")
        table.add_column("trained", justify="right")
        table.add_column("why")
        table.add_column("brought")
        for cell in cells:
            table.add_row(
                str(cell.cluster),
                str(cell.difficulty),
                str(cell.picked),
                str(cell.trained),
                reasons(cell, clusters=_clusters(one), first_round=one.round == 0),
                outcome(cell),
            )
        console.print(table)
        if not cells:
            console.print(f"{name} was given no samples in round {one.round}.")
