"""Which reader a source needs, and whether the columns that a mapping names are there."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from lada_secure.data.importing.databases import is_database, open_query
from lada_secure.data.importing.delimited import open_delimited
from lada_secure.data.importing.json_files import open_json_lines, open_json_list
from lada_secure.data.importing.mapping import Kind, SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source
from lada_secure.data.importing.spreadsheets import open_workbook
from lada_secure.data.importing.text_files import check_there
from lada_secure.errors import ParameterError

_KINDS: Final[Mapping[str, Kind]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".xlsx": "excel",
    ".xlsm": "excel",
}
# So many rows are looked at where only rows tell which columns there are.
LOOKED_AT: Final = 1000


def kind_of(source: str, settings: SourceSettings) -> Kind:
    """The kind of a source: as the mapping says, a database by its address, or by the file's name.

    Raises: ParameterError: none of them, or it may not be looked at.
    """
    if is_database(source):
        return "sql"
    path = Path(source)
    if settings.kind is not None:
        return settings.kind
    try:
        if path.is_dir():
            return "dataset"
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise ParameterError(
            f"{path}: no kind of file is called {path.suffix or 'so'!r}; expected "
            f"{', '.join(_KINDS)}, a folder of save_to_disk or a database's address, or say kind "
            "in [source]"
        )
    return kind


def open_source(source: str, settings: SourceSettings) -> Source:
    """Open a file, a folder or a database. Raises: ParameterError."""
    kind = kind_of(source, settings)
    if kind == "sql":
        return open_query(source, settings)
    path = Path(source)
    check_there(path, folder=kind == "dataset")
    return _OPENERS[kind](path, settings)


def _open_parquet(path: Path, settings: SourceSettings) -> Source:
    # Loaded where it is needed: it takes longer than everything else of a small import.
    from lada_secure.data.importing.arrow_tables import open_parquet

    return open_parquet(path, settings)


def _open_dataset(path: Path, settings: SourceSettings) -> Source:
    from lada_secure.data.importing.arrow_tables import open_dataset

    return open_dataset(path, settings)


_OPENERS: Final[Mapping[Kind, Callable[[Path, SourceSettings], Source]]] = {
    "csv": open_delimited,
    "parquet": _open_parquet,
    "jsonl": open_json_lines,
    "json": open_json_list,
    "excel": open_workbook,
    "dataset": _open_dataset,
}


def rows_with(
    source: Source,
    needed: frozenset[str],
    *,
    spared: frozenset[str],
    only: Mapping[str, str],
    where: str,
) -> Iterator[Row | Reject]:
    """The rows of a source that has the columns a mapping needs.

    Args: spared: needed ones that may be in no row, where only rows tell. only: see `is_wanted`.
        where: the source's name, for messages.
    Raises: ParameterError: a column is not there; of nested rows, in none of the first 1,000.
    """
    if source.columns is not None:
        hint = (
            ". Is there a header, and does it stand in the first line? [source] skip_lines says "
            "how many stand above it"
        )
        _check(needed, source.columns, where, hint)
        return source.read(needed)
    looked = itertools.islice(source.read(frozenset()), LOOKED_AT)
    there = {
        name
        for row in looked
        if isinstance(row, Row) and is_wanted(row, only)
        for name in row.cells
    }
    # Where none of the first rows is meant, they say nothing about those that are.
    if there:
        _check(needed - spared, sorted(there), where, "; a path of nested keys is as code.text")
    return source.read(needed)


def is_wanted(row: Row, only: Mapping[str, str]) -> bool:
    """Whether a row is of those that a mapping reads: [source] only."""
    return all(row.cells.get(name) == value for name, value in only.items())


def _check(needed: frozenset[str], there: Iterable[str], where: str, hint: str) -> None:
    names = list(there)
    for column in sorted(needed - set(names)):
        near = difflib.get_close_matches(column, names, n=3)
        # Where a header is missing, the names are the first person's cells.
        told = ", ".join(repr(name[:40]) for name in near)
        raise ParameterError(
            f"{where}: has no column {column!r}, which the mapping names; "
            + (f"near it are {told}" if near else f"it has {len(names)} others{hint}")
            + ". `lada data map` shows the columns"
        )
