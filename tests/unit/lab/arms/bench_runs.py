"""Runs of a benchmark, made up."""

from __future__ import annotations

from collections.abc import Sequence

from lada_lab.arms.grid import Point
from lada_lab.arms.runs import Run
from lada_lab.arms.simulation import Outcome


def made_up_run(
    condition: str,
    seed: int,
    by_site: Sequence[float],
    *,
    draw: int = 1,
    epsilon: float = 8.0,
    point: Point = (),
    cost: tuple[float, float] = (7.9, 10.0),
    transfers: tuple[dict[str, int | bool], ...] = (),
) -> Run:
    """A run of sites a, b and on. cost: epsilon spent, and seconds of the study alone."""
    report = {
        "asked": 12, "received": 11, "received_harmful": 3, "trained": 8, "trained_harmful": 2,
    }  # fmt: skip
    return Run(
        point=point,
        draw=draw,
        outcome=Outcome(
            condition=condition,
            epsilon=epsilon,
            seed=seed,
            accuracy=sum(by_site) / len(by_site),
            by_site=tuple(by_site),
            llm_before=0.7,
            llm_accuracy=0.75,
            spent=cost[0],
            cpu_s=6.0,
            alone_s=cost[1],
            details={f"site-{letter}": [report] for letter in "abcdefg"[: len(by_site)]},
            transfers=transfers,
        ),
    )
