"""A first mapping from a look at a source: what was guessed is said, what cannot be told is open.

Nothing here is used by an import. A guess becomes true when somebody has read the file that this
module writes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Final

from lada_secure.data.importing.conversion import folded_choice
from lada_secure.data.importing.kind_guessing import kind_remarks
from lada_secure.data.importing.mapping import FORMAT, SourceSettings
from lada_secure.data.importing.rows import ListOfObjects, Row
from lada_secure.data.importing.source_guessing import (
    Notes,
    guessed_source,
    quoted,
    source_lines,
)
from lada_secure.data.importing.sources import LOOKED_AT, open_source
from lada_secure.errors import ParameterError, TransportError

# What columns are called that hold these things, the likeliest first.
_CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    "id": (
        "record_id",
        "id",
        "_id",
        "case_id",
        "case",
        "qid",
        "question_id",
        "pubid",
        "uuid",
        "uid",
    ),
    "unit": (
        *("unit", "patient_id", "patient", "person_id", "subject_id", "mrn", "pat_id"),
        *("customer_id", "customer", "client_id", "user_id", "subject.reference"),
        *("patient.reference", "person", "subject"),
    ),
    "question": (
        *(
            "question",
            "prompt",
            "query",
            "stem",
            "text",
            "sentence",
            "note",
            "note.0.text",
            "input",
        ),
        *("instruction", "frage"),
    ),
    "answer": (
        *("answer_idx", "answer", "label", "cop", "final_decision", "target", "correct"),
        *("correct_answer", "right", "gold", "output", "code.text", "antwort"),
    ),
    "rationale": ("rationale", "exp", "explanation", "reasoning", "long_answer", "begruendung"),
    "choices": ("choices", "options", "alternatives", "choices.text"),
}
# One column a choice, by how they are numbered.
_NUMBERED: Final = (
    *("op{}", "option_{}", "option{}", "options.{}", "choice_{}", "choice{}", "ending{}"),
    *("answer_{}", "{}"),
)
_SIGNS: Final = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789")
_COMMA: Final = re.compile(r"[+-]?[0-9]{1,3}(?:\.?[0-9]{3})*,[0-9]+")
_DATE: Final = re.compile(r"[0-9]{1,2}([./-])[0-9]{1,2}\1[0-9]{2,4}")
_TYPE: Final = "resourceType"
_MOSTLY: Final = 0.8
_KEPT: Final = (
    (_COMMA, "numbers with a comma", "number(decimal=',', thousands='.')"),
    (_DATE, "dates, day or month first", "date('%d.%m.%Y')"),
)
_PRESETS: Final = resources.files("lada_secure.data.importing") / "presets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A first mapping. guessed: what was found out. open: what somebody must fill in."""

    text: str
    guessed: tuple[str, ...]
    open: tuple[str, ...]


def presets() -> tuple[str, ...]:
    """Names of the ready mappings."""
    return tuple(
        sorted(one.name.removesuffix(".toml") for one in _PRESETS.iterdir() if one.is_file())
    )


def preset_mapping(name: str) -> str:
    """A ready mapping for a public set or a usual table. Raises: ParameterError: no such."""
    if name not in presets():
        raise ParameterError(f"--preset: expected one of {', '.join(presets())}, got {name!r}")
    return (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def write_new(path: Path, text: str) -> None:
    """Write a mapping that is not there yet. Raises: ParameterError: it is. TransportError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ParameterError(f"{path}: is there already; name another file") from error
    except OSError as error:
        raise TransportError(f"cannot write {path}: {error.strerror}") from error


def first_mapping(source: str, *, query: str | None, sheet: str | None = None) -> Guess:
    """Look at the first rows of a source.

    Args: query: of a database. sheet: of a workbook, or the split of a saved dataset.
    Raises: ParameterError: it cannot be read at all.
    """
    notes = Notes()
    settings = guessed_source(source, query, sheet, notes)
    opened = open_source(source, settings)
    notes.guessed += opened.said
    found = list(islice(opened.read(_all(opened.columns)), LOOKED_AT))
    rows = [row for row in found if isinstance(row, Row)]
    if len(rows) < len(found):
        notes.open.append(f"{len(found) - len(rows)} of the first {len(found)} rows are no rows")
    settings, rows = _of_one_type(settings, rows, notes)
    names = list(opened.columns or dict.fromkeys(name for row in rows for name in row.cells))
    # They are no text that a question or an answer could be; what lies in them has its own columns.
    listed = {name for row in rows for name, one in row.cells.items() if _is_objects(one)}
    names = [name for name in names if name not in listed]
    lines = [f'format = "{FORMAT}"', "", *source_lines(settings), "[record]"]
    lines += _record_lines(names, rows, notes)
    lines += [
        "",
        "[split]",
        "held_out = 0.2  # share of units whose records are kept for tests",
        "",
    ]
    lines += _remarks(names, rows)
    lines += _kind_remarks(names, rows)
    return Guess(text="\n".join(lines) + "\n", guessed=tuple(notes.guessed), open=tuple(notes.open))


def _all(columns: Sequence[str] | None) -> frozenset[str]:
    return frozenset(columns or ())


def _is_objects(text: str | None) -> bool:
    return isinstance(text, ListOfObjects)


def _of_one_type(
    settings: SourceSettings, rows: list[Row], notes: Notes
) -> tuple[SourceSettings, list[Row]]:
    """The rows of one type of resource, where a FHIR file has several."""
    counts = Counter(kind for row in rows if (kind := row.cells.get(_TYPE)))
    if len(counts) < 2:
        return settings, rows
    # A type whose resources are of somebody, and not the people themselves.
    of_people = Counter(
        row.cells[_TYPE] for row in rows if _column(list(row.cells), _CALLED["unit"]) is not None
    )
    (chosen, _), *_ = (of_people or counts).most_common()
    told = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
    notes.open.append(f"only: resources of several types ({told}); {chosen} is taken, is it right?")
    return (
        settings.model_copy(update={"only": {_TYPE: chosen}}),
        [row for row in rows if row.cells.get(_TYPE) == chosen],
    )


def _record_lines(names: Sequence[str], rows: Sequence[Row], notes: Notes) -> Iterator[str]:
    found = {what: _column(names, called) for what, called in _CALLED.items()}
    numbered = _numbered(names)
    if found["id"] is None or not _unique(found["id"], rows):
        yield '# id = "..."  # a column whose values stay; without it ids are made from the record'
    else:
        yield _line("id", quoted(found["id"]), "guessed by its name, no value twice so far")
        notes.guessed.append(f"id is {found['id']}")
    for what in ("unit", "question"):
        yield from _named_line(what, found[what], notes)
    choices: Callable[[Row], list[str | None]] | None = None
    if numbered:
        yield _line("choices", json.dumps(list(numbered), ensure_ascii=False), "guessed by name")
        notes.guessed.append(f"choices are {', '.join(numbered)}")
        choices = lambda row: [row.cells.get(name) for name in numbered]  # noqa: E731
    elif found["choices"] is not None:
        yield from _one_cell_lines(found["choices"], rows, notes)
    else:
        yield '# choices = ["a", "b"]  # columns; leave it out for open questions'
    yield from _answer_lines(found["answer"], choices, rows, notes)
    if found["rationale"] is not None:
        yield from _named_line("rationale", found["rationale"], notes)


def _named_line(what: str, column: str | None, notes: Notes) -> Iterator[str]:
    if column is None:
        yield f'# {what} = "..."  # OPEN: name its column'
        notes.open.append(f"{what}: no column is called so; name it")
    else:
        yield _line(what, quoted(column), "guessed by its name")
        notes.guessed.append(f"{what} is {column}")


def _one_cell_lines(column: str, rows: Sequence[Row], notes: Notes) -> Iterator[str]:
    texts = [text for row in rows if (text := row.cells.get(column))]
    if texts and all(text.startswith("[") for text in texts):
        yield _line("choices", f"{{ column = {quoted(column)}, json = true }}", "lists of JSON")
        notes.guessed.append(f"choices are lists in {column}")
        return
    sign = max("|;,\n", key=lambda one: min((text.count(one) for text in texts), default=0))
    value = f"{{ column = {quoted(column)}, separator = {quoted(sign)} }}"
    yield _line("choices", value, "OPEN: is this what stands between them?")
    notes.open.append(f"choices: what separates them in {column}?")


def _answer_lines(
    column: str | None,
    choices: Callable[[Row], list[str | None]] | None,
    rows: Sequence[Row],
    notes: Notes,
) -> Iterator[str]:
    if column is None or choices is None:
        yield from _named_line("answer", column, notes)
        return
    pairs = [(text.strip(), choices(row)) for row in rows if (text := row.cells.get(column))]
    fits = [name for name, right in _STANDS.items() if pairs and all(right(*one) for one in pairs)]
    if len(fits) == 1:
        value = f"{{ column = {quoted(column)}, stands_as = {quoted(fits[0])} }}"
        yield _line("answer", value, f"so in all of {len(pairs)} rows")
        notes.guessed.append(f"answer is {column}, as {fits[0]}")
        return
    if pairs and all(any(_alike(text, one) for one in there) for text, there in pairs):
        others = sum(text not in there for text, there in pairs)
        value = f'{{ column = {quoted(column)}, match = "folded" }}'
        yield _line("answer", value, f"OPEN: {others} of {len(pairs)} differ by case or space")
        notes.open.append(f"answer: {others} differ from a choice by case or space alone")
        return
    value = f'{{ column = {quoted(column)}, stands_as = "text" }}'
    told = f"as {' or '.join(fits)}" if fits else "in no way that fits all rows"
    yield _line("answer", value, f"OPEN: it stands {told}")
    notes.open.append(f"answer: {column} stands {told}")


def _alike(text: str, choice: str | None) -> bool:
    return choice is not None and folded_choice(choice) == folded_choice(text)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


_STANDS: Final[Mapping[str, Callable[[str, Sequence[str | None]], bool]]] = {
    "text": lambda text, choices: text in choices,
    "letter": lambda text, choices: (
        len(text) == 1 and 0 <= _SIGNS[0].find(text.lower()) < len(choices)
    ),
    "number from 0": lambda text, choices: 0 <= _number(text) < len(choices),
    "number from 1": lambda text, choices: 1 <= _number(text) <= len(choices),
}


def _remarks(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """What is kept as it is spelled, though it could be meant as a number or a date."""
    for name in names:
        texts = [text for row in rows if (text := row.cells.get(name))]
        for form, what, read in _KEPT:
            if texts and sum(form.fullmatch(text) is not None for text in texts) > _MOSTLY * len(
                texts
            ):
                # As JSON: a line break in a name would end the comment.
                yield (
                    f"# {json.dumps(name)}: looks like {what}, and stays text. In a template: "
                    f"{{{{ row[{json.dumps(name)}] | {read} }}}}"
                )


def _kind_remarks(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    answer = _column(names, _CALLED["answer"])
    if answer is None or _numbered(names) or _column(names, _CALLED["choices"]) is not None:
        return
    yield from kind_remarks([text for row in rows if (text := row.cells.get(answer))])


def _column(names: Sequence[str], called: Sequence[str]) -> str | None:
    folded = {name.casefold().strip().replace(" ", "_"): name for name in reversed(names)}
    return next((folded[one] for one in called if one in folded), None)


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    best: tuple[str, ...] = ()
    for form in _NUMBERED:
        for signs in _SIGNS:
            for first in (0, 1):
                found: list[str] = []
                for sign in signs[first:]:
                    if form.format(sign) not in names:
                        break
                    found.append(form.format(sign))
                if len(found) > max(1, len(best)) and (first == 0 or signs[0].isdigit()):
                    best = tuple(found)
    return best


def _unique(column: str, rows: Sequence[Row]) -> bool:
    texts = [row.cells.get(column) for row in rows]
    return all(texts) and len(set(texts)) == len(texts)


def _line(key: str, value: str, remark: str) -> str:
    return f"{key} = {value}  # {remark}"
