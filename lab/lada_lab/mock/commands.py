"""`lada mock`: a whole federation on one machine, every party a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lada_lab.cache_folder import CacheDir

app = typer.Typer(
    help="Run a whole federation on this machine, with every privacy mechanism real.",
    no_args_is_help=True,
)


PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        help="demo: SmolLM2-135M, minutes. families: the demo with Gemma-3-270M as LLM and at one "
        "site, after `make gemma`. tiny: arithmetic, a minute. chains: the world of "
        "`lada bench allocation`, four minutes.",
    ),
]
Sites = Annotated[int, typer.Option("--sites", help="Number of sites, at least 3.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", help="For data and initial weights only; never for privacy noise or keys."
    ),
]


@app.command(epilog="Example:  lada mock run --preset chains --against random --out runs/chains")
def run(
    out: Annotated[Path, typer.Option("--out", help="New or empty folder for the whole run.")],
    cache_dir: CacheDir,
    preset: PresetName = "demo",
    sites: Sites = 3,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds of the study. Default: the preset's.")
    ] = None,
    seed: Seed = 0,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="How samples are allocated: lada, gain, valued_gain, domain, random or another "
            "name of docs/settings.md. Default: the preset's.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Also run the study by this strategy, in a folder of its own, and report how the "
            "held-out accuracies differ; repeatable.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", help="Loopback port of the coordinator; 0 takes a free one.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Run coordinator, auditor and sites as separate processes over mutual TLS on loopback.

    Progress goes to stderr. DIR ends up with one folder per party, the auditor's export,
    report.json and report.html. Exit status: 0 done, 1 the run failed, 2 wrong request.
    """
    from lada_lab.mock.federation import RunFailed, run_against, run_federation
    from lada_lab.mock.presets import preset_for, rivals_of
    from lada_lab.mock.view import print_summary, summary_console

    progress = Console(stderr=True)
    study = preset_for(preset, sites=sites, rounds=rounds, seed=seed, strategy=strategy)
    others = rivals_of(study, against or ())
    with _ending_cleanly(progress):
        layout, report = run_federation(
            study, sites=sites, out=out, port=port, cache_dir=cache_dir, console=progress
        )
        if report.run.outcome == "finished" and others:
            report = run_against(
                others, report, layout=layout, cache_dir=cache_dir, console=progress
            )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        files = {
            "report": str(layout.report_html),
            "figures": str(layout.report_json),
            "check": f"lada audit verify {out}",
        }
        print_summary(summary_console(), report, files=files)
    if report.run.outcome == "failed":
        raise RunFailed(report.run.failure)


@app.command(epilog="Example:  lada mock prepare --preset tiny --seed 1")
def prepare(
    cache_dir: CacheDir,
    preset: PresetName = "demo",
    sites: Sites = 3,
    seed: Seed = 0,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Only this model reference; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Make or convert the model weights of a preset, so that a later run starts at once."""
    from lada_lab.mock.presets import preset_for
    from lada_lab.mock.supervisor import Supervisor
    from lada_lab.mock.weights import missing_models, prepare_missing
    from lada_lab.worlds.named_models import make_model

    where = cache_dir.absolute()
    if model:
        for reference in model:
            typer.echo(f"{reference}: {make_model(reference, cache_dir=where)}")
        return
    study = preset_for(preset, sites=sites, rounds=None, seed=seed)
    made = missing_models(study, where)
    with _ending_cleanly(Console(stderr=True)), Supervisor() as supervisor:
        prepare_missing(study, supervisor, cache_dir=where)
    typer.echo(f"{', '.join(made) or 'nothing'} made in {where}; preset {preset} is ready")


@app.command(epilog="Example:  lada mock scale --sites 10 --sites 50 --out runs/scale --json")
def scale(
    out: Annotated[Path, typer.Option("--out", help="New or empty folder for all runs.")],
    cache_dir: CacheDir,
    sites: Annotated[
        list[int] | None,
        typer.Option("--sites", help="A number of sites, 3 to 200; repeatable. Default 10 and 50."),
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
) -> None:
    """One round with as little training as a plan allows, at several numbers of sites.

    Says what each size costs: messages and bytes per site, the coordinator's memory, time. Growth
    is the exponent between the smallest and the largest size: 1 is linear, below it is better.
    """
    from rich.table import Table

    from lada_lab.mock.scale import run_scale

    progress = Console(stderr=True)
    with _ending_cleanly(progress):
        report = run_scale(
            sites or (10, 50),
            out=out,
            cache_dir=cache_dir.absolute(),
            seed=seed,
            say=lambda text: progress.print(text, style="dim", highlight=False),
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    table = Table("figure", *(f"{size.sites} sites" for size in report.sizes), "growth", box=None)
    for name in type(report.sizes[0]).model_fields:
        values = (str(getattr(size, name)) for size in report.sizes)
        table.add_row(name, *values, str(report.growth.get(name, "")))
    Console().print(table)


@app.command(epilog="Example:  lada mock compare runs/lada-* runs/random-* --json")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of one preset.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
) -> None:
    """Held-out gains per site over several runs, and how their strategies differ.

    Means with standard errors: first from the held-out records, then from the runs' spread.
    """
    from lada_lab.mock.comparison import compare as compared
    from lada_lab.mock.comparison import read_reports
    from lada_lab.mock.view import print_comparison, summary_console

    found = compared(read_reports(runs))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        print_comparison(summary_console(), found)


@app.command()
def schema() -> None:
    """Print the JSON schema of report.json."""
    from lada_lab.mock.report import Report

    typer.echo(json.dumps(Report.model_json_schema(), indent=2, sort_keys=True))


@contextlib.contextmanager
def _ending_cleanly(console: Console) -> Iterator[None]:
    """Signals end the block by an exception, so that children are stopped, and then the command."""
    from lada_lab.mock.supervisor import Interrupted, signals_as_exceptions

    try:
        with signals_as_exceptions():
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        console.print(f"stopped by {name}; no process is left", style="bold red")
        raise typer.Exit(128 + number) from None
