"""What `lada check` shows while it runs: a line per finding, and how far long work is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.text import Text

from lada_secure.check.findings import CheckReport, Finding, Level
from lada_secure.check.running import WAITS_FOR

_STYLES: Final[dict[Level, str]] = {
    "ok": "green",
    "warning": "yellow",
    "fault": "bold red",
    "skipped": "dim",
}
_NAME_WIDTH: Final = 16
# Where no terminal can show a line that changes.
_TELL_EVERY_S: Final = 10.0


class CheckScreen:
    """Findings on standard output, progress on standard error. as_json: one object at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console(soft_wrap=True, highlight=False)
        self._err = Console(stderr=True, highlight=False)
        self._status = self._err.status("") if self._err.is_terminal else None
        self._name = ""
        self._told_s = 0.0
        self._waiting: dict[str, list[str]] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the checks run; takes the changing line away, however they end."""
        try:
            yield
        finally:
            if self._status is not None:
                self._status.stop()

    def begun(self, name: str) -> None:
        """A check runs."""
        self._name, self._told_s = name, time.monotonic()
        if self._status is not None:
            self._status.update(f"{name} ...")
            self._status.start()

    def progress(self, done: int, whole: int) -> None:
        """So much of the running check's work is done."""
        said = f"{self._name}: {done} of {whole}"
        if self._status is not None:
            self._status.update(f"{said} ...")
        elif time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            self._err.print(said)

    def found(self, one: Finding) -> None:
        """A line; a message of several lines goes on below its beginning.

        What waits for a fault is told together, behind everything else.
        """
        if self._as_json:
            return
        if WAITS_FOR in one.facts:
            self._waiting.setdefault(one.message, []).append(one.check)
            return
        self._line(one)

    def _line(self, one: Finding) -> None:
        first, *more = one.message.splitlines() or [""]
        line = Text(f"{one.level:<8}", style=_STYLES[one.level])
        line.append(f"{one.check:<{_NAME_WIDTH}} {first}", style="default")
        self._out.print(line)
        for text in more:
            self._out.print(Text(" " * (9 + _NAME_WIDTH) + text))

    def finished(self, report: CheckReport) -> None:
        """The end: how it stands, or the whole report as JSON."""
        if self._as_json:
            content = report.model_dump(mode="json")
            self._out.print(Text(json.dumps(content, sort_keys=True)))
        else:
            for why, names in self._waiting.items():
                told = f"{why}: {', '.join(names)}"
                self._line(Finding(check=f"({len(names)})", level="skipped", message=told))
            who = f"{report.role}: " if report.role else ""
            ended = "nothing was written, spent, or sent to a party"
            self._out.print(Text(f"{who}{report.summary()}; {ended}"))
