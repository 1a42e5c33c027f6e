"""`lada auditor`: serve a study as the party that opens sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The auditor: checks ledgers and opens sums, each once.", no_args_is_help=True
)


@app.callback()
def auditor() -> None:
    """Keeps `run` a sub-command."""


@app.command()
def run(
    settings: Annotated[
        Path, typer.Option("--settings", help="The auditor's settings file, auditor.toml.")
    ],
) -> None:
    """Serve the coordinator's study until it ends, then export what `lada audit verify` needs.

    Example: lada auditor run --settings auditor/auditor.toml

    A run that was interrupted goes on where it was with the same command.
    """
    from lada_clients.auditor.runner import run_auditor

    run_auditor(settings)
