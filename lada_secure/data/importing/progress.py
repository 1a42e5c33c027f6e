"""How far an import is, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console

# Where no terminal can show a line that changes.
_TELL_EVERY_S: Final = 10.0
LOOKED_AT: Final = "texts looked at for near duplicates"


class Progress(Protocol):
    """Gets how much is done so far, now and then; a new `what` is a new part of the work."""

    def __call__(self, done: int, what: str = "rows", whole: int | None = None, /) -> None: ...


@contextmanager
def shown_rows() -> Iterator[Progress]:
    """Gives what is to be called with what is done so far."""
    console = Console(stderr=True, highlight=False)
    status = console.status("reading ...") if console.is_terminal else None
    began = told = time.monotonic()
    part = "rows"

    def progress(done: int, what: str = "rows", whole: int | None = None, /) -> None:
        nonlocal told, part, began
        now = time.monotonic()
        if what != part:
            part, began = what, now
        of = "" if whole is None else f" of {whole:,}"
        said = f"{done:,}{of} {what}"
        if now > began:
            said += f", {done / (now - began):,.0f} a second"
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
