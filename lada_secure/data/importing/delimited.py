"""CSV and TSV: every cell as its text, every row with the line where it begins.

Read by the standard library's `csv`, because no columnar reader says in which line a row stands;
everything else an import does with a row takes longer. What the reader cannot be sure of ends the
import: a quote that was opened and never closed moves the borders of all rows behind it.
"""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import MAX_CELL_CHARACTERS, Reject, Row, Source, is_text
from lada_secure.data.importing.text_files import TextForm, lines_of, open_text, text_form
from lada_secure.errors import ParameterError

DELIMITERS: Final = ",;\t|"
NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# `csv` keeps one limit for the whole process.
_LIMIT: Final = threading.Lock()


def open_delimited(path: Path, settings: SourceSettings) -> Source:
    """Open a file of cells with a header.

    Raises: ParameterError: unreadable, no header, a header that names one column twice or holds
        another delimiter than was named.
    """
    form = text_form(path, settings.encoding)
    delimiter = settings.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    with open_text(path, form) as file:
        _, header = _header(file, path, settings, delimiter)
    _check_header(header, path, delimiter, named=settings.delimiter is not None)
    said = (
        form.said,
        f"delimiter {NAMES.get(delimiter, repr(delimiter))}, {len(header)} columns",
    )

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        return _rows(path, form, settings, delimiter, needed)

    return Source(columns=tuple(header), said=said, read=read)


def _reader(
    file: TextIO, path: Path, settings: SourceSettings, delimiter: str
) -> Iterator[list[str]]:
    lines = lines_of(file, path)
    for _ in range(settings.skip_lines):
        next(lines, "")
    with _LIMIT:
        csv.field_size_limit(MAX_CELL_CHARACTERS)
    return csv.reader(
        lines,
        delimiter=delimiter,
        quotechar=settings.quote or None,
        quoting=csv.QUOTE_MINIMAL if settings.quote else csv.QUOTE_NONE,
        strict=True,
    )


def _header(
    file: TextIO, path: Path, settings: SourceSettings, delimiter: str
) -> tuple[Iterator[list[str]], list[str]]:
    reader = _reader(file, path, settings, delimiter)
    while not (header := _next(reader, path, settings)):
        if header is None:
            raise ParameterError(f"{path}: holds no header; expected the columns' names")
    return reader, header


def _next(reader: Iterator[list[str]], path: Path, settings: SourceSettings) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        line = reader.line_num + settings.skip_lines  # type: ignore[attr-defined]
        raise ParameterError(
            f"{path}:{line}: the quotes are broken ({error}); a quote inside a quoted cell is "
            'written twice; where quotes mean nothing, say quote = "" in [source]'
        ) from error


def _check_header(header: Sequence[str], path: Path, delimiter: str, *, named: bool) -> None:
    if not all(is_text(name) for name in header):
        raise ParameterError(
            f"{path}:1: the header is not in this encoding; name another in [source]; "
            "`lada data map` looks for it"
        )
    # Excel's own line on top of what it writes.
    if header[0].lower().startswith("sep=") and not any(header[1:]):
        sign = header[0][len("sep=") :] or delimiter
        raise ParameterError(
            f"{path}:1: says which delimiter the file has, and the header stands below; say "
            f"delimiter = {json.dumps(sign)} and skip_lines = 1 in [source]"
        )
    blank = [place for place, name in enumerate(header, start=1) if not name.strip()]
    if len(blank) > 1:
        raise ParameterError(
            f"{path}:1: {len(blank)} columns have no name in the header, first column {blank[0]}; "
            "name each column, or say as skip_lines in [source] how many lines stand above the "
            "header"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ParameterError(
            f"{path}:1: {len(twice)} column name(s) stand twice in the header, first in column "
            f"{header.index(twice[0]) + 1}; give each column a name of its own"
        )
    others = [sign for sign in DELIMITERS if sign != delimiter and sign in header[0]]
    if len(header) == 1 and others and not named:
        raise ParameterError(
            f"{path}:1: one column with delimiter {delimiter!r}, and {others[0]!r} stands in the "
            f"header; say delimiter = {others[0]!r} in [source]"
        )


def _rows(
    path: Path,
    form: TextForm,
    settings: SourceSettings,
    delimiter: str,
    needed: frozenset[str],
) -> Iterator[Row | Reject]:
    with open_text(path, form) as file:
        reader, header = _header(file, path, settings, delimiter)
        places = [(place, name) for place, name in enumerate(header) if name in needed]
        skipped, width = settings.skip_lines, len(header)
        while True:
            line = reader.line_num + skipped + 1  # type: ignore[attr-defined]
            cells = _next(reader, path, settings)
            if cells is None:
                return
            # A blank line is no row, unless rows are one cell: then it is an empty one.
            if not cells and width > 1:
                continue
            cells = cells or [""]
            if len(cells) != width:
                few = len(cells) < width
                yield Reject(line, "too-few-columns" if few else "too-many-columns")
            elif is_header(cells, header):
                yield Reject(line, "header-again")
            else:
                yield _row(line, cells, places)


def is_header(cells: Sequence[str | None], header: Sequence[str | None]) -> bool:
    """Whether a row repeats the header; where files were put together it may have a byte-order mark
    of its own, and spaces."""
    return _bare(cells[0]) == _bare(header[0]) and [*map(_bare, cells)] == [*map(_bare, header)]


def _bare(cell: str | None) -> str:
    return (cell or "").replace("\ufeff", "").strip()


def _row(line: int, cells: Sequence[str], places: Sequence[tuple[int, str]]) -> Row | Reject:
    found: dict[str, str | None] = {}
    for place, name in places:
        cell = cells[place]
        if not is_text(cell):
            return Reject(line, "not-in-encoding", name)
        found[name] = cell or None
    return Row(line, found)
