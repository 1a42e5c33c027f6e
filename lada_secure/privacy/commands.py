"""`lada privacy`: what a mechanism costs, how much noise a target needs, what a study costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lada_secure.errors import ParameterError

if TYPE_CHECKING:
    from lada_secure.privacy.accounting.planning import PlanCost

app = typer.Typer(
    help="Privacy accounting: epsilon, calibration, and the cost of a whole study.",
    no_args_is_help=True,
    # The example of `plan` is escaped for it; older releases of typer have another default.
    rich_markup_mode="rich",
)

Noise = Annotated[float, typer.Option(help="Noise std / L2 sensitivity (or clip norm).")]
Sampling = Annotated[
    float, typer.Option(help="Probability that a unit joins a step, in (0, 1]; 1: no sampling.")
]
Steps = Annotated[int, typer.Option(help="How many times it is released.", min=1)]
Delta = Annotated[float, typer.Option(help="Target delta; far below 1 / number of units.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _finite(value: float) -> float:
    if value == float("inf"):
        raise ParameterError(
            "epsilon is above 500: this is no privacy guarantee; use more noise or fewer steps"
        )
    return value


@app.command()
def epsilon(
    noise_multiplier: Noise,
    delta: Delta,
    sampling_probability: Sampling = 1.0,
    steps: Steps = 1,
    as_json: AsJson = False,
) -> None:
    """Print the epsilon of one mechanism (PLD, add or remove one unit).

    Example: lada privacy epsilon --noise-multiplier 1 --sampling-probability 0.02 --steps 500
    --delta 1e-5 --json
    """
    from lada_secure.privacy.accounting import accountant, events

    event = events.DpSgdEvent(
        noise_multiplier=noise_multiplier, sampling_probability=sampling_probability, steps=steps
    )
    value = _finite(accountant.epsilon([event], target_delta=delta))
    if as_json:
        typer.echo(json.dumps({"epsilon": value}))
        return
    by_rdp = accountant.epsilon_rdp([event], target_delta=delta)
    typer.echo(f"epsilon {value:.4f} at delta {delta:g} (RDP cross-check: {by_rdp:.4f})")


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(help="Target epsilon.")],
    delta: Delta,
    sampling_probability: Sampling = 1.0,
    steps: Steps = 1,
    as_json: AsJson = False,
) -> None:
    """Print the least noise multiplier that keeps one mechanism within a target epsilon.

    Example: lada privacy calibrate --epsilon 1 --delta 1e-5 --sampling-probability 0.02
    --steps 500
    """
    from lada_secure.privacy.accounting import accountant, events, planning

    noise_multiplier = planning.calibrate_noise_multiplier(
        target_epsilon=epsilon,
        target_delta=delta,
        sampling_probability=sampling_probability,
        steps=steps,
    )
    event = events.DpSgdEvent(
        noise_multiplier=noise_multiplier, sampling_probability=sampling_probability, steps=steps
    )
    reached = accountant.epsilon([event], target_delta=delta)
    if as_json:
        typer.echo(json.dumps({"epsilon": reached, "noise_multiplier": noise_multiplier}))
        return
    typer.echo(
        f"noise multiplier {noise_multiplier:.4f} gives epsilon {reached:.4f} at delta {delta:g}"
    )


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(help="Plan in TOML.", metavar="PLAN.toml")],
    as_json: AsJson = False,
) -> None:
    """Settle the noise of a whole study and print what each release costs.

    Exits with 1 where the plan does not keep its target.

    Example of a plan (noise_multiplier may be left out; it is calibrated then):

        target_epsilon = 8.0
        target_delta = 1e-6
        units = 1000

        \\[\\[release]]
        purpose = "statistics"
        mechanism = "gaussian"
        times = 4
        noise_multiplier = 10.0

        \\[\\[release]]
        purpose = "training"
        mechanism = "dpsgd"
        times = 4
        steps = 30
        sampling_probability = 0.05
    """
    from lada_secure.privacy.accounting import planning

    cost = planning.cost_plan(planning.read_plan(path))
    _finite(cost.epsilon)
    if as_json:
        typer.echo(json.dumps(asdict(cost)))
    else:
        _print_table(cost)
    if not cost.holds:
        raise typer.Exit(1)


def _print_table(cost: PlanCost) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Privacy cost at delta {cost.target_delta:g}, {cost.units} units")
    table.add_column("purpose")
    table.add_column("mechanism")
    for heading in ("times", "noise multiplier", "epsilon alone", "epsilon so far"):
        table.add_column(heading, justify="right")
    for row in cost.releases:
        table.add_row(
            row.purpose,
            row.mechanism,
            str(row.times),
            f"{row.noise_multiplier:.4f}{' (calibrated)' if row.calibrated else ''}",
            f"{row.epsilon_alone:.4f}",
            f"{row.epsilon_so_far:.4f}",
        )
    console.print(table)
    verdict = "keeps" if cost.holds else "does NOT keep"
    console.print(
        f"epsilon {cost.epsilon:.4f} (RDP cross-check {cost.epsilon_rdp:.4f}): the plan {verdict} "
        f"its target of {cost.target_epsilon:g}",
        highlight=False,
    )
    for warning in cost.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
