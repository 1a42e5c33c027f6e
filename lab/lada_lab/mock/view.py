"""The live view of a run, and the table at its end (rich)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lada_lab.mock.progress import PartyProgress, bytes_text
from lada_lab.mock.report import Report

_PHASE_STYLE = {
    "starting": "dim",
    "working": "bold",
    "waiting": "yellow",
    "finished": "green",
    "failed": "bold red",
}


def live_table(
    parties: Sequence[PartyProgress], *, title: str, rounds: int, now_s: float
) -> RenderableType:
    """One line a party: round, step, progress, epsilon against the cap, bytes, accuracy."""
    table = Table(title=title, title_justify="left", expand=True, box=None, pad_edge=False)
    table.add_column("party", no_wrap=True)
    table.add_column("round", no_wrap=True)
    table.add_column("step", no_wrap=True, ratio=3)
    table.add_column("progress", ratio=2)
    table.add_column("epsilon", ratio=2)
    table.add_column("", no_wrap=True)
    table.add_column("up", justify="right", no_wrap=True)
    table.add_column("down", justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    waits: list[Text] = []
    for one in parties:
        table.add_row(*_live_row(one, rounds=rounds))
        if one.wait is not None:
            waits.append(
                Text(
                    f"{one.party} waits for {', '.join(one.wait.awaited)} since "
                    f"{max(0.0, now_s - one.wait.since_s):.0f} s: {one.wait.because}",
                    style="yellow",
                )
            )
    return Group(table, *waits)


def _live_row(one: PartyProgress, *, rounds: int) -> tuple[RenderableType, ...]:
    accuracy = ""
    if one.accuracies:
        accuracy = f"{one.accuracies[0]:.0%} -> {one.accuracies[-1]:.0%}"
    return (
        Text(one.party, style=_PHASE_STYLE[one.phase]),
        f"{min(one.round_id + 1, rounds)}/{rounds}" if one.step else "",
        one.step or one.phase if one.phase in ("starting", "working") else _step_text(one),
        _bar(one.done, one.total) if one.total else "",
        _bar(one.epsilon, one.cap) if one.cap else "",
        f"{one.epsilon:.2f}/{one.cap:g}" if one.cap else "",
        bytes_text(one.bytes_up),
        bytes_text(one.bytes_down),
        accuracy,
    )


def _step_text(one: PartyProgress) -> str:
    return one.phase if one.phase in ("finished", "failed") else f"{one.step} ({one.phase})"


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=total, completed=min(done, total), width=None)


def summary_console() -> Console:
    """Standard output; wide enough for the table where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_summary(console: Console, report: Report, *, files: Mapping[str, str]) -> None:
    """The table at the end of a run, and where its files are."""
    table = Table(title="Sites", title_justify="left", box=None, pad_edge=False)
    for name in ("site", "records", "units"):
        table.add_column(name, justify="left" if name == "site" else "right")
    table.add_column("held-out accuracy", justify="right")
    table.add_column("gain", justify="right")
    table.add_column("epsilon of cap", justify="right")
    table.add_column("picked", justify="right")
    table.add_column("up", justify="right")
    table.add_column("down", justify="right")
    for site in report.sites:
        cost = report.totals[site.party]
        table.add_row(
            site.party,
            str(site.records),
            str(site.units),
            " -> ".join(f"{point.accuracy:.1%}" for point in site.accuracy) or "not measured",
            "" if site.gain is None else f"{100 * site.gain:+.1f}",
            f"{site.epsilon_spent:.2f} of {site.epsilon_cap:g}",
            str(sum(one.picked for one in site.allocation)),
            bytes_text(cost.bytes_up),
            bytes_text(cost.bytes_down),
        )
    console.print()
    console.print(table)
    for one in report.uplink:
        console.print(
            f"LLM, round {one.round + 1}: asked about {one.asked} samples, trained on {one.used} "
            f"paths, hold-out {one.right_before} to {one.right_after} of {one.holdout}, update "
            f"{'kept' if one.accepted else 'dropped'}",
            highlight=False,
        )
    console.print(
        f"{report.run.outcome} in {report.run.wall_s:.1f} s"
        + (
            f", at most {bytes_text(report.run.peak_memory_bytes)} of memory in all processes"
            if report.run.peak_memory_bytes is not None
            else ""
        )
    )
    for what, where in files.items():
        console.print(f"{what:<8} {where}", soft_wrap=True, highlight=False)
