"""`lada audit`: check what was released, from exported files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lada_clients.audit.empirical_command import empirical

app = typer.Typer(help="Check a study from its exported files alone.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Keeps `verify` a sub-command."""


app.command()(empirical)


@app.command()
def verify(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Export folders, or mock runs; all are compared."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check ledgers, secure aggregations and transcripts; exit status 1 if anything is wrong.

    Example: lada audit verify runs/first

    Example: lada audit verify exports/study-1 exports/study-2

    Of several studies, the ledgers of one population must go on from one to the next; what was
    spent on it over all of them is told at the end.
    """
    from lada_clients.audit.folder import read_evidence
    from lada_clients.reports.audit.verdict_words import verdict_json, verdict_lines
    from lada_protocol.evidence.joint import verify_exports

    found = verify_exports({str(folder): read_evidence(folder) for folder in folders})
    if as_json:
        typer.echo(json.dumps(verdict_json(found), sort_keys=True))
    else:
        for line in verdict_lines(found):
            typer.echo(line)
    if not found.good:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Export folder, or a mock run.")],
    out: Annotated[
        Path, typer.Option(help="Folder for privacy-report.html and privacy-report.json.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The report on stdout, too.")] = False,
) -> None:
    """Write a report for a data-protection officer; exit status 1 if verification fails.

    Example: lada audit report runs/first --out reports/first
    """
    from lada_clients.audit.folder import evidence_root, read_evidence
    from lada_clients.reports.audit.report import build_report
    from lada_clients.reports.audit.report_files import check_out, write_report

    root = evidence_root(folder)
    check_out(out, root)
    found = build_report(read_evidence(folder))
    page, document = write_report(found, out)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        for fault in found.faults:
            typer.echo(f"WRONG  {fault}")
        typer.echo(f"wrote {page} and {document}: ", nl=False)
        typer.echo("all verified" if found.good else f"{len(found.faults)} faults")
    if not found.good:
        raise typer.Exit(1)
