"""The `lada` command: collects the sub-commands that each package registers.

Errors of our own tree end in one readable message and the exit status of their class; a
traceback is for defects only.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import Annotated, NoReturn, TypeAlias

import typer
from rich.console import Console

from lada_secure.errors import LadaError, TransportError

LOG = logging.getLogger(__name__)
GROUP = "lada.commands"
JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

HELP = """Private federation of one large and several small language models.

First run, everything on this machine (with the package lada-lab):
  lada mock run --preset tiny --out runs/first
Then check what was released:
  lada audit verify runs/first
"""


def build_app() -> typer.Typer:
    """The root command with every registered sub-command attached."""
    app = typer.Typer(
        name="lada",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root() -> None:
        """Keeps `lada` a group even where a single package is installed."""

    root.__doc__ = HELP
    for entry in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        app.add_typer(entry.load(), name=entry.name)
    return app


def answer(facts: object, sentences: Iterable[str], *, as_json: bool) -> None:
    """What a command has found: one JSON object for machines, or lines for people."""
    for line in (json.dumps(facts, sort_keys=True),) if as_json else sentences:
        typer.echo(line)


@contextmanager
def resumable() -> Iterator[None]:
    """A command that goes on where it was: Ctrl-C says so, and ends it with the shell's status."""
    try:
        yield
    except KeyboardInterrupt:
        # Logged, because a machine may read each line of this command.
        LOG.warning("stopped; the same command goes on where this one was")
        raise typer.Exit(128 + signal.SIGINT) from None


def main() -> None:
    """The command. Exit status: 0 done, 1 failed run, 2 caller's mistake, 130 stopped by Ctrl-C.

    Raises: KeyboardInterrupt: before a command has begun; see `lada_secure.entry`.
    """
    # Of libraries; what this project has to say is logged or printed.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        # Usage errors, --help and interrupts end inside, each with its own exit status.
        build_app()()
    except LadaError as error:
        _end(error)
    except OSError as error:
        # A screen that is full, a folder that may not be entered, a name too long: no defect.
        LOG.debug("", exc_info=error)
        what = error.filename or ("standard output" if _is_of_screen(error) else "")
        _end(TransportError(f"{what}{': ' if what else ''}{error.strerror or error}"))


def _is_of_screen(error: OSError) -> bool:
    """Whether it was raised while something was printed; any other file may lack its name too."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("typer", "click", "rich")


def _end(error: LadaError) -> NoReturn:
    # Imported here: settings and formats are for commands that run.
    from lada_secure.logs import tell_failure

    # Where even this cannot be written, the exit status still says it; rich ends by itself there.
    with suppress(OSError, SystemExit):
        if not tell_failure(error):
            Console(stderr=True, soft_wrap=True).print(
                f"error ({error.code}): {error}", style="bold red", markup=False, highlight=False
            )
    _give_up_unwritten()
    sys.exit(error.exit_status)


def _give_up_unwritten() -> None:
    """Else the interpreter tries once more when it ends, complains, and makes the status 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
