"""`lada server`: run the coordinator, and see where its study stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lada_secure.cli import JsonFlag, answer

if TYPE_CHECKING:
    from lada_server.study.status import Status

app = typer.Typer(help="The coordinator: proposes a study and serves it.", no_args_is_help=True)

SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The coordinator's settings file, server.toml.")
]


@app.command()
def run(settings: SettingsFile) -> None:
    """Propose the study of the settings file and serve it until it ends.

    Example: lada server run --settings coordinator/server.toml

    A run that was interrupted goes on where it was with the same command.
    """
    from lada_server.runner import run_server

    run_server(settings)


@app.command()
def status(
    settings: SettingsFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say where the study stands, who is connected, and who is waited for since when and why.

    Example: lada server status --settings coordinator/server.toml --json

    Reads what the coordinator keeps on disk, so it works while the coordinator runs or not.
    """
    from lada_server.runner import server_status

    found = server_status(settings)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found)


@app.command()
def studies(settings: SettingsFile, as_json: JsonFlag = False) -> None:
    """Say which studies were proposed from here: state, rounds, when, and where they lie.

    Example: lada server studies --settings coordinator/server.toml

    Works while the coordinator runs or not, without its database.
    """
    from lada_protocol.studies import studies_json, studies_sentences
    from lada_server.runner import server_studies

    party, found = server_studies(settings)
    answer(studies_json(party, found), studies_sentences(found), as_json=as_json)


def _show(status: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    running = f"running on {status.listen}" if status.running else "not running"
    typer.echo(f"coordinator {running}")
    if status.round is None:
        typer.echo(f"study {status.study_id or '-'}: {status.state}")
    else:
        place = f"round {status.round + 1} of {status.rounds or '?'}, {status.step}"
        typer.echo(f"study {status.study_id}: {status.state}, {place}, since {status.since}")
    if status.waiting is not None:
        parties = ", ".join(status.waiting.parties)
        typer.echo(
            f"waiting for {parties} since {status.waiting.since} because {status.waiting.because}"
        )
    if status.failure is not None:
        typer.echo(f"failed: {status.failure}")
    if status.storage_failure is not None:
        typer.echo(f"storage: {status.storage_failure}")
    columns = ("party", "role", "connected", "last call", "messages", "last message", "refused")
    table = Table(*columns, box=None)
    for one in status.parties:
        last = one.last_message
        table.add_row(
            one.id,
            one.role,
            {True: "yes", False: "no", None: "unknown"}[one.connected],
            one.last_call or "-",
            "unknown" if one.messages is None else str(one.messages),
            "-" if last is None else f"{last.kind}, round {last.round + 1}, {last.at}",
            ", ".join(f"{reason} {count}" for reason, count in one.refusals.items()) or "-",
        )
    Console().print(table)
