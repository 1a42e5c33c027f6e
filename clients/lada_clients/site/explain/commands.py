"""`lada explain`: which cells a site was given, why, and what each brought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lada_secure.cli import JsonFlag, answer

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
    as_json: JsonFlag = False,
) -> None:
    """Which pool cells a site was given, why, and what each brought.

    A cell is a public topic x how hard the LLM finds it. A round that fell back to any topic, or to
    no pool at all, says why. The files that this reads never leave the site.
    """
    from rich.console import Console

    from lada_clients.site.explain.allocation import facts_of, read_rounds, site_study, table_of

    name, folder = site_study(run, site, study)
    rounds = read_rounds(folder, round_id)
    if as_json:
        answer({"site": name, "rounds": [facts_of(told) for told in rounds]}, (), as_json=True)
        return
    for told in rounds:
        Console().print(table_of(name, told))
        if not told.allocated():
            Console().print(f"{name} was given no samples in round {told.round}.")
        if told.fallback is not None:
            Console().print(
                f"Fallback in round {told.round}: {told.fallback.sentence}.",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
