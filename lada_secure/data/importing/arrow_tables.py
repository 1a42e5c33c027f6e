"""Parquet files and folders of `datasets.save_to_disk`: typed columns as text, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, Source, Unclear, flat_row
from lada_secure.errors import ParameterError, TransportError

_BATCH_ROWS: Final = 1024


def open_parquet(path: Path, settings: SourceSettings) -> Source:
    """Open a Parquet file; columns are read as the mapping needs them. Raises: ParameterError."""
    del settings
    try:
        # Without memory mapping and read-ahead, no more of the file is held than one batch needs.
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise ParameterError(f"cannot read {path} as Parquet: {error}") from error
    with file:
        schema = file.schema_arrow
        whole = f"Parquet, {len(schema.names)} columns"
    names = _names(schema, str(path))

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        tops = _tops(schema.names, needed)
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as opened:
            batches = opened.iter_batches(
                batch_size=_BATCH_ROWS, columns=tops or None, use_threads=False
            )
            yield from _rows(batches, needed, {}, str(path))

    return Source(columns=names, said=(whole,), read=read)


def open_dataset(path: Path, settings: SourceSettings) -> Source:
    """Open a folder of `datasets.save_to_disk`; class labels are read as their names.

    Raises: ParameterError: no such folder, or several splits and none named.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(path), keep_in_memory=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ParameterError(f"cannot read {path} as a saved dataset: {error}") from error
    if isinstance(found, dict):
        if settings.split not in found:
            raise ParameterError(
                f"{path}: has the splits {', '.join(sorted(found))}; name one as [source] split "
                f"(`lada data map`: --sheet)"
                f"{'' if settings.split is None else f', got {settings.split!r}'}"
            )
        found = found[settings.split]
    labels = {
        name: feature.names
        for name, feature in found.features.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }
    names = _names(found.features.arrow_schema, str(path))

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        tops = _tops(found.column_names, needed)
        chosen = found.select_columns(tops) if tops else found
        tables = chosen.with_format("arrow").iter(batch_size=_BATCH_ROWS)
        batches = (batch for table in tables for batch in table.to_batches())
        yield from _rows(batches, needed, labels, str(path))

    said = f"saved dataset, {len(labels)} column(s) of class labels"
    return Source(columns=names, said=(said,), read=read)


def _names(schema: pa.Schema, where: str) -> tuple[str, ...] | None:
    """The columns; None where some are nested, for the rows tell what lies in them."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ParameterError(
            f"{where}: {len(twice)} column name(s) stand twice, as {twice[0][:40]!r}; give each "
            "column a name of its own"
        )
    nested = any(pa.types.is_nested(field.type) for field in schema)
    return None if nested else tuple(schema.names)


def _tops(names: Iterable[str], needed: frozenset[str]) -> list[str]:
    """The columns to read: those needed, and those that hold a needed one."""
    return [
        name
        for name in names
        if name in needed or any(one.startswith(f"{name}.") for one in needed)
    ]


def _rows(
    batches: Iterable[Any],
    needed: frozenset[str],
    labels: Mapping[str, list[str]],
    where: str,
) -> Iterator[Row | Reject]:
    line = 0
    try:
        for batch in batches:
            columns = [
                _texts(batch.column(place), labels.get(name))
                for place, name in enumerate(batch.schema.names)
            ]
            for values in zip(*columns, strict=True):
                line += 1
                yield flat_row(line, dict(zip(batch.schema.names, values, strict=True)), needed)
    except (OSError, pa.ArrowException) as error:
        raise TransportError(f"cannot read {where} on, behind row {line}: {error}") from error


def _texts(column: pa.Array, names: list[str] | None) -> list[object]:
    """A column's values: texts where Arrow writes them, others for `text_of`."""
    kind = column.type
    if names is not None:
        return [
            names[value] if value is not None and 0 <= value < len(names) else None
            for value in column.to_pylist()
        ]
    # Pictures need not be held a second time.
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [None] * len(column)
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        # The fewest digits that read back the same in so few bits, and not in 64.
        return list(column.cast(pa.float32()).cast(pa.string()).to_pylist())
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):
        # One value is no text, or no date that Python knows: that is its row's fault alone.
        return [_value(one) for one in column]


def _value(scalar: pa.Scalar) -> object:
    """A value, with `Unclear` where Python has none for it."""
    if not scalar.is_valid:
        return None
    if pa.types.is_struct(scalar.type):
        return {name: _value(inner) for name, inner in scalar.items()}
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unclear("not-in-encoding")
    except (ValueError, OverflowError, pa.ArrowException):
        return Unclear("value-unreadable")
