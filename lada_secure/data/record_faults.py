"""What is wrong with a file of records or pool samples: every fault, by line, never by content.

The messages go to the screen of the party whose file it is. They name lines and the fields of the
format; never a value, an id, or a key that the format does not have (it may be a person's name).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.errors import ParameterError

MAX_LINE_BYTES: Final = 64 * 1024
# More would scroll the first ones off the screen.
SHOWN_FAULTS: Final = 20
_SHOWN_LINES: Final = 8

Wanted: TypeAlias = Mapping[str, type | tuple[type, ...]]
_JSON_NAMES: Final[Mapping[type, str]] = {
    str: "text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. line: from 1, None for the file as a whole. what: without any content."""

    line: int | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line that has the wanted fields. `choices` is a tuple of texts."""

    line: int
    fields: Mapping[str, object]


class _DuplicateKey(Exception):
    """Ends the parsing of an object with the same key twice; which value counts is unclear."""


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def rows_of(raw: bytes, wanted: Wanted) -> tuple[list[Row], list[Fault]]:
    """Parse JSON Lines. Returns: the good lines, and the faults of all others."""
    rows: list[Row] = []
    faults: list[Fault] = []
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return [], [Fault(line=None, what="is UTF-16; save it as UTF-8")]
    if raw.startswith(b"\xef\xbb\xbf"):
        faults.append(
            Fault(line=1, what="begins with a byte-order mark; save the file as UTF-8 without one")
        )
        raw = raw[3:]
    if not raw.strip():
        return [], [*faults, Fault(line=None, what="holds no line; at least one is needed")]
    for line, text in enumerate(raw.splitlines(), start=1):
        fields = _fields(text, wanted)
        if isinstance(fields, str):
            faults.append(Fault(line=line, what=fields))
        else:
            rows.append(Row(line=line, fields=fields))
    return rows, faults


def _fields(text: bytes, wanted: Wanted) -> dict[str, object] | str:
    """The fields of a line, or what is wrong with it."""
    if len(text) > MAX_LINE_BYTES:
        return f"has {len(text)} bytes, at most {MAX_LINE_BYTES}"
    try:
        plain = text.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start + 1} of the line)"
    try:
        row = json.loads(plain, object_pairs_hook=_object)
    except _DuplicateKey:
        return "has the same key twice"
    except json.JSONDecodeError as error:
        return f"is not JSON (column {error.colno})"
    except (ValueError, RecursionError):
        return "is not JSON that can be read"
    if not isinstance(row, dict):
        return f"is {_JSON_NAMES[type(row)]}, expected an object"
    return _wrong_fields(row, wanted) or {**row, "choices": tuple(row["choices"])}


def _wrong_fields(row: Mapping[str, object], wanted: Wanted) -> str | None:
    missing = [name for name in wanted if name not in row]
    unknown = len(set(row) - set(wanted))
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"has {unknown} unknown key(s)"] if unknown else []
        return f"{' and '.join(wrong)}; expected the keys {', '.join(wanted)}"
    for name, kinds in wanted.items():
        if not isinstance(row[name], kinds):
            expected = kinds if isinstance(kinds, tuple) else (kinds,)
            return (
                f"{name} is {_JSON_NAMES[type(row[name])]}, expected "
                f"{' or '.join(_JSON_NAMES[one] for one in expected)}"
            )
    choices = row["choices"]
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        return "choices holds something else than texts"
    for name, value in row.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and not _encodable(one) for one in texts):
            return f"{name} holds half of a character (a lone surrogate), which no file can store"
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def content_faults(rows: Sequence[Row], *, id_field: str, id_is_public: bool) -> list[Fault]:
    """What is wrong with lines that have the right form: texts, choices, answers, repeated ids.

    Args: id_is_public: whether a repeated id may be named.
    """
    faults: list[Fault] = []
    first: dict[object, int] = {}
    for row in rows:
        faults += [Fault(line=row.line, what=what) for what in _question_faults(row.fields)]
        own = row.fields[id_field]
        if not str(own).strip():
            faults.append(Fault(line=row.line, what=f"{id_field} is empty"))
        elif own in first:
            named = f" {own!r}" if id_is_public else ""
            faults.append(
                Fault(line=row.line, what=f"repeats the {id_field}{named} of line {first[own]}")
            )
        first.setdefault(own, row.line)
    return faults


def _question_faults(fields: Mapping[str, object]) -> list[str]:
    answer, choices = str(fields["answer"]), fields["choices"]
    faults = [
        f"{name} is empty"
        for name in ("question", "answer", "rationale")
        if isinstance(fields.get(name), str) and not str(fields[name]).strip()
    ]
    if not isinstance(choices, tuple) or not choices:
        if len(answer.splitlines()) > 1:
            faults.append("the answer of an open question must stand in one line")
        return faults
    if not 2 <= len(choices) <= MAX_CHOICES:
        faults.append(f"choices: expected 2 to {MAX_CHOICES}, or none at all, got {len(choices)}")
    if len(set(choices)) != len(choices):
        faults.append("choices holds the same text twice")
    if not all(one.strip() for one in choices):
        faults.append("choices holds an empty text")
    if answer not in choices:
        faults.append("the answer is not among the choices")
    return faults


def lines_text(lines: Sequence[int]) -> str:
    """Line numbers for a message: the first few, and how many more there are."""
    shown = ", ".join(str(one) for one in lines[:_SHOWN_LINES])
    more = len(lines) - _SHOWN_LINES
    return f"{shown} and {more} more" if more > 0 else shown


def refuse(faults: Sequence[tuple[str, Fault]]) -> None:
    """End with one message over all faults; nothing happens where there is none.

    Args: faults: file name and fault, in the order to show them.
    Raises: ParameterError: the first 20, a line each, and how many more there are.
    """
    if not faults:
        return
    shown = [
        f"{name}: {one.what}" if one.line is None else f"{name}:{one.line}: {one.what}"
        for name, one in faults[:SHOWN_FAULTS]
    ]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"and {len(faults) - SHOWN_FAULTS} more faults")
    raise ParameterError("\n".join(shown))


def too_long_faults(lines: Sequence[int], tokens: Sequence[int], *, at_most: int) -> list[Fault]:
    """Lines whose texts need more tokens than a model takes."""
    return [
        Fault(line=line, what=f"too long for the model: needs {needed} tokens, at most {at_most}")
        for line, needed in zip(lines, tokens, strict=True)
        if needed > at_most
    ]
