"""Rows of text as every source yields them, rows that cannot be used, and nested values as cells.

A cell is text, or None where the source has nothing. No source guesses a type: what a file spells
as text stays as it is spelled, and what a source has typed (a date of a database, a decimal of
Parquet) is written in one documented form.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeAlias

Cells: TypeAlias = Mapping[str, str | None]

MAX_CELL_CHARACTERS: Final = 16 * 1024 * 1024
# Of a list of objects, so many get columns of their own; all of them stand in the list's own cell.
_NUMBERED: Final = 16
# Up to here every whole number has a float of its own.
_EXACT: Final = 2.0**53

# By code: what is wrong with a row, and what may be done.
REASONS: Final[Mapping[str, str]] = {
    "too-few-columns": "the row has fewer cells than the header; look for a line break in a cell",
    "too-many-columns": "the row has more cells than the header; look for a bare delimiter",
    "header-again": "the row repeats the header; two files were put together",
    "not-in-encoding": "bytes are no text in this encoding; name another in [source] encoding",
    "not-json": "the line is not one JSON object",
    "key-twice": "an object has the same key twice, or two ways to one column as `a.b` and `b` in "
    "`a`; which value counts is unclear",
    "value-unreadable": "the value cannot be written as text, as a date behind the year 9999 or in "
    "an unknown time zone",
    "cell-empty": "a cell that is needed is empty; bytes that are no text count as empty",
    "list-of-objects": "the cell is a list of objects; name a path in it, as note.0.text",
    "cell-looks-missing": "the text is a word for a missing value, or an error of a spreadsheet",
    "cell-too-long": "a cell has more than 64 KiB, more than a record may have",
    "value-unknown": "the value is not in the table `values` of the mapping",
    "template-failed": "a filter of the template cannot read the value",
    "control-character": "a text holds a control character, as NUL",
    "choices-unreadable": "the cell of choices is no list in the form that the mapping names",
    "choices-count": "there are fewer than 2 choices, more than 26, or another number than `count`",
    "choices-repeat": "one choice stands there twice",
    "answer-no-place": "the answer names no choice by the letter or number that the mapping says",
    "answer-differs-by-case-or-space": "the answer is a choice but for case or space; "
    'match = "folded" in [record.answer] takes the choice as it is spelled',
    "answer-not-among-choices": "the answer is none of the choices",
    "answer-looks-missing": "the answer is a word for a missing value; "
    'missing_like = "meant" in [record.answer] keeps it',
    "answer-of-many-lines": "the answer of an open question must stand in one line",
    "answer-no-number": "the answer of a task of kind number is not one number and its unit",
    "answer-number-unclear": "the number may have a decimal comma or thousands separators; say how "
    'numbers are written, as decimal = "," and thousands = "." in [task]',
    "answer-other-unit": "the answer has another unit than [task] says",
    "unit-looks-missing": "the unit is a word for a missing value or for nobody; "
    'missing_like = "meant" in [record.unit] keeps it',
    "unit-in-exponent-form": "the unit is a number like 1.2E+15: a spreadsheet cut its digits",
    "unit-spelled-otherwise": "another row spells this unit otherwise; spell it alike, or say "
    'spellings = "one_person" in [record.unit]',
    "row-repeated": "an earlier row gave the same record id; without [record] id, the same record",
    "record-too-long": "the record has more than 64 KiB",
    "not-a-record": "the form of records refuses it",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row. line: where it begins, from 1; of sources without lines, which row it is."""

    line: int
    cells: Cells

    def __repr__(self) -> str:
        """Without content: a representation ends up in messages and tracebacks."""
        return f"Row({self.line})"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used. reason: of `REASONS`. column: the source's, empty for the row."""

    line: int
    reason: str
    column: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An open source.

    columns: None where only the rows tell them. said: what was found out about the file, for its
    owner. read: yields the rows, in the same order every time; its argument names the columns that
    are needed, others may be left out.
    """

    columns: tuple[str, ...] | None
    said: tuple[str, ...] = ()
    read: Callable[[frozenset[str]], Iterator[Row | Reject]]


class ListOfObjects(str):
    """The JSON of a list of objects: a cell that is there, and no text for a model to read."""

    __slots__ = ()


class Unclear(str):
    """A cell that cannot be used. reason: of `REASONS`; a row is rejected that needs the cell."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, reason: str) -> Unclear:
        made = super().__new__(cls)
        made.reason = reason
        return made


class KeyTwice(ValueError):
    """An object with the same key twice."""


def json_object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises: KeyTwice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KeyTwice
    return found


def text_of(value: object) -> str | None:
    """A typed value as the text of a cell.

    Text as it is; dates and times in ISO 8601; true and false; decimals with all their digits;
    floats with the fewest digits that read back the same, whole ones without a point, NaN as "nan";
    lists and objects as JSON, empty ones as nothing. Bytes are pictures and the like: nothing.
    """
    if isinstance(value, str):
        return value if value or isinstance(value, Unclear) else None
    if _is_nothing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else str(value).lower()
    if isinstance(value, float):
        # A whole number that a data frame has made a float of is spelled like the others.
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple | dict):
        text = json.dumps(value, ensure_ascii=False, default=text_of)
        listed = not isinstance(value, dict) and any(isinstance(one, Mapping) for one in value)
        return ListOfObjects(text) if listed else text
    return str(value)


def _is_nothing(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(one is None or isinstance(one, bytes) for one in value)
    return value in (None, {}) or isinstance(value, bytes | bytearray | memoryview)


def flat_row(line: int, value: Mapping[str, object], needed: frozenset[str]) -> Row | Reject:
    """A nested object as a row of the cells that are needed.

    Args: needed: columns; of none of them, the row has all: that is how a file is looked at.
    Raises: RecursionError: nested too deep.
    """
    cells = flat_cells(value)
    if needed:
        return checked_row(line, {name: cells.get(name) for name in needed})
    return checked_row(
        line, {name: None if isinstance(one, Unclear) else one for name, one in cells.items()}
    )


def checked_row(line: int, cells: Cells) -> Row | Reject:
    """A row, unless a cell of it is no text."""
    for name, text in cells.items():
        if isinstance(text, Unclear):
            return Reject(line, text.reason, name)
        if text is not None and not is_text(text):
            return Reject(line, "not-in-encoding", name)
    return Row(line, cells)


def is_text(text: str) -> bool:
    """Whether every character could be written to a file again; half a character could not."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def flat_cells(value: Mapping[str, object]) -> dict[str, str | None]:
    """A nested object as one row of cells.

    What lies inside gets its path: `code.text` is the key `text` of the object `code`,
    `coding.0.display` is of the first object of a list. A list is a cell as well, as JSON.
    """
    cells: dict[str, str | None] = {}
    _flatten(value, "", cells)
    return cells


def _flatten(value: Mapping[str, object], prefix: str, cells: dict[str, str | None]) -> None:
    for key, inner in value.items():
        name = prefix + key
        if isinstance(inner, Mapping):
            _flatten(inner, f"{name}.", cells)
            continue
        text = text_of(inner)
        cells[name] = text if cells.get(name, text) == text else Unclear("key-twice")
        if isinstance(inner, list):
            for place, element in enumerate(inner[:_NUMBERED]):
                if isinstance(element, Mapping):
                    _flatten(element, f"{name}.{place}.", cells)
