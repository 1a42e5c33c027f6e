"""A site's training on its operator's screen: step, public loss, epsilon, time left.

A bar on a terminal; elsewhere (a log file, a service manager) a plain line for every tenth of a
round's steps. Nothing here depends on private records beyond what the ledger has paid for.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lada_secure.dpsgd.distillation import StepReport
from lada_secure.dpsgd.parameters import SignalToNoiseEstimate

_LINES_PER_ROUND = 10


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


class TrainingDisplay:
    """Shows reports of `distil`; leave it as a context so that the terminal is restored."""

    def __init__(self, console: Console, *, epsilon_cap: float) -> None:
        self._console = console
        self._epsilon_cap = epsilon_cap
        self._bar: Progress | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
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
        loss = "-" if report.public_loss is None else f"{report.public_loss:.4f}"
        figures = (
            f"public loss {loss}, epsilon {report.study_epsilon:.4f} of {self._epsilon_cap:g}, "
            f"{time_text(report.seconds_left)} left"
        )
        if self._console.is_terminal:
            self._move_bar(round_id, report, figures)
            return
        tenth, before = (
            step * _LINES_PER_ROUND // report.steps for step in (report.step, report.step - 1)
        )
        if report.step == 1 or tenth > before:
            step = f"round {round_id}, training step {report.step} of {report.steps}"
            self._line(f"{step}: {figures}")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _move_bar(self, round_id: int, report: StepReport, figures: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn(f"round {round_id} training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._bar.add_task("", total=report.steps)
            self._bar.start()
        (task,) = self._bar.task_ids
        self._bar.update(task, completed=report.step, description=figures)
        if report.step == report.steps:
            # Between rounds the terminal belongs to other messages.
            self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
