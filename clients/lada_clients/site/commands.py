"""`lada site`: take part in a study, and decide about studies by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lada_clients.ca.commands import PartyId, PassphraseFile, request_certificates
from lada_clients.site.results.commands import commands as of_results
from lada_protocol.kinds import Role
from lada_secure.cli import JsonFlag, answer, resumable

app = typer.Typer(help="A site: takes part in studies with its own records.", no_args_is_help=True)
app.add_typer(of_results)

SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The site's settings file, site.toml.")
]
By = Annotated[
    str,
    typer.Option(help="Who decides, as letters, digits, . _ - (dr-meyer); recorded in the ledger."),
]
Study = Annotated[str, typer.Argument(help="Study id.")]
Person = Annotated[
    str, typer.Option("--by", help='Who decides: "Name, role"; recorded in the ledger.')
]
Why = Annotated[
    str, typer.Option(help="The reason, in your own words; stays here, the others learn none.")
]


@app.command()
def run(
    settings: SettingsFile,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay, and take part in one study after the other.")
    ] = False,
) -> None:
    """Take part in the coordinator's study until it ends.

    Example: lada site run --settings hospital-a/site.toml

    A run that was interrupted goes on where it was with the same command. With --follow it waits
    for the next study when one is over; SIGTERM between two studies ends it with status 0.
    """
    from lada_clients.site.runner import follow_site, run_site

    with resumable():
        if follow:
            follow_site(settings)
        else:
            run_site(settings)


@app.command()
def studies(settings: SettingsFile, as_json: JsonFlag = False) -> None:
    """Say which studies this site knows: state, rounds, epsilon spent, when, and where they lie.

    Example: lada site studies --settings hospital-a/site.toml

    Works while the site runs, without network.
    """
    from lada_clients.site.studies import known_studies
    from lada_protocol.studies import studies_json, studies_sentences

    party, found = known_studies(settings)
    answer(studies_json(party, found), studies_sentences(found), as_json=as_json)


@app.command()
def show(settings: SettingsFile, as_json: JsonFlag = False) -> None:
    """Say in plain words what the waiting study would take from here, at what cost, until when.

    Example: lada site show --settings hospital-a/site.toml

    Works while `lada site run` waits for a decision; what was shown here may be approved here.
    """
    from lada_clients.site.decisions import show_plan

    shown = show_plan(settings)
    answer(shown.to_json(), shown.sentences(), as_json=as_json)


@app.command()
def ledger(
    settings: SettingsFile,
    out: Annotated[
        Path | None, typer.Option(help="Also write the ledger to this new file, as JSON Lines.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify the site's own ledger; say what is spent, by which study, and what is left.

    Example: lada site ledger --settings hospital-a/site.toml --out ledger.jsonl

    Works while the site runs, without network. Exit status 1 if the ledger is damaged.
    """
    from lada_clients.site.ledger.budget import export_ledger, read_budget

    budget = read_budget(settings)
    if out is not None:
        export_ledger(budget, out)
    answer(budget.to_json(), budget.sentences(), as_json=as_json)


@app.command()
def approve(
    study: Study,
    settings: SettingsFile,
    by: Person,
    plan: Annotated[
        str | None,
        typer.Option(help="How the SHA-256 of the plan begins that was read elsewhere."),
    ] = None,
) -> None:
    """Approve the waiting plan of a study; recorded in the ledger with who did.

    Example: lada site approve study-1 --settings hospital-a/site.toml --by "A. Meyer, DPO"

    The plan must have been read here, by `lada site show`, or be named by its hash. A waiting `lada
    site run` then goes on by itself.
    """
    from lada_clients.site import decisions

    typer.echo(decisions.approve(settings, study, by=by, plan_hash=plan))


@app.command()
def refuse(study: Study, settings: SettingsFile, by: Person, why: Why = "") -> None:
    """Refuse the waiting plan of a study; recorded in the ledger with who did.

    Example: lada site refuse study-1 --settings hospital-a/site.toml --by "A. Meyer, DPO"
    --why "The board meets in May."
    """
    from lada_clients.site import decisions

    typer.echo(decisions.refuse(settings, study, by=by, why=why))


@app.command()
def withdraw(study: Study, settings: SettingsFile, by: Person, why: Why = "") -> None:
    """Withdraw from a study: nothing more is released under it; what left cannot be taken back.

    Example: lada site withdraw study-1 --settings hospital-a/site.toml --by "A. Meyer, DPO"

    Needs no network. A running `lada site run` ends with its next step and tells the others, who go
    on if they are enough.
    """
    from lada_clients.site import decisions

    typer.echo(decisions.withdraw(settings, study, by=by, why=why))


@app.command("renew-key")
def renew_key(
    settings: SettingsFile,
    old_identity: Annotated[
        Path, typer.Option(help="Identity folder with the key that has signed the ledger so far.")
    ],
    by: By,
    as_json: JsonFlag = False,
) -> None:
    """Continue the population's ledger with the key of a new identity; both keys sign.

    Example: lada site renew-key --settings hospital-a/site.toml
    --old-identity hospital-a/identity-2025 --by dr-meyer

    Needs no network. Put the new identity and roster into the settings first.
    """
    from lada_clients.site.ledger.population import renew_key as renew

    key = renew(settings, old_identity=old_identity, by=by)
    said = (
        f"recorded in the ledger: {by} renewed the signing key; from here on {key[:12]} signs. "
        "The budget goes on as it was. The old key is not needed any more"
    )
    answer({"public_key": key, "decided_by": by}, (said,), as_json=as_json)


@app.command("restart-ledger")
def restart_ledger(
    settings: SettingsFile,
    grant: Annotated[
        Path, typer.Option(help="The auditor's file, of `lada auditor grant-restart`.")
    ],
    by: By,
    as_json: JsonFlag = False,
) -> None:
    """Begin a ledger in place of one that is lost for good, with what the auditor knows of it.

    Example: lada site restart-ledger --settings hospital-a/site.toml --grant grant.json
    --by dr-meyer

    Needs no network. Every later report shows the restart. Refused where a ledger is there.
    """
    from lada_clients.reports.ledger_history import restart_facts, restart_sentence
    from lada_clients.site.ledger.population import restart

    found = restart(settings, grant_file=grant, by=by)
    said = (
        f"population {found.population} has a new ledger, {found.ledger_id[:12]}.",
        restart_sentence(found),
        "Every later report shows this. If the lost file is found, never use it again.",
    )
    answer(restart_facts(found), said, as_json=as_json)


@app.command()
def enroll(
    party_id: PartyId,
    out: Annotated[Path, typer.Option(help="New identity folder of the site.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the site's keys here, and two requests for certificates to send to the study CA.

    Example: lada site enroll --id hospital-a --out hospital-a/identity
    """
    request_certificates(Role.SITE, party_id, out, passphrase_file)
