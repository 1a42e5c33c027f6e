"""`lada ca`: the certificate authority of a study, and the roster of its parties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lada_protocol.kinds import Role

app = typer.Typer(
    help="Certificates of a study: its own CA, one identity folder per party, and the roster.",
    no_args_is_help=True,
)

CaFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study CA.")]


@app.command()
def init(
    folder: CaFolder,
    name: Annotated[str, typer.Option(help="Name in the CA's certificate.")] = "lada study CA",
    days: Annotated[int, typer.Option(help="Validity in days.")] = 3650,
) -> None:
    """Make a new study CA: DIR/ca.crt and DIR/ca.key."""
    from datetime import UTC, datetime

    from lada_clients.ca.authority import init_ca
    from lada_protocol.identity import certificate_fingerprint

    certificate = init_ca(folder, name=name, days=days, now=datetime.now(UTC))
    typer.echo(f"study CA in {folder}")
    typer.echo(f"fingerprint {certificate_fingerprint(certificate)}")
    typer.echo(f"keep {folder / 'ca.key'} to yourself; it can issue new parties")


@app.command()
def issue(
    folder: CaFolder,
    role: Annotated[Role, typer.Option(help="What the party may do.")],
    party_id: Annotated[str, typer.Option("--id", help="1 to 32 of a-z, 0-9 and -.")],
    out: Annotated[Path, typer.Option(help="New identity folder of the party.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address it is reached at; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(help="Validity in days.")] = 365,
) -> None:
    """Issue the TLS and signing certificates of one party, with fresh keys, into a folder."""
    from datetime import UTC, datetime

    from lada_clients.ca.authority import issue_party
    from lada_protocol.identity import PartyName

    party = issue_party(
        folder,
        party=PartyName(role=role, id=party_id),
        hosts=host or [],
        days=days,
        out=out,
        now=datetime.now(UTC),
    )
    typer.echo(f"{party.name.uri} in {out}")
    typer.echo(f"TLS certificate     {party.tls_fingerprint}")
    typer.echo(f"signing certificate {party.signing_fingerprint}")


@app.command()
def roster(
    folder: CaFolder,
    out: Annotated[Path, typer.Option(help="Roster file to write.")],
    party: Annotated[
        list[Path], typer.Option(help="Folder with a party's tls.crt and sign.crt; repeatable.")
    ],
) -> None:
    """Write the roster of a study; its hash goes into every site's policy."""
    from datetime import UTC, datetime

    from lada_clients.ca.authority import make_roster

    made = make_roster(folder, parties=party, out=out, now=datetime.now(UTC))
    table = Table("id", "role", "TLS certificate", "signing certificate", box=None)
    for one in made.parties:
        table.add_row(
            one.id, one.role, one.tls_fingerprint[:16] + "...", one.signing_fingerprint[:16] + "..."
        )
    Console().print(table)
    typer.echo(f"roster {out}")
    typer.echo(f"roster_sha256 = {made.hash}")
    typer.echo("compare this hash over another channel before anyone accepts it")
