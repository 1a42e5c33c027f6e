"""What is wrong with a file of records or pool samples: every fault, by line, never by content.

The messages go to the screen of the party whose file it is. They name lines and the fields of the
format; never a value, an id, or a key that the format does not have (it may be a person's name).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.tasks import Task, parse_task, task_faults
from lada_secure.errors import ParameterError

MAX_LINE_BYTES: Final = 64 * 1024
# More would scroll the first ones off the screen.
SHOWN_FAULTS: Final = 20
_SHOWN_LINES: Final = 8

# By name: what a field may be. The first one is the line's id.
Wanted: TypeAlias = Mapping[str, tuple[type, ...]]
Fields: TypeAlias = Mapping[str, object]
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


class _DuplicateKey(Exception):
    """Ends the parsing of an object with the same key twice; which value counts is unclear."""


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def parse_rows(
    raw: bytes, wanted: Wanted, optional: Wanted, *, id_is_public: bool
) -> tuple[dict[int, Fields], tuple[Fault, ...]]:
    """Parse JSON Lines.

    Args: optional: keys that a line may have as well. id_is_public: whether a repeated id may be
        named.
    Returns: the fields of every line of the right form, by its number, `choices` as a tuple and
        `task` as a `Task`; and all faults by line, those of what such a line says included.
    """
    rows: dict[int, Fields] = {}
    faults: list[Fault] = []
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return {}, (Fault(line=None, what="is UTF-16; save it as UTF-8"),)
    if raw.startswith(b"\xef\xbb\xbf"):
        faults.append(
            Fault(line=1, what="begins with a byte-order mark; save the file as UTF-8 without one")
        )
        raw = raw[3:]
    if not raw.strip():
        faults.append(Fault(line=None, what="holds no line; at least one is needed"))
        raw = b""
    if another := _another_form(raw):
        return {}, (*faults, Fault(line=None, what=another))
    for line, text in enumerate(raw.splitlines(), start=1):
        fields = _fields(text, wanted, optional)
        if isinstance(fields, str):
            faults.append(Fault(line=line, what=fields))
        else:
            rows[line] = fields
    faults += _content_faults(rows, id_field=next(iter(wanted)), id_is_public=id_is_public)
    return rows, tuple(sorted(faults, key=lambda fault: fault.line or 0))


def _another_form(raw: bytes) -> str:
    """What a file is that holds no JSON Lines at all; empty where it may."""
    # Told once: otherwise every line would be told.
    advice = "`lada data import` makes such a file of tables and lists"
    if raw.lstrip().startswith(b"[") and raw.rstrip().endswith(b"]"):
        return f"is one JSON list; expected one JSON object a line, {advice}"
    lines = raw.splitlines()
    if len(lines) > 1 and not any(line.lstrip().startswith(b"{") for line in lines):
        return f"has no line that begins an object; expected one JSON object a line, {advice}"
    return ""


def _fields(text: bytes, wanted: Wanted, optional: Wanted) -> Fields | str:
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
    wrong = _wrong_fields(row, wanted, optional)
    if wrong is not None:
        return wrong
    fields: dict[str, object] = {**row, "choices": tuple(row["choices"])}
    if "task" in row:
        try:
            fields["task"] = parse_task(row["task"])
        except ParameterError as error:
            return str(error)
    return fields


def _wrong_fields(row: Mapping[str, Any], wanted: Wanted, optional: Wanted) -> str | None:
    missing = [name for name in wanted if name not in row]
    unknown = len(set(row) - set(wanted) - set(optional))
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"has {unknown} unknown key(s)"] if unknown else []
        return f"{' and '.join(wrong)}; expected the keys {', '.join(wanted)}"
    for name, kinds in (*wanted.items(), *optional.items()):
        if name in row and not isinstance(row[name], kinds):
            expected = " or ".join(_JSON_NAMES[kind] for kind in kinds)
            return f"{name} is {_JSON_NAMES[type(row[name])]}, expected {expected}"
    if not all(isinstance(choice, str) for choice in row["choices"]):
        return "choices holds something else than texts"
    for name, value in row.items():
        if isinstance(value, dict):
            continue
        texts = value if isinstance(value, list) else [value or ""]
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            return f"{name} holds half of a character (a lone surrogate), which no file can store"
    return None


def _content_faults(
    rows: Mapping[int, Fields], *, id_field: str, id_is_public: bool
) -> Iterator[Fault]:
    """What is wrong with lines of the right form: texts, choices, answers, repeated ids."""
    first: dict[object, int] = {}
    for line, fields in rows.items():
        for what in _question_faults(fields):
            yield Fault(line=line, what=what)
        own = fields[id_field]
        if not str(own).strip():
            yield Fault(line=line, what=f"{id_field} is empty")
        elif own in first:
            named = f" {own!r}" if id_is_public else ""
            yield Fault(line=line, what=f"repeats the {id_field}{named} of line {first[own]}")
        first.setdefault(own, line)


def _question_faults(fields: Fields) -> Iterator[str]:
    answer, choices, task = str(fields["answer"]), fields["choices"], fields.get("task")
    for name in ("question", "answer", "rationale", "licence", "source"):
        if isinstance(fields.get(name), str) and not str(fields[name]).strip():
            yield f"{name} is empty"
    if isinstance(task, Task) and isinstance(choices, tuple):
        unfit = task_faults(task, choices, answer)
        if unfit is not None:
            yield unfit
    if not isinstance(choices, tuple) or not choices:
        if len(answer.splitlines()) > 1:
            yield "the answer of an open question must stand in one line"
        return
    if not 2 <= len(choices) <= MAX_CHOICES:
        yield f"choices: expected 2 to {MAX_CHOICES}, or none at all, got {len(choices)}"
    if len(set(choices)) != len(choices):
        yield "choices holds the same text twice"
    if not all(choice.strip() for choice in choices):
        yield "choices holds an empty text"
    if answer not in choices:
        yield "the answer is not among the choices"


def lines_text(lines: Sequence[int]) -> str:
    """Line numbers for a message: the first few, and how many more there are."""
    shown = ", ".join(str(line) for line in lines[:_SHOWN_LINES])
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
        f"{name}: {fault.what}" if fault.line is None else f"{name}:{fault.line}: {fault.what}"
        for name, fault in faults[:SHOWN_FAULTS]
    ]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"and {len(faults) - SHOWN_FAULTS} more faults")
    raise ParameterError("\n".join(shown))
