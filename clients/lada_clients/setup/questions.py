"""Answers from options, and where a person sits at a terminal from questions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import typer

from lada_secure.errors import ParameterError

T = TypeVar("T")


class Questions:
    """Collects what a command needs before it writes anything.

    Args: terminal: whether a person can be asked; otherwise what is missing is told, all at once.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._missing: list[str] = []

    def ask(
        self,
        given: str | None,
        option: str,
        question: str,
        read: Callable[[str], T],
        *,
        default: str | None = None,
    ) -> T | None:
        """One answer: as given by its option, else asked for, else the default.

        Args: read: makes the value of the text; an answer that it refuses is asked for again.
        Returns: None where there is neither; `complete` tells it then.
        Raises: ParameterError: the option's value is refused. Abort: Ctrl-C at the question.
        """
        if given is None and not self._terminal:
            given = default
            if given is None:
                self._missing.append(option)
                return None
        if given is not None:
            return _read(given, option, read)
        while True:
            text = prompt(question, default=default)
            try:
                return _read(text, option, read)
            except ParameterError as error:
                typer.echo(f"  {error}", err=True)

    def complete(self) -> None:
        """Raises: ParameterError: something that has no default was not given."""
        if self._missing:
            raise ParameterError(
                f"{', '.join(self._missing)}: missing; name them, or run the command in a terminal "
                "to be asked. Nothing was written"
            )


def prompt(question: str, *, default: str | None = None) -> str:
    """Ask a person; Ctrl-C and the end of input stop the command before anything is written."""
    try:
        # The questions stand beside what a program may read on standard output.
        answer: str = typer.prompt(question, default=default, err=True)
    except typer.Abort:
        typer.echo("\nstopped; nothing was written", err=True)
        raise typer.Exit(1) from None
    return answer.strip()


def has_terminal() -> bool:
    """Whether somebody can answer questions."""
    # A stream that the caller has closed is none.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _read(text: str, option: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ParameterError as error:
        raise ParameterError(f"{option}: {error}") from error
