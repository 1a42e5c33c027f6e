"""`lada audit`: check what was released, from exported files alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from lada_secure.cli import JsonFlag, answer

app = typer.Typer(help="Check a study from its exported files alone.", no_args_is_help=True)


_PROGRESS_EVERY_S = 2.0


@app.command()
def verify(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Export folders, or mock runs; all are compared."),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Check ledgers, secure aggregations and transcripts; exit status 1 if anything is wrong.

    Example: lada audit verify runs/first

    Example: lada audit verify export export/studies/*

    Of several studies, the ledgers of one population must go on from one to the next; what was
    spent on it over all of them is told at the end.

    The first study of an auditor's export folder lies in it itself, later ones in its studies.
    """
    from lada_clients.audit.folder import read_evidence
    from lada_clients.reports.audit.verdict_words import verdict_json, verdict_lines
    from lada_protocol.evidence.joint import verify_exports

    found = verify_exports({str(folder): read_evidence(folder) for folder in folders})
    answer(verdict_json(found), verdict_lines(found), as_json=as_json)
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
    from lada_clients.reports.audit.report_page import check_out, write_report

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


@app.command()
def empirical(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A finished mock run; needs --site.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Which site of the mock run.")] = None,
    plan: Annotated[Path | None, typer.Option(help="The study's plan.json.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="The site's settings file, as for `lada site run`.")
    ] = None,
    pool: Annotated[
        Path | None, typer.Option(help="The study's public pool; without it none is trained on.")
    ] = None,
    attack: Annotated[
        Literal["updates", "adapters"],
        typer.Option(help="updates: sees every noised sum (strong); adapters: the last ones."),
    ] = "updates",
    records: Annotated[
        Literal["site", "public"],
        typer.Option(help="site: its own records; public: the pool's samples instead."),
    ] = "site",
    canaries: Annotated[
        int | None, typer.Option(help="How many coins are thrown.", show_default="as needed")
    ] = None,
    guesses: Annotated[
        int | None, typer.Option(help="How many of them are guessed.", show_default="as needed")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How many rounds to train.", show_default="all, or as many as an audit can refute"
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Attack a site's actual training settings; exit status 1 if they leak more than they claim.

    Example: lada audit empirical runs/first --site site-a

    Example: lada audit empirical --plan plan.json --settings hospital-a/site.toml

    Trains as the site would, with canaries among its units, and guesses which of them joined.
    Spends nothing of the site's budget, sends nothing and keeps no model. The result is computed
    from private records without noise: it stays at the site, unless --records public.
    """
    from lada_clients.audit.empirical import audit_site, read_site

    started = time.monotonic()
    result = audit_site(
        read_site(folder, site, plan=plan, settings=settings, pool=pool),
        attack=attack,
        records=records,
        canaries=canaries,
        guesses=guesses,
        rounds=rounds,
        say=lambda line: typer.echo(line, err=True),
        progress=_Progress(),
    )
    said = result.sentences(seconds=time.monotonic() - started)
    answer(result.to_json(), said, as_json=as_json)
    if result.audit.flagged:
        raise typer.Exit(1)


class _Progress:
    """Steps on stderr, a line every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            typer.echo(f"step {done} of {total}", err=True)
