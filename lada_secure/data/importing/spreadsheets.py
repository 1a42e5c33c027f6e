"""Excel workbooks (.xlsx, .xlsm), by openpyxl in its streaming mode.

A cell is what is stored, not what is shown: a percentage of 5% is 0.05, an id shown as 007 by its
number format is 7. Dates are days or moments in ISO 8601, formulas are their last results.
"""

from __future__ import annotations

import datetime
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source, text_of
from lada_secure.errors import ParameterError, TransportError

# Of a workbook that is damaged inside, found only while it is read.
_DAMAGED = (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, EOFError, OSError)


def open_workbook(path: Path, settings: SourceSettings) -> Source:
    """Open one sheet of a workbook, its names in the first row behind `skip_lines`.

    Raises: ParameterError: openpyxl is missing, no such workbook, several sheets and none named, no
        header, one name twice.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise ParameterError(
            f"{path}: openpyxl is needed for Excel files; pip install 'lada-secure[import]'"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (*_DAMAGED, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise ParameterError(
            f"cannot read {path} as .xlsx ({type(error).__name__}); save it again as .xlsx or CSV"
        ) from error
    try:
        sheet = _sheet_name(book.sheetnames, path, settings)
        names = _header(_values(book[sheet]), path, settings)
    finally:
        book.close()

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        opened = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            yield from _rows(_values(opened[sheet]), names, settings, needed)
        except _DAMAGED as error:
            raise TransportError(f"cannot read {path} on ({type(error).__name__})") from error
        finally:
            opened.close()

    said = f"Excel, sheet {sheet!r}, {len(names)} columns"
    return Source(columns=tuple(name for name in names if name), said=(said,), read=read)


def _sheet_name(names: list[str], path: Path, settings: SourceSettings) -> str:
    if settings.sheet is None and len(names) == 1:
        return names[0]
    if settings.sheet not in names:
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
        if [_text(value) for value in values[: len(names)]] == names:
            yield Reject(line, "header-again")
        else:
            yield Row(line, {**cells, **texts})
