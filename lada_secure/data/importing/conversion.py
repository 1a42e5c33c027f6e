"""One row becomes one record, or a reject that says why and in which column.

What is refused here is at least what the form of records refuses (`record_faults`), told more
exactly; that parser has the last word over every line that is written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from lada_secure.data.importing.choice_lists import listed, separated
from lada_secure.data.importing.mapping import (
    AnswerField,
    AnyMapping,
    ChoicesField,
    Mapping,
    QuestionFields,
    TaskSettings,
    TextField,
)
from lada_secure.data.importing.rows import Cells, ListOfObjects, Reject, Row
from lada_secure.data.importing.templates import (
    NUMERAL,
    Unusable,
    row_template,
    with_plain_number,
)
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.record_faults import MAX_LINE_BYTES
from lada_secure.data.record_oddities import CONTROL
from lada_secure.data.records import Record
from lada_secure.data.unit_ids import (
    canonical_unit,
    is_missing_word,
    is_spreadsheet_error,
    looks_missing,
    names_nobody,
)
from lada_secure.data.verification import normalised, read_number
from lada_secure.errors import ParameterError

# What a spreadsheet makes of a long number; its last digits are lost, and people with it.
_EXPONENT: Final = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+?[0-9]+")
# A thousand and something to one reader, one and something to another.
_EITHER_SIGN: Final = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")
# As in "5 to 6 mg"; a unit that has one is named in the mapping.
_ANOTHER_NUMBER: Final = re.compile(r"\s[0-9]")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_BYTES: Final = 12
_REMEMBERED: Final = 20_000
Read: TypeAlias = Callable[[Cells], "str | None"]
# Choices by their place in the source; None is one that was left out.
_Places: TypeAlias = Sequence["str | None"]


class UnusableRow(Exception):
    """What is wrong with a row, and in which column. reason: of `REASONS`."""

    def __init__(self, reason: str, column: str) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


class Question(NamedTuple):
    """What a record and a sample of the pool have in common."""

    question: str
    choices: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may be written, if the rest of the table agrees.

    canonical: its unit as units are compared.
    """

    line: int
    record: Record
    canonical: str


class QuestionReader:
    """Reads questions with their choices and answers out of rows."""

    def __init__(self, mapping: AnyMapping) -> None:
        fields = mapping.record
        self._answer_field, self._choices = fields.answer, fields.choices
        self._question_field, self._task = fields.question, mapping.task
        self._question, self._answer = text_reader(fields.question), text_reader(fields.answer)
        template = fields.answer.template
        self._has_plain_numbers = (
            template is not None and "number" in row_template(template).filters
        )
        self._fixed = None if fields.choices is None else fields.choices.constant or None

    def read(self, cells: Cells) -> Question:
        """The question of a row. Raises: UnusableRow."""
        for name, cell in cells.items():
            if cell is not None and len(cell) > MAX_LINE_BYTES:
                raise UnusableRow("cell-too-long", name)
        question = meant(self._question(cells), self._question_field)
        places = _places(self._choices, self._fixed, cells)
        choices = tuple(choice for choice in places if choice is not None)
        if places:
            _check_choices(choices, self._choices)
        stated = needed(self._answer(cells), self._answer_field)
        answer = _answer(stated, places, choices, self._answer_field)
        if self._task is not None and self._task.kind == "number":
            answer = _number_answer(
                answer, self._task, self._answer_field, plain=self._has_plain_numbers
            )
        return Question(question, choices, answer)


class Converter:
    """Makes records of rows by the fields of a mapping.

    key: secret and stable over imports; record ids that are made from a record's text are keyed
    with it, for a bare hash could be confirmed by whoever guesses the text.
    """

    def __init__(self, mapping: Mapping, *, key: bytes) -> None:
        fields = mapping.record
        self._fields, self._key = fields, key
        self._task = None if mapping.task is None else mapping.task.task()
        self._unit = text_reader(fields.unit)
        self._reads = QuestionReader(mapping)
        self._rationale = None if fields.rationale is None else text_reader(fields.rationale)
        self._id = None if fields.id is None else text_reader(fields.id)
        # People come again and again, often in rows that follow one another.
        self._canonical = lru_cache(maxsize=_REMEMBERED)(canonical_unit)

    def convert(self, row: Row) -> Candidate | Reject:
        """The record of a row, or why it has none."""
        try:
            return self._candidate(row)
        except UnusableRow as error:
            return Reject(row.line, error.reason, error.column)

    def _candidate(self, row: Row) -> Candidate:
        fields, cells = self._fields, row.cells
        unit = needed(self._unit(cells), fields.unit)
        canonical = self._checked_unit(unit)
        question, choices, answer = self._reads.read(cells)
        rationale = None if self._rationale is None else self._rationale(cells)
        if rationale is not None and not rationale.strip():
            rationale = None
        if rationale is not None:
            rationale = meant(rationale, fields.rationale)
        told = (unit, question, choices, answer, rationale)
        record_id = self._made_id(told) if self._id is None else meant(self._id(cells), fields.id)
        record = Record(
            record_id=record_id,
            unit=unit,
            question=question,
            choices=choices,
            answer=answer,
            rationale=rationale,
            task=self._task,
        )
        return Candidate(row.line, record, canonical)

    def _checked_unit(self, unit: str) -> str:
        canonical = self._canonical(unit)
        column = _column(self._fields.unit)
        if names_nobody(canonical) and self._fields.unit.missing_like == "refuse":
            raise UnusableRow("unit-looks-missing", column)
        if _EXPONENT.fullmatch(unit):
            raise UnusableRow("unit-in-exponent-form", column)
        return canonical

    def _made_id(self, told: tuple[object, ...]) -> str:
        content = json.dumps(told, ensure_ascii=True).encode("ascii")
        mac = hmac.new(self._key, b"lada/record-id/1/" + content, hashlib.sha256)
        return mac.hexdigest()[: 2 * _ID_BYTES]


def _column(field: TextField | None) -> str:
    """The column to name beside a fault of a field: its own, or all of a template's."""
    return "" if field is None else " ".join(field.columns())


def text_reader(field: TextField) -> Read:
    """The text of a field in a row's cells; None where its cell is empty."""
    read: Read
    if field.template is not None:
        template = row_template(field.template)

        def read(cells: Cells) -> str | None:
            try:
                return template.fill(cells)
            except Unusable as error:
                named = _at_fault(error.reason, template.columns, cells)
                raise UnusableRow(error.reason, " ".join(named)) from error
    elif field.column is not None:
        column = field.column

        def read(cells: Cells) -> str | None:
            return _readable(cells.get(column), column)
    else:

        def read(cells: Cells) -> str | None:
            return field.constant

    return _translated(read, field) if field.values or field.strip else read


def _at_fault(reason: str, columns: Sequence[str], cells: Cells) -> Sequence[str]:
    """The columns of a template that a reject names."""
    if reason == "cell-empty":
        return [name for name in columns if not cells.get(name)]
    if reason == "list-of-objects":
        return [name for name in columns if isinstance(cells.get(name), ListOfObjects)]
    return columns


def _readable(text: str | None, column: str) -> str | None:
    if isinstance(text, ListOfObjects):
        raise UnusableRow("list-of-objects", column)
    return text


def _translated(read: Read, field: TextField) -> Read:
    def translated(cells: Cells) -> str | None:
        text = read(cells)
        if text is None:
            return None
        text = text.strip() if field.strip else text
        if not field.values:
            return text
        if text not in field.values:
            raise UnusableRow("value-unknown", _column(field))
        return field.values[text]

    return translated


def needed(text: str | None, field: TextField | None) -> str:
    """A text that must be there. Raises: UnusableRow."""
    if text is None or not text.strip():
        raise UnusableRow("cell-empty", _column(field))
    check_text(text, field)
    return text


def meant(text: str | None, field: TextField | None) -> str:
    """A text that must be there and say something. Raises: UnusableRow."""
    found = needed(text, field)
    if is_missing_word(found):
        raise UnusableRow("cell-looks-missing", _column(field))
    return found


def check_text(text: str, field: TextField | None) -> None:
    """Raises: UnusableRow: a control character."""
    if CONTROL.search(text):
        raise UnusableRow("control-character", _column(field))


def _places(field: ChoicesField | None, fixed: tuple[str, ...] | None, cells: Cells) -> _Places:
    if field is None:
        return ()
    if fixed is not None:
        return fixed
    if field.column is None:
        return tuple(
            _place(_readable(cells.get(name), name), name, field) for name in field.columns
        )
    cell = cells.get(field.column)
    if cell is None or not cell.strip():
        raise UnusableRow("cell-empty", field.column)
    try:
        texts = listed(cell) if field.json_list else separated(cell, str(field.separator))
    except (ValueError, RecursionError) as error:
        raise UnusableRow("choices-unreadable", field.column) from error
    return tuple(_place(text, field.column, field) for text in texts)


def _place(text: str | None, column: str, field: ChoicesField) -> str | None:
    if text is None or not text.strip():
        if field.empty == "refuse":
            raise UnusableRow("cell-empty", column)
        return None
    if CONTROL.search(text):
        raise UnusableRow("control-character", column)
    # "NA" and "none" may be choices.
    if is_spreadsheet_error(text):
        raise UnusableRow("cell-looks-missing", column)
    return text


def _check_choices(choices: Sequence[str], field: ChoicesField | None) -> None:
    column = "" if field is None else " ".join(field.named())
    wanted = None if field is None else field.count
    if not 2 <= len(choices) <= MAX_CHOICES or (wanted is not None and len(choices) != wanted):
        raise UnusableRow("choices-count", column)
    if len(set(choices)) != len(choices):
        raise UnusableRow("choices-repeat", column)


def _answer(stated: str, places: _Places, choices: Sequence[str], field: AnswerField) -> str:
    column = _column(field)
    if not places:
        if looks_missing(canonical_unit(stated)) and field.missing_like == "refuse":
            raise UnusableRow("answer-looks-missing", column)
        if len(stated.splitlines()) > 1:
            raise UnusableRow("answer-of-many-lines", column)
        return stated
    if field.stands_as != "text":
        return _at_place(stated.strip(), places, field)
    if stated in choices:
        return stated
    near = [choice for choice in choices if folded_choice(choice) == folded_choice(stated)]
    if len(near) != 1:
        raise UnusableRow("answer-not-among-choices", column)
    if field.match == "exact":
        raise UnusableRow("answer-differs-by-case-or-space", column)
    return near[0]


def _number_answer(answer: str, task: TaskSettings, field: AnswerField, *, plain: bool) -> str:
    """The gold answer of a number, in plain digits and a unit that an evaluation can compare.

    Args: plain: whether the mapping's template has read the number already.
    """
    column = _column(field)
    numeral = NUMERAL.search(answer)
    if numeral is None:
        raise UnusableRow("answer-no-number", column)
    if task.decimal is not None:
        try:
            answer = with_plain_number(answer, task.decimal, task.thousands)
        except ValueError as error:
            raise UnusableRow("answer-number-unclear", column) from error
    elif _EITHER_SIGN.fullmatch(numeral.group()) and not plain:
        raise UnusableRow("answer-number-unclear", column)
    found = read_number(answer)
    if found is None:
        unclear = task.decimal is None and not numeral.group().isdigit()
        raise UnusableRow("answer-number-unclear" if unclear else "answer-no-number", column)
    named = task.units or () if task.unit is None else (task.unit,)
    if named and found[1] not in map(normalised, named):
        raise UnusableRow("answer-other-unit", column)
    if not named and _ANOTHER_NUMBER.search(found[1]):
        raise UnusableRow("answer-no-number", column)
    return answer


def _at_place(stated: str, places: _Places, field: AnswerField) -> str:
    if field.stands_as == "letter":
        place = _LETTERS.find(stated.upper()) if len(stated) == 1 else -1
    elif re.fullmatch(r"[0-9]{1,2}", stated, re.ASCII):
        place = int(stated) - (field.stands_as == "number from 1")
    else:
        place = -1
    choice = places[place] if 0 <= place < len(places) else None
    if choice is None:
        raise UnusableRow("answer-no-place", _column(field))
    return choice


def folded_choice(text: str) -> str:
    """A choice without case and repeated white space."""
    return " ".join(text.casefold().split())


def check_constants(fields: QuestionFields) -> None:
    """What no row can mend: constant choices that make no question.

    Raises: ParameterError.
    """
    fixed = () if fields.choices is None else fields.choices.constant
    if fixed:
        try:
            _check_choices([_place(one, "", fields.choices) or "" for one in fixed], fields.choices)  # type: ignore[arg-type]
        except UnusableRow as error:
            raise ParameterError(
                f"record.choices.constant: {error.reason}; expected 2 to {MAX_CHOICES} different "
                "texts, none blank"
            ) from error
