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
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Export folder, or a mock run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check ledgers, openings and transcripts; exit status 1 if anything is wrong.

    Example: lada audit verify runs/first
    """
    from lada_clients.audit.folder import read_evidence
    from lada_protocol.evidence import verify_evidence

    verdict = verify_evidence(read_evidence(folder))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "good": verdict.good,
                    "study_id": verdict.study_id,
                    "rounds": verdict.rounds,
                    "openings": verdict.openings,
                    "messages": verdict.messages,
                    "epsilon": {
                        site: {
                            "epsilon": summary.epsilon,
                            "epsilon_rdp": summary.epsilon_rdp,
                            "target_delta": summary.target_delta,
                            "reservations": summary.reservations,
                        }
                        for site, summary in verdict.ledgers.items()
                    },
                    "faults": list(verdict.faults),
                },
                sort_keys=True,
            )
        )
    else:
        for fault in verdict.faults:
            typer.echo(f"WRONG  {fault}")
        for site, summary in sorted(verdict.ledgers.items()):
            typer.echo(
                f"ledger {site}: epsilon {summary.epsilon:.4f} "
                f"(RDP {summary.epsilon_rdp:.4f}) at delta {summary.target_delta}, "
                f"{summary.reservations} releases"
            )
        typer.echo(
            f"{verdict.messages} messages, {verdict.openings} openings, "
            f"{verdict.rounds} rounds of study {verdict.study_id or '?'}: "
            + ("all good" if verdict.good else f"{len(verdict.faults)} faults")
        )
    if not verdict.good:
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
    from lada_clients.audit.report import build_report
    from lada_clients.audit.report_files import check_out, write_report

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
