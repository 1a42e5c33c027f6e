"""A list of checks and how it is gone through: what a fault does not touch is looked at as well.

A check calls the very code that `run` calls. What that code refuses, by an error of our tree, is a
fault; what it only warns of, by its log, is a warning. A role's checks are entries of a list, and
further ones are added to the list and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import JsonValue

from lada_secure.check.findings import Finding, Level
from lada_secure.errors import LadaError, LocalProtocolError
from lada_secure.logs import PACKAGES

# A fact of what was skipped because of faults: the checks that have them.
WAITS_FOR: Final = "waits_for"
ASKS: Final = "--quick leaves out what answers questions"

# How much of long work is done, of how much.
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A finding before its check's name is put to it; see `Finding`."""

    level: Level
    message: str
    facts: dict[str, JsonValue]


def fine(message: str, **facts: JsonValue) -> Found:
    """What was looked at is as it should be; the message says what it is."""
    return Found("ok", message, facts)


def warn(message: str, **facts: JsonValue) -> Found:
    """It works, but perhaps not as meant; the message says what to do."""
    return Found("warning", message, facts)


def fault(message: str, **facts: JsonValue) -> Found:
    """It will not work; the message says what to do."""
    return Found("fault", message, facts)


def unneeded(message: str) -> Found:
    """There is nothing to look at; the message says why."""
    return Found("skipped", message, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One entry.

    name: stable. run: what is found, at least one; a `LadaError` that it raises is a fault. It
    writes nothing, sends nothing and spends nothing. needs: names of earlier checks; where one of
    them has a fault or was skipped for it, this one is skipped. asks: it answers questions, which
    takes minutes.
    """

    name: str
    run: Callable[[], Iterable[Found]]
    needs: tuple[str, ...] = ()
    asks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for, as far as a role's checks need it.

    plan: file of a study plan, None for what is on disk. pool: file of public questions, None for
    the role's own. questions: how many of them are asked, >= 1. progress: told of long work.
    """

    plan: Path | None = None
    pool: Path | None = None
    questions: int = 1
    progress: Progress = lambda _done, _all: None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChecks:
    """A role's part, found by the entry point group `lada.checks`.

    marks: keys that a settings file of this role alone has. checks: of a settings file, in the
    order in which they are told; makes nothing but the list.
    """

    role: str
    marks: frozenset[str]
    checks: Callable[[Path, Request], Sequence[Check]]


def run_checks(
    checks: Sequence[Check], *, quick: bool, begun: Callable[[str], None] = lambda _name: None
) -> Iterator[Finding]:
    """Go through a list of checks.

    Args: quick: skip what answers questions. begun: told the name of every check that runs.
    Raises: LocalProtocolError: a check needs one that does not come before it.
    """
    # What a check that cannot be relied on waits for: itself, or what it needs.
    waits: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for check in checks:
        unknown = set(check.needs) - seen
        if unknown:
            raise LocalProtocolError(
                f"check {check.name} needs {unknown}, which comes nowhere before"
            )
        seen.add(check.name)
        causes = tuple(dict.fromkeys(one for name in check.needs for one in waits.get(name, ())))
        if causes:
            waits[check.name] = causes
            yield _skipped(check, f"waits for {', '.join(causes)}; mend that first", causes)
        elif quick and check.asks:
            yield _skipped(check, ASKS)
        else:
            begun(check.name)
            for one in _findings(check):
                if one.level == "fault":
                    waits[check.name] = (check.name,)
                yield one


def _skipped(check: Check, message: str, causes: Sequence[str] = ()) -> Finding:
    facts: dict[str, JsonValue] = {WAITS_FOR: list(causes)} if causes else {}
    return Finding(check=check.name, level="skipped", message=message, facts=facts)


def _findings(check: Check) -> list[Finding]:
    with _heard_warnings() as heard:
        found: list[Found] = []
        try:
            found += check.run()
        except LadaError as error:
            found.append(fault(str(error)))
    found += [warn(text) for text in heard]
    return [
        Finding(check=check.name, level=one.level, message=one.message, facts=one.facts)
        for one in found
    ]


class _Heard(logging.Handler):
    """Keeps the messages of warnings."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """What our own packages warn of meanwhile, instead of on the screen."""
    texts: list[str] = []
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(one, one.handlers, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [_Heard(texts)], False
    try:
        yield texts
    finally:
        for one, handlers, propagate in before:
            one.handlers, one.propagate = handlers, propagate
