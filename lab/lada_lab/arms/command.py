"""`lada bench allocation`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lada_lab.cache_folder import CacheDir

DEFAULT_CONDITIONS = ("lada-secure", "mass-valuation", "topic-quotas", "random", "no-pool", "paper")


def allocation(
    cache_dir: CacheDir,
    preset: Annotated[
        str, typer.Option(help="Frozen settings by name: tiny, facts or coding.")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 2,
    first_seed: Annotated[
        int, typer.Option(min=0, help="First seed; from 10000 on for choosing settings.")
    ] = 0,
    conditions: Annotated[
        str, typer.Option(help="Names separated by commas, or 'all'.")
    ] = ",".join(DEFAULT_CONDITIONS),
    epsilon: Annotated[str, typer.Option(help="Budgets separated by commas.")] = "8",
    harmful: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.6, help="Share of harmful pool samples; by default 0.3."),
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=10, help="Test items per site; tiny: 500, the others: 60.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of a study setting, NAME=JSON; repeat."),
    ] = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(help="Run at several values of a setting, NAME=JSON,JSON; repeat for a grid."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise in every world.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Worlds at a time, a process each.")] = 1,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Write every run as CSV, as soon as it ends; an interrupted run is gone on with."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the accuracies as SVG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
) -> None:
    """Does choosing samples help? All conditions with one budget of samples and steps.

    Simulates federations in one process each and measures students on held-out records.
    """
    from contextlib import ExitStack

    from lada_lab.arms.arms import arms_named
    from lada_lab.arms.bench_plan import BenchPlan
    from lada_lab.arms.grid import parse_factor, points_of
    from lada_lab.arms.presets import bench_settings
    from lada_lab.arms.program import program_sha256
    from lada_lab.arms.run import run_allocation
    from lada_lab.arms.run_file import Runs, held_run_file
    from lada_secure.errors import ParameterError

    for wanted in (csv, plot):
        _check_writable(wanted)
    if plot is not None and factor:
        raise ParameterError("--plot: not of a grid; draw its runs by `lada bench analyse --plot`")
    factors = [parse_factor(text) for text in factor or ()]
    plan = BenchPlan(
        arms=arms_named(_names(conditions)),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        epsilons=tuple(numbers(epsilon)),
        draws=draws,
        points={
            point: bench_settings(
                preset,
                harmful=harmful,
                held_out=held_out,
                changes=[*(setting or ()), *(f"{name}={level}" for name, level in point)],
            )
            for point in points_of(factors)
        },
    )
    provenance = _provenance()
    with ExitStack() as held:
        runs = Runs()
        if csv is not None:
            description = {
                **plan.description(preset),
                "version": provenance["version"],
                "program_sha256": program_sha256(),
                "started": provenance,
            }
            names = [one.name for one in factors]
            runs = held.enter_context(held_run_file(csv, description, factors=names))
        report = run_allocation(
            plan,
            runs=runs,
            cache_dir=cache_dir,
            jobs=jobs,
            progress=lambda text: typer.echo(text, err=True),
        )
    report = {"preset": preset, **provenance, **report}
    if plot is not None:
        from lada_lab.arms.plot import accuracy_plot

        share = report["settings"]["world"].get("harmful")
        title = f"{preset}: accuracy on held-out records"
        title += "" if share is None else f", {share:.0%} of the pool harmful"
        plot.write_text(accuracy_plot(report["accuracy"], title=title), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True))
    else:
        _show(report)


def _provenance() -> dict[str, Any]:
    """What somebody needs who wants to run it again, and to know what it ran on.

    Without folders of this machine: such a file is there to be published.
    """
    import re
    import shlex
    import sys
    from importlib.metadata import version

    from lada_lab.machine import machine

    cores, platform, python = machine()
    words = [re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    return {
        "command": shlex.join(["lada", *words]),
        "version": version("lada-secure"),
        "machine": {
            "cores": cores,
            "platform": platform,
            "python": python,
            "torch": version("torch"),
        },
    }


def _check_writable(path: Path | None) -> None:
    """Before hours of work rather than after them."""
    from lada_secure.errors import ParameterError

    if path is None:
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ParameterError(f"{path}: cannot write this file; name one in a folder that exists")


def _names(text: str) -> Sequence[str]:
    if text == "all":
        from lada_lab.arms.arms import ARMS

        return tuple(ARMS)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> list[float]:
    from lada_secure.errors import ParameterError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ParameterError(f"--epsilon: expected numbers and commas, got {text!r}") from error


def _show(report: Mapping[str, Any]) -> None:
    worlds = f"{len(report['seeds'])} worlds"
    if "grid" not in report:
        _show_figures(report, title=f"Accuracy on held-out records, {worlds}")
    for figures in report.get("grid", ()):
        where = ", ".join(f"{name}={level}" for name, level in figures["factors"].items())
        _show_figures(figures, title=f"{where}, {worlds}")


def _show_figures(figures: Mapping[str, Any], *, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("condition", "accuracy", "95% interval", "lada-secure is ahead by"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    ahead = figures["difference"].get("lada-secure", {})
    for name, found in figures["accuracy"].items():
        lead = ahead.get(name)
        table.add_row(
            f"{name} (not private)" if name in figures["not_private"] else name,
            f"{found['mean']:.1%}",
            _interval(found["interval"], percent=True),
            "" if lead is None else f"{100 * lead['mean']:+.1f} {_interval(lead['interval'])}",
        )
    Console().print(table)
    for name, found in figures["llm_gain"].items():
        Console().print(
            f"{name}: the LLM gained {100 * found['mean']:+.1f} points "
            f"{_interval(found['interval'])}".rstrip()
        )


def _interval(interval: Sequence[float] | None, *, percent: bool = False) -> str:
    if interval is None:
        return ""
    low, high = interval
    if percent:
        return f"{low:.1%} to {high:.1%}"
    return f"({100 * low:+.1f} to {100 * high:+.1f})"
