"""A site's training on its operator's screen: step, public loss, epsilon, time left.

A bar on a terminal; elsewhere (a log file, a service manager) a plain line for every tenth of a
round's steps. Nothing here depends on private records beyond what the ledger has paid for.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from lada_secure.dpsgd.distillation import StepReport
from lada_secure.dpsgd.signal_to_noise import SignalToNoiseEstimate

_LINES_PER_ROUND = 10


class TrainingWatcher(Protocol):
    """Whoever wants to see a site train."""

    def begin(self, round_id: int, estimate: SignalToNoiseEstimate) -> None:
        """What a round would train, before anything is spent on it."""

    def show(self, round_id: int, report: StepReport) -> None:
        """One step of a round."""


class Unwatched:
    """Nobody looks."""

    def begin(self, round_id: int, estimate: SignalToNoiseEstimate) -> None:
        """Nothing."""

    def show(self, round_id: int, report: StepReport) -> None:
        """Nothing."""


UNWATCHED: Final[TrainingWatcher] = Unwatched()


def time_text(seconds: float) -> str:
    """Seconds as a person would say them; below a minute to the second."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def figures_text(report: StepReport, *, epsilon_cap: float) -> str:
    """Loss, epsilon and time of a step, in one line."""
    loss = "-" if report.public_loss is None else f"{report.public_loss:.4f}"
    return (
        f"public loss {loss}, epsilon {report.study_epsilon:.4f} of {epsilon_cap:g}, "
        f"{time_text(report.seconds_left)} left"
    )


class TrainingDisplay:
    """Shows reports of `distil`; leave it as a context so that the terminal is restored."""

    def __init__(self, console: Console, *, epsilon_cap: float) -> None:
        self._console = console
        self._epsilon_cap = epsilon_cap
        self._bars: Progress | None = None
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def begin(self, round_id: int, estimate: SignalToNoiseEstimate) -> None:
        """Say how much would be trained, and warn where noise would drown it."""
        self._line(
            f"round {round_id}, training: {estimate.parameters:,} trainable parameters, best-case "
            f"signal-to-noise {estimate.signal_to_noise:.2g} over the round"
        )
        if estimate.hint is not None:
            self._line(f"warning: {estimate.hint}")

    def show(self, round_id: int, report: StepReport) -> None:
        """Show one step of a round."""
        if self._console.is_terminal:
            self._move_bar(round_id, report)
        elif self._has_own_line(report):
            self._line(
                f"round {round_id}, training step {report.step} of {report.steps}: "
                + figures_text(report, epsilon_cap=self._epsilon_cap)
            )

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    @staticmethod
    def _has_own_line(report: StepReport) -> bool:
        tenth = report.step * _LINES_PER_ROUND // report.steps
        before = (report.step - 1) * _LINES_PER_ROUND // report.steps
        return report.step == 1 or tenth > before

    def _move_bar(self, round_id: int, report: StepReport) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("round {task.fields[round_id]} training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._bars.start()
        if round_id not in self._tasks:
            self._tasks[round_id] = self._bars.add_task(
                "", total=report.steps, round_id=str(round_id)
            )
        self._bars.update(
            self._tasks[round_id],
            completed=report.step,
            description=figures_text(report, epsilon_cap=self._epsilon_cap),
        )
        if report.step == report.steps:
            # Between rounds the terminal belongs to other messages.
            self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()
