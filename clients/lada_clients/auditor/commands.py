"""`lada auditor`: serve a study as the party that opens sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The auditor: checks ledgers and opens sums, each once.", no_args_is_help=True
)


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


@app.command()
def enroll(
    party_id: Annotated[str, typer.Option("--id", help="1 to 32 of a-z, 0-9 and -.")],
    out: Annotated[Path, typer.Option(help="New identity folder of the auditor.")],
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Encrypt the keys with the passphrase in this file."),
    ] = None,
) -> None:
    """Make the auditor's keys here, and two requests for certificates to send to the study CA.

    Example: lada auditor enroll --id auditor --out auditor/identity
    """
    from lada_clients.ca.commands import request_certificates
    from lada_protocol.kinds import Role

    request_certificates(Role.AUDITOR, party_id, out, passphrase_file)
