"""Kinds of tasks: what a record asks for, and by what its answers are judged in an evaluation.

Training reads nothing of this: a record is learned from by question, choices, answer and reasoning
alone, and a study's own rule of right answers is its plan's. A record that says no kind is judged
by that rule alone.

| kind | choices | judged by |
|---|---|---|
| `choice` | 2 to 26 | the option |
| `text` | none | the text, normalised (`lada_secure.data.verification`) |
| `number` | none | the number within a tolerance, and its unit |
| `yes_no_unknown` | 3, one of them for what cannot be known | the option; unknown is to abstain |
| `classification` | 2 to 26 labels, the same in all records | the label, each label alike |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import ClassVar, Final, Literal, TypeAlias

from lada_secure.canonical import Json
from lada_secure.data.verification import normalised, read_number
from lada_secure.errors import ParameterError

Kind: TypeAlias = Literal["choice", "text", "number", "yes_no_unknown", "classification"]
NumberVerdict: TypeAlias = Literal["right", "other unit", "off", "no number"]
_MAX_UNITS: Final = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """Multiple choice; its options may differ from record to record."""

    kind: ClassVar[Kind] = "choice"


@dataclass(frozen=True, slots=True)
class Text:
    """A short text in one line."""

    kind: ClassVar[Kind] = "text"


@dataclass(frozen=True, slots=True)
class Classification:
    """One label of a fixed set, which are the record's choices."""

    kind: ClassVar[Kind] = "classification"


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNoUnknown:
    """Yes, no, or that it cannot be known. unknown: the choice that says so."""

    kind: ClassVar[Kind] = "yes_no_unknown"
    unknown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number with a unit.

    tolerance: of the gold number's absolute value, >= 0. absolute: in the gold answer's unit, >= 0;
    the larger of both counts. units: what one of each is in a common one, as (("mg", 1.0),
    ("g", 1000.0)), sorted by name; where the gold unit is not among them, an answer needs the same.
    """

    kind: ClassVar[Kind] = "number"
    tolerance: float = 0.0
    absolute: float = 0.0
    units: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Raises: ParameterError: a tolerance or a unit that says nothing sensible."""
        for name in ("tolerance", "absolute"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ParameterError(f"{name}: expected a finite number of 0 or more")
        names = [normalised(name) for name, _ in self.units]
        if len(names) > _MAX_UNITS:
            raise ParameterError(f"units: {len(names)}, at most {_MAX_UNITS}")
        if len(set(names)) < len(names) or not all(names):
            raise ParameterError("units: expected names that differ by more than case and space")
        if not all(math.isfinite(one) and one > 0.0 for _, one in self.units):
            raise ParameterError("units: expected finite numbers above 0")

    def judge(self, given: str, gold: str) -> NumberVerdict:
        """What an answer is against a gold one; "no number" also where the gold one has none."""
        read, wanted = read_number(given), read_number(gold)
        if read is None or wanted is None:
            return "no number"
        known = {normalised(name): Decimal(repr(one)) for name, one in self.units}
        own, other = known.get(wanted[1]), known.get(read[1])
        if read[1] == wanted[1]:
            return "right" if self._near(read[0], wanted[0]) else "off"
        if own is not None and other is not None:
            return "right" if self._near(read[0], wanted[0], other / own) else "off"
        return "other unit" if self._near(read[0], wanted[0]) else "off"

    def _near(self, read: Decimal, wanted: Decimal, factor: Decimal = Decimal(1)) -> bool:
        try:
            scaled = read if factor == 1 else read * factor
            if scaled == wanted:
                return True
            allowed = max(abs(wanted) * Decimal(repr(self.tolerance)), Decimal(repr(self.absolute)))
            return abs(scaled - wanted) <= allowed
        except DecimalException:
            # Digits beyond all measure: not near.
            return False


Task: TypeAlias = Choice | Text | Number | YesNoUnknown | Classification
_PLAIN: Final[Mapping[Kind, Task]] = {
    "choice": Choice(),
    "text": Text(),
    "classification": Classification(),
}


def task_json(task: Task) -> dict[str, Json]:
    """A task as a record's line has it."""
    told: dict[str, Json] = {"kind": task.kind}
    if isinstance(task, YesNoUnknown):
        told["unknown"] = task.unknown
    elif isinstance(task, Number):
        # What is left out is 0, or none.
        told |= {
            name: value for name in ("tolerance", "absolute") if (value := getattr(task, name))
        }
        if task.units:
            told["units"] = dict(task.units)
    return told


def parse_task(fields: Mapping[str, object]) -> Task:
    """A task of `task_json`.

    Raises: ParameterError: another kind or key, or a value that makes no sense; without content.
    """
    kind = fields.get("kind")
    others = set(fields) - {"kind"}
    for plain, task in _PLAIN.items():
        if kind == plain and not others:
            return task
    if kind == YesNoUnknown.kind and others == {"unknown"}:
        return YesNoUnknown(unknown=_text(fields["unknown"]))
    if kind == Number.kind and others <= {"tolerance", "absolute", "units"}:
        return Number(
            tolerance=_number(fields.get("tolerance", 0.0)),
            absolute=_number(fields.get("absolute", 0.0)),
            units=_units(fields.get("units", {})),
        )
    kinds = ", ".join((*_PLAIN, YesNoUnknown.kind, Number.kind))
    raise ParameterError(f"task: expected one of the kinds {kinds} with its own keys")


def task_faults(task: Task, choices: tuple[str, ...], answer: str) -> str | None:
    """What of a record's question does not fit its kind; None where all does."""
    if isinstance(task, Text | Number):
        if choices:
            return f"a task of kind {task.kind} has no choices"
        if isinstance(task, Number) and read_number(answer) is None:
            return (
                "the answer of a task of kind number is no number with a decimal point and a unit "
                "behind it"
            )
        return None
    if not choices:
        return f"a task of kind {task.kind} needs choices"
    if isinstance(task, YesNoUnknown):
        if len(choices) != 3:
            return f"a task of kind yes_no_unknown has 3 choices, got {len(choices)}"
        if task.unknown not in choices:
            return "the choice that means unknown is none of the choices"
    return None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ParameterError("task: expected a text that is not empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ParameterError("task: holds half of a character (a lone surrogate)") from error
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError("task: expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ParameterError("task: expected a finite number") from error


def _units(value: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, Mapping):
        raise ParameterError("task: units are no table of names and numbers")
    return tuple(sorted((_text(name), _number(one)) for name, one in value.items()))
