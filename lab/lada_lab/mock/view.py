"""The live view of a run, and the table at its end (rich)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lada_lab.mock.comparison import Comparison
from lada_lab.mock.progress import PartyProgress, bytes_text, waiting_text
from lada_lab.mock.report import Difference, Report

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
    ratios = {"step": 3, "progress": 2, "epsilon": 2}
    for name in ("party", "round", "step", "progress", "epsilon", ""):
        table.add_column(name, no_wrap=ratios.get(name) != 2, ratio=ratios.get(name))
    for name in ("up", "down", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    waits: list[Text] = []
    for party in parties:
        table.add_row(*_live_row(party, rounds=rounds))
        if party.wait is not None:
            since_s = party.wait.time_s - party.wait.waited_s
            told = waiting_text(party.wait, waited_s=max(0.0, now_s - since_s))
            waits.append(Text(f"{party.party} {told}", style="yellow"))
    return Group(table, *waits)


def _live_row(party: PartyProgress, *, rounds: int) -> tuple[RenderableType, ...]:
    accuracy = ""
    if party.accuracies:
        accuracy = f"{party.accuracies[0]:.0%} -> {party.accuracies[-1]:.0%}"
    return (
        Text(party.party, style=_PHASE_STYLE[party.phase]),
        f"{min(party.round_id + 1, rounds)}/{rounds}" if party.step else "",
        party.step or party.phase if party.phase in ("starting", "working") else _step_text(party),
        _bar(party.done, party.total) if party.total else "",
        _bar(party.epsilon, party.cap) if party.cap else "",
        f"{party.epsilon:.2f}/{party.cap:g}" if party.cap else "",
        bytes_text(party.bytes_up),
        bytes_text(party.bytes_down),
        accuracy,
    )


def _step_text(party: PartyProgress) -> str:
    return party.phase if party.phase in ("finished", "failed") else f"{party.step} ({party.phase})"


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=total, completed=min(done, total), width=None)


def summary_console() -> Console:
    """Standard output; wide enough for the table where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_summary(console: Console, report: Report, *, files: Mapping[str, str]) -> None:
    """The table at the end of a run, and where its files are."""
    table = Table(title="Sites", title_justify="left", box=None, pad_edge=False)
    table.add_column("site")
    for name in (
        *("records", "units", "held-out accuracy", "gain"),
        *("epsilon of cap", "picked", "up", "down"),
    ):
        table.add_column(name, justify="right")
    for site in report.sites:
        cost = report.totals[site.party]
        table.add_row(
            site.party,
            str(site.records),
            str(site.units),
            " -> ".join(f"{point.accuracy:.1%}" for point in site.accuracy) or "not measured",
            "" if site.gain is None else f"{100 * site.gain:+.1f}",
            f"{site.epsilon_spent:.2f} of {site.epsilon_cap:g}",
            str(sum(allocation.picked for allocation in site.allocation)),
            bytes_text(cost.bytes_up),
            bytes_text(cost.bytes_down),
        )
    console.print()
    console.print(table)
    for update in report.uplink:
        console.print(
            f"LLM, round {update.round + 1}: asked about {update.asked} samples, trained on "
            f"{update.used} paths, hold-out {update.right_before} to {update.right_after} of "
            f"{update.holdout}, update {'kept' if update.accepted else 'dropped'}",
            highlight=False,
        )
    if report.against:
        print_differences(console, report.against)
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


def print_comparison(console: Console, found: Comparison) -> None:
    """Gains, and differences between strategies, in percentage points."""
    gains = Table(title=f"Gains, preset {found.preset}", title_justify="left", box=None)
    for name in ("strategy", "site", "runs", "records", "before", "after", "gain", "s.e.", "runs'"):
        gains.add_column(name, justify="left" if name in ("strategy", "site") else "right")
    for one in found.gains:
        gains.add_row(
            *(one.strategy, one.site, str(one.runs), str(one.records)),
            *(f"{one.before:.1%}", f"{one.after:.1%}", f"{100 * one.gain:+.1f}"),
            *(_points(one.standard_error), _points(one.between_runs)),
        )
    console.print(gains)
    if found.differences:
        print_differences(console, found.differences)


def print_differences(console: Console, found: Sequence[Difference]) -> None:
    """How strategies differ, in percentage points of held-out accuracy."""
    differences = Table(title="Differences after the last round", title_justify="left", box=None)
    for name in ("strategies", "site", "seeds", "difference", "s.e.", "runs'"):
        differences.add_column(name, justify="left" if name in ("strategies", "site") else "right")
    for each in found:
        differences.add_row(
            *(f"{each.strategy} - {each.other}", each.site, str(each.seeds)),
            f"{100 * each.difference:+.1f}",
            *(_points(each.standard_error), _points(each.between_runs)),
        )
    console.print(differences)


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
