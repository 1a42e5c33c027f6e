"""`lada server`: run the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The coordinator: proposes a study and serves it.", no_args_is_help=True)


@app.callback()
def server() -> None:
    """Keeps `run` a sub-command."""


@app.command()
def run(
    settings: Annotated[
        Path, typer.Option("--settings", help="The coordinator's settings file, server.toml.")
    ],
) -> None:
    """Propose the study of the settings file and serve it until it ends.

    Example: lada server run --settings coordinator/server.toml

    A run that was interrupted goes on where it was with the same command.
    """
    from lada_server.runner import run_server

    run_server(settings)
