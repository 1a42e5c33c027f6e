"""`lada bench allocation`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lada_lab.cache_folder import CacheDir

if TYPE_CHECKING:
    from lada_lab.arms.simulation import Outcome

DEFAULT_CONDITIONS = ("lada-secure", "mass-valuation", "topic-quotas", "random", "no-pool", "paper")


def allocation(
    cache_dir: CacheDir,
    preset: Annotated[str, typer.Option(help="Frozen settings by name: tiny or smollm2.")] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 2,
    first_seed: Annotated[
        int, typer.Option(min=0, help="First seed; from 10000 on for choosing settings.")
    ] = 0,
    conditions: Annotated[
        str, typer.Option(help="Names separated by commas, or 'all'.")
    ] = ",".join(DEFAULT_CONDITIONS),
    epsilon: Annotated[str, typer.Option(help="Budgets separated by commas.")] = "8",
    harmful: Annotated[
        float, typer.Option(min=0.0, max=0.6, help="Share of harmful pool samples.")
    ] = 0.3,
    held_out: Annotated[
        int | None, typer.Option(min=10, help="Test items per site; tiny: 500, smollm2: 80.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of a study setting, NAME=JSON; repeat."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worlds at a time, a process each.")] = 1,
    csv: Annotated[
        Path | None, typer.Option(help="Also write every run as CSV, as soon as it ends.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the accuracies as SVG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
) -> None:
    """Does choosing samples help? All conditions with one budget of samples and steps.

    Simulates federations in one process each and measures students on held-out records.
    """
    from lada_lab.arms.presets import bench_settings
    from lada_lab.arms.results import csv_text
    from lada_lab.arms.run import run_allocation

    budgets = numbers(epsilon)
    for wanted in (csv, plot):
        _check_writable(wanted)

    def keep(outcomes: Sequence[Outcome]) -> None:
        if csv is not None:
            csv.write_text(csv_text(outcomes, largest=max(budgets)), encoding="utf-8")

    outcomes, report = run_allocation(
        conditions=_names(conditions),
        seeds=range(first_seed, first_seed + seeds),
        epsilons=budgets,
        settings=bench_settings(preset, harmful=harmful, held_out=held_out, changes=setting or ()),
        cache_dir=cache_dir,
        jobs=jobs,
        progress=lambda text: typer.echo(text, err=True),
        keep=keep,
    )
    # Once more, in the order of the report.
    keep(outcomes)
    report = {"preset": preset, **_provenance(), **report}
    if plot is not None:
        from lada_lab.arms.plot import accuracy_plot

        title = f"{preset}: accuracy on held-out records, {harmful:.0%} of the pool harmful"
        plot.write_text(accuracy_plot(report["accuracy"], title=title), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True))
    else:
        _show(report)


def _provenance() -> dict[str, Any]:
    """What somebody needs who wants to run it again, and to know what it ran on."""
    import shlex
    import sys
    from importlib.metadata import version

    from lada_lab.machine import machine

    cores, platform, python = machine()
    return {
        "command": shlex.join(["lada", *sys.argv[1:]]),
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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Accuracy on held-out records, {len(report['seeds'])} worlds")
    for column in ("condition", "accuracy", "95% interval", "lada-secure is ahead by"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    ahead = report["difference"].get("lada-secure", {})
    for name, found in report["accuracy"].items():
        lead = ahead.get(name)
        table.add_row(
            name,
            f"{found['mean']:.1%}",
            _interval(found["interval"], percent=True),
            "" if lead is None else f"{100 * lead['mean']:+.1f} {_interval(lead['interval'])}",
        )
    Console().print(table)
    for name, found in report["llm_gain"].items():
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
