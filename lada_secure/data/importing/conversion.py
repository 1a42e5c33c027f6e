"""One row becomes one record, or a reject that says why and in which column.

What is refused here is at least what the form of records refuses (`record_faults`), told more
exactly; that parser has the last word over every line that is written.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from lada_secure.canonical import canonical_json
from lada_secure.data.importing.mapping import (
    AnswerField,
    ChoicesField,
    RecordFields,
    TextField,
)
from lada_secure.data.importing.rows import Cells, Reject, Row
from lada_secure.data.importing.templates import RowTemplate, Unusable
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.record_faults import MAX_LINE_BYTES
from lada_secure.data.records import Record
from lada_secure.data.unit_ids import canonical_unit, looks_missing
from lada_secure.errors import ParameterError

# All but tab and line ends; those of C1 are what a wrong encoding leaves.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# What a spreadsheet makes of a long number; its last digits are lost, and people with it.
_EXPONENT: Final = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+?[0-9]+")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_BYTES: Final = 12
_REMEMBERED: Final = 20_000
_Read: TypeAlias = Callable[[Cells], "str | None"]
# Choices by their place in the source; None is one that was left out.
_Places: TypeAlias = Sequence["str | None"]


class _Unusable(Exception):
    def __init__(self, reason: str, column: str) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may be written, if the rest of the table agrees.

    canonical: its unit as units are compared.
    """

    line: int
    record: Record
    canonical: str


class Converter:
    """Makes records of rows by the fields of a mapping.

    key: secret and stable over imports; record ids that are made from a record's text are keyed
    with it, for a bare hash could be confirmed by whoever guesses the text.
    """

    def __init__(self, fields: RecordFields, *, key: bytes) -> None:
        self._fields, self._key = fields, key
        self._unit = _reader(fields.unit)
        self._question = _reader(fields.question)
        self._answer = _reader(fields.answer)
        self._rationale = None if fields.rationale is None else _reader(fields.rationale)
        self._id = None if fields.id is None else _reader(fields.id)
        # People come again and again, often in rows that follow one another.
        self._canonical = lru_cache(maxsize=_REMEMBERED)(canonical_unit)
        self._fixed = None if fields.choices is None else fields.choices.constant or None

    def convert(self, row: Row) -> Candidate | Reject:
        """The record of a row, or why it has none."""
        try:
            return self._candidate(row)
        except _Unusable as error:
            return Reject(row.line, error.reason, error.column)

    def _candidate(self, row: Row) -> Candidate:
        fields, cells = self._fields, row.cells
        for name, cell in cells.items():
            if cell is not None and len(cell) > MAX_LINE_BYTES:
                raise _Unusable("cell-too-long", name)
        unit = _needed(self._unit(cells), fields.unit)
        canonical = self._checked_unit(unit)
        question = _needed(self._question(cells), fields.question)
        places = _places(fields.choices, self._fixed, cells)
        choices = tuple(choice for choice in places if choice is not None)
        if places:
            _check_choices(choices, fields.choices)
        answer = _answer(
            _needed(self._answer(cells), fields.answer), places, choices, fields.answer
        )
        rationale = None if self._rationale is None else self._rationale(cells)
        if rationale is not None and not rationale.strip():
            rationale = None
        if rationale is not None:
            _check_text(rationale, fields.rationale)
        told = (unit, question, choices, answer, rationale)
        record_id = self._made_id(told) if self._id is None else _needed(self._id(cells), fields.id)
        record = Record(
            record_id=record_id,
            unit=unit,
            question=question,
            choices=choices,
            answer=answer,
            rationale=rationale,
        )
        return Candidate(row.line, record, canonical)

    def _checked_unit(self, unit: str) -> str:
        canonical = self._canonical(unit)
        column = _column(self._fields.unit)
        if looks_missing(canonical) and self._fields.unit.missing_like == "refuse":
            raise _Unusable("unit-looks-missing", column)
        if _EXPONENT.fullmatch(unit):
            raise _Unusable("unit-in-exponent-form", column)
        return canonical

    def _made_id(self, told: tuple[object, ...]) -> str:
        content = json.dumps(told, ensure_ascii=True).encode("ascii")
        mac = hmac.new(self._key, b"lada/record-id/1/" + content, hashlib.sha256)
        return mac.hexdigest()[: 2 * _ID_BYTES]


def record_line(record: Record) -> bytes:
    """A record as the line of a file that is written, with its end."""
    # By hand: `asdict` copies deeply, and that took a quarter of an import.
    fields = {
        "record_id": record.record_id,
        "unit": record.unit,
        "question": record.question,
        "choices": record.choices,
        "answer": record.answer,
        "rationale": record.rationale,
    }
    return canonical_json(fields) + b"\n"


def _column(field: TextField | None) -> str:
    """The column to name beside a fault of a field: its own, or all of a template's."""
    return "" if field is None else " ".join(field.columns())


def _reader(field: TextField) -> _Read:
    """The text of a field in a row's cells; None where its cell is empty."""
    read: _Read
    if field.template is not None:
        template = RowTemplate(field.template)

        def read(cells: Cells) -> str | None:
            try:
                return template.fill(cells)
            except Unusable as error:
                empty = [name for name in template.columns if not cells.get(name)]
                named = empty if error.reason == "cell-empty" else template.columns
                raise _Unusable(error.reason, " ".join(named)) from error
    elif field.column is not None:
        column = field.column

        def read(cells: Cells) -> str | None:
            return cells.get(column)
    else:

        def read(cells: Cells) -> str | None:
            return field.constant

    return _translated(read, field) if field.values or field.strip else read


def _translated(read: _Read, field: TextField) -> _Read:
    def translated(cells: Cells) -> str | None:
        text = read(cells)
        if text is None:
            return None
        text = text.strip() if field.strip else text
        if not field.values:
            return text
        if text not in field.values:
            raise _Unusable("value-unknown", _column(field))
        return field.values[text]

    return translated


def _needed(text: str | None, field: TextField | None) -> str:
    if text is None or not text.strip():
        raise _Unusable("cell-empty", _column(field))
    _check_text(text, field)
    return text


def _check_text(text: str, field: TextField | None) -> None:
    if _CONTROL.search(text):
        raise _Unusable("control-character", _column(field))


def _places(field: ChoicesField | None, fixed: tuple[str, ...] | None, cells: Cells) -> _Places:
    if field is None:
        return ()
    if fixed is not None:
        return fixed
    if field.column is None:
        return tuple(_place(cells.get(name), name, field) for name in field.columns)
    cell = cells.get(field.column)
    if cell is None or not cell.strip():
        raise _Unusable("cell-empty", field.column)
    try:
        texts = _listed(cell) if field.json_list else _separated(cell, str(field.separator))
    except (ValueError, csv.Error, RecursionError) as error:
        raise _Unusable("choices-unreadable", field.column) from error
    return tuple(_place(text, field.column, field) for text in texts)


def _place(text: str | None, column: str, field: ChoicesField) -> str | None:
    if text is None or not text.strip():
        if field.empty == "refuse":
            raise _Unusable("cell-empty", column)
        return None
    if _CONTROL.search(text):
        raise _Unusable("control-character", column)
    return text


def _listed(cell: str) -> list[str]:
    found = json.loads(cell, parse_float=str, parse_int=str)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError
    return found


def _separated(cell: str, separator: str) -> list[str]:
    """The texts between separators, without the white space around them."""
    if len(separator) > 1:
        return [part.strip() for part in cell.split(separator)]
    # One line, so that a line break in a choice is no new row.
    reader = csv.reader([cell.strip()], delimiter=separator, strict=True, skipinitialspace=True)
    (parts,) = reader
    return [part.strip() for part in parts]


def _check_choices(choices: Sequence[str], field: ChoicesField | None) -> None:
    column = "" if field is None else " ".join(field.named())
    wanted = None if field is None else field.count
    if not 2 <= len(choices) <= MAX_CHOICES or (wanted is not None and len(choices) != wanted):
        raise _Unusable("choices-count", column)
    if len(set(choices)) != len(choices):
        raise _Unusable("choices-repeat", column)


def _answer(stated: str, places: _Places, choices: Sequence[str], field: AnswerField) -> str:
    column = _column(field)
    if not places:
        if looks_missing(canonical_unit(stated)) and field.missing_like == "refuse":
            raise _Unusable("answer-looks-missing", column)
        if len(stated.splitlines()) > 1:
            raise _Unusable("answer-of-many-lines", column)
        return stated
    if field.stands_as != "text":
        return _at_place(stated.strip(), places, field)
    if stated in choices:
        return stated
    near = [choice for choice in choices if _folded(choice) == _folded(stated)]
    if len(near) != 1:
        raise _Unusable("answer-not-among-choices", column)
    if field.match == "exact":
        raise _Unusable("answer-differs-by-case-or-space", column)
    return near[0]


def _at_place(stated: str, places: _Places, field: AnswerField) -> str:
    if field.stands_as == "letter":
        place = _LETTERS.find(stated.upper()) if len(stated) == 1 else -1
    elif re.fullmatch(r"[0-9]{1,2}", stated, re.ASCII):
        place = int(stated) - (field.stands_as == "number from 1")
    else:
        place = -1
    choice = places[place] if 0 <= place < len(places) else None
    if choice is None:
        raise _Unusable("answer-no-place", _column(field))
    return choice


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def check_constants(fields: RecordFields) -> None:
    """What no row can mend: constant choices that make no question.

    Raises: ParameterError.
    """
    fixed = () if fields.choices is None else fields.choices.constant
    if fixed:
        try:
            _check_choices([_place(one, "", fields.choices) or "" for one in fixed], fields.choices)  # type: ignore[arg-type]
        except _Unusable as error:
            raise ParameterError(
                f"record.choices.constant: {error.reason}; expected 2 to {MAX_CHOICES} different "
                "texts, none blank"
            ) from error
