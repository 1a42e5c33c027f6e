"""Excel workbooks (.xlsx, .xlsm), by openpyxl in its streaming mode.

A cell is what is stored, not what is shown: a percentage of 5% is 0.05, an id shown as 007 by its
number format is 7. Dates are days or moments in ISO 8601, formulas are their last results.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from xml.etree import ElementTree

from lada_secure.data.importing.delimited import is_header
from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source, text_of
from lada_secure.errors import LadaError, ParameterError, TransportError

_FORMULA: Final = re.compile(rb"<(?:\w+:)?f[\s/>]")
_CHUNK: Final = 1024 * 1024


def open_workbook(path: Path, settings: SourceSettings) -> Source:
    """Open one sheet of a workbook, its names in the first row behind `skip_lines`.

    Raises: ParameterError: openpyxl is missing, no such workbook, several sheets and none named, no
        header, one name twice.
    """
    with _opened(path) as book:
        # A sheet that is one chart has no rows.
        sheets = [one.title for one in book.worksheets]
        sheet = _sheet_name(sheets, path, settings)
        names = _header(_values(book[sheet]), path, settings)

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        with _opened(path) as book:
            _check_results(book[sheet]._get_source, names, needed, path)
            yield from _rows(_values(book[sheet]), names, settings, needed)

    # Without its name: what is said here stands in the report that others may see.
    said = f"Excel, one of {len(sheets)} sheet(s), {len(names)} columns"
    return Source(columns=tuple(name for name in names if name), said=(said,), read=read)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The workbook. Raises: ParameterError, TransportError: whatever happens while it is read."""
    try:
        import openpyxl
    except ImportError as error:
        raise ParameterError(
            f"{path}: openpyxl is needed for Excel files; pip install 'lada-secure[import]'"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            yield book
        finally:
            book.close()
    except LadaError:
        raise
    except OSError as error:
        raise TransportError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        # openpyxl has no error of its own for most of what a damaged workbook does to it.
        raise ParameterError(
            f"cannot read {path} as .xlsx ({type(error).__name__}); save it again as .xlsx or CSV"
        ) from error


def _sheet_name(names: list[str], path: Path, settings: SourceSettings) -> str:
    if settings.sheet is None and len(names) == 1:
        return names[0]
    if settings.sheet not in names:
        if not names:
            raise ParameterError(f"{path}: has no sheet with rows")
        raise ParameterError(
            f"{path}: has the sheets {', '.join(names)}; name one as [source] sheet (`lada data "
            f"map`: --sheet){'' if settings.sheet is None else f', got {settings.sheet!r}'}"
        )
    return str(settings.sheet)


def _text(value: object) -> str | None:
    # A spreadsheet knows moments alone; midnight is how it stores a day.
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return text_of(value)


def _values(sheet: Any) -> Iterator[tuple[Any, ...]]:
    # What a workbook says of its own size is often wrong.
    sheet.reset_dimensions()
    yield from sheet.iter_rows(values_only=True)


def _check_results(
    open_xml: Callable[[], IO[bytes]],
    names: list[str | None],
    needed: frozenset[str],
    path: Path,
) -> None:
    """Raises: ParameterError: a cell that is needed is a formula, and the file has no result of it.

    Programs that write workbooks leave results out, and such a cell looks like an empty one.
    """
    with open_xml() as xml:
        if not _holds(xml, _FORMULA):
            return
    with open_xml() as xml:
        for row, column in _without_result(xml):
            name = names[column - 1] if column <= len(names) else None
            if name in needed:
                raise ParameterError(
                    f"{path}:{row}: column {name!r} is a formula whose result is not in the file; "
                    "open it in a spreadsheet program and save it again. Nothing was imported"
                )


def _holds(file: IO[bytes], sign: re.Pattern[bytes]) -> bool:
    end = b""
    while chunk := file.read(_CHUNK):
        if sign.search(end + chunk):
            return True
        end = chunk[-_CHUNK // 64 :]
    return False


def _without_result(xml: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Row and column, from 1, of every formula without a result."""
    row = column = 0
    # Entities that grow are refused by expat itself, and openpyxl has read the file before.
    for event, element in ElementTree.iterparse(xml, events=("start", "end")):  # noqa: S314
        kind = element.tag.rpartition("}")[2]
        if kind == "row" and event == "start":
            row, column = int(element.get("r", row + 1)), 0
        elif kind == "row":
            element.clear()
        elif kind == "c" and event == "end":
            column = _place(element.get("r", ""), column + 1)
            inner = {one.tag.rpartition("}")[2]: one.text for one in element}
            # An empty text that was calculated is a result, and says that it is a text.
            if "f" in inner and not inner.get("v") and element.get("t") != "str":
                yield row, column


def _place(reference: str, expected: int) -> int:
    """The column of a reference, as 28 of AB7."""
    place = 0
    for letter in reference.rstrip("0123456789").upper():
        place = 26 * place + ord(letter) - ord("A") + 1
    return place or expected


def _header(
    rows: Iterator[tuple[Any, ...]], path: Path, settings: SourceSettings
) -> list[str | None]:
    for _ in range(settings.skip_lines):
        next(rows, ())
    names = [_text(value) for value in next(rows, ())]
    if not any(names):
        raise ParameterError(
            f"{path}: row {settings.skip_lines + 1} holds no column names; say how many rows stand "
            "above them as [source] skip_lines"
        )
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise ParameterError(
            f"{path}: {len(twice)} column name(s) stand twice, first in column "
            f"{names.index(twice[0]) + 1}; give each column a name of its own"
        )
    return names


def _rows(
    rows: Iterator[tuple[Any, ...]],
    names: list[str | None],
    settings: SourceSettings,
    needed: frozenset[str],
) -> Iterator[Row | Reject]:
    first = settings.skip_lines + 1
    for line, values in enumerate(rows, start=1):
        # Empty rows are what is left of a table that was once longer.
        if line <= first or all(value is None for value in values):
            continue
        cells = dict.fromkeys(needed)
        over = [value for value in values[len(names) :] if value is not None]
        if over:
            yield Reject(line, "too-many-columns")
            continue
        found = dict(zip(names, values, strict=False))
        texts = {name: _text(value) for name, value in found.items() if name in needed}
        if is_header([_text(value) for value in values[: len(names)]], names):
            yield Reject(line, "header-again")
        else:
            yield Row(line, {**cells, **texts})
