"""How far an import is, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console

# Where no terminal can show a line that changes.
_TELL_EVERY_S: Final = 10.0


@contextmanager
def shown_rows() -> Iterator[Any]:
    """Gives what is to be called with the number of rows so far."""
    console = Console(stderr=True, highlight=False)
    status = console.status("reading ...") if console.is_terminal else None
    began = told = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal told
        now = time.monotonic()
        said = f"{rows:,} rows, {rows / max(now - began, 1e-9):,.0f} a second"
        if status is not None:
            status.update(f"{said} ...")
        elif now - told >= _TELL_EVERY_S:
            told = now
            console.print(said)

    if status is not None:
        status.start()
    try:
        yield progress
    finally:
        if status is not None:
            status.stop()
