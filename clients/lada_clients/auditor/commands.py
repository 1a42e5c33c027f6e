"""`lada auditor`: serve a study as the party that opens sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lada_clients.ca.commands import PartyId, PassphraseFile, request_certificates
from lada_protocol.kinds import Role
from lada_secure.cli import JsonFlag, answer, resumable

app = typer.Typer(
    help="The auditor: checks ledgers and opens sums, each once.", no_args_is_help=True
)


SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The auditor's settings file, auditor.toml.")
]


@app.command()
def run(
    settings: SettingsFile,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay, and serve one study after the other.")
    ] = False,
) -> None:
    """Serve the coordinator's study until it ends, then export what `lada audit verify` needs.

    Example: lada auditor run --settings auditor/auditor.toml

    A run that was interrupted goes on where it was with the same command. With --follow it waits
    for the next study when one is over; SIGTERM between two studies ends it with status 0.
    """
    from lada_clients.auditor.runner import follow_auditor, run_auditor

    with resumable():
        if follow:
            follow_auditor(settings)
        else:
            run_auditor(settings)


@app.command()
def studies(settings: SettingsFile, as_json: JsonFlag = False) -> None:
    """Say which studies this auditor knows: state, rounds, epsilon, when, where the export lies.

    Example: lada auditor studies --settings auditor/auditor.toml

    Works while the auditor runs, without network. Epsilon comes from its copies of the ledgers.
    """
    from lada_clients.auditor.studies import known_studies
    from lada_protocol.studies import studies_json, studies_sentences

    party, found = known_studies(settings)
    answer(studies_json(party, found), studies_sentences(found), as_json=as_json)


@app.command("grant-restart")
def grant_restart(
    settings: SettingsFile,
    site: Annotated[str, typer.Option(help="Id of the site whose ledger is lost.")],
    population: Annotated[str, typer.Option(help="Population of the lost ledger.")],
    requested_by: Annotated[str, typer.Option(help="Who at the site asks for it (dr-meyer).")],
    by: Annotated[str, typer.Option(help="Who at the auditor decides (dr-weber).")],
    out: Annotated[Path, typer.Option(help="New file with the grant, to send to the site.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a site begin a ledger in place of one that is lost for good; carries over its epsilon.

    Example: lada auditor grant-restart --settings auditor/auditor.toml --site hospital-a
    --population patients-2026 --requested-by dr-meyer --by dr-weber --out grant.json

    Signs what this auditor's copy of the ledger knows. Speak to the person at the site first: what
    the site has spent after the last entry here is lost. Every later report shows the restart.
    """
    from lada_clients.auditor.restarts import grant_restart as sign
    from lada_clients.reports.ledger_history import restart_facts, restart_sentence

    grant = sign(
        settings, site=site, population=population, requested_by=requested_by, by=by, out=out
    )
    said = (
        f"wrote {out}, which lets {site} begin the ledger {grant.ledger_id[:12]}.",
        restart_sentence(grant),
        f"Now {requested_by} runs `lada site restart-ledger --grant FILE` at {site}.",
    )
    answer(restart_facts(grant), said, as_json=as_json)


@app.command()
def enroll(
    party_id: PartyId,
    out: Annotated[Path, typer.Option(help="New identity folder of the auditor.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the auditor's keys here, and two requests for certificates to send to the study CA.

    Example: lada auditor enroll --id auditor --out auditor/identity
    """
    request_certificates(Role.AUDITOR, party_id, out, passphrase_file)
