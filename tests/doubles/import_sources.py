"""Rows of records as each kind of source has them, and what an import of them is asked for."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lada_secure.data.importing.run import ImportRequest
from lada_secure.data.records import Record

COLUMNS = ("record_id", "unit", "question", "choices", "answer", "rationale")
MAPPING = """\
format = "lada-mapping/1"

[record]
id = "record_id"
unit = "unit"
question = "question"
CHOICES
answer = "answer"
rationale = "rationale"
"""
OPEN = MAPPING.replace("CHOICES\n", "")
LISTED = MAPPING.replace("CHOICES", 'choices = { column = "choices", json = true }')
QUERY = '\n[source]\nquery = "SELECT * FROM cases ORDER BY rowid"\n'


def nothing(*_: object) -> None:
    """Progress that nobody looks at."""


def cells(records: Sequence[Record]) -> list[tuple[str | None, ...]]:
    return [
        (
            one.record_id,
            one.unit,
            one.question,
            json.dumps(one.choices) if one.choices else None,
            one.answer,
            one.rationale,
        )
        for one in records
    ]


def write_csv(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return str(path)


def write_parquet(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(one, pa.string()) for one in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, names=COLUMNS), path)
    return str(path)


def write_dataset(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    import datasets

    columns = [list(one) for one in zip(*rows, strict=True)]
    datasets.Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True))).save_to_disk(str(path))
    return str(path)


def write_sql(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    base = sqlite3.connect(path)
    base.execute(f"CREATE TABLE cases ({', '.join(f'{name} TEXT' for name in COLUMNS)})")
    base.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)", rows)
    base.commit()
    base.close()
    return f"sqlite:///{path}"


def objects(rows: Sequence[tuple[str | None, ...]]) -> list[dict[str, str | None]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def write_jsonl(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects(rows)), encoding="utf-8")
    return str(path)


def write_json(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    path.write_text(json.dumps(objects(rows)), encoding="utf-8")
    return str(path)


def write_excel(path: Path, rows: Sequence[tuple[str | None, ...]]) -> str:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (COLUMNS, *rows):
        book.active.append(row)
    book.save(path)
    return str(path)


WRITERS: dict[str, Callable[[Path, Sequence[tuple[str | None, ...]]], str]] = {
    "cases.csv": write_csv,
    "cases.parquet": write_parquet,
    "cases": write_dataset,
    "cases.sqlite": write_sql,
    "cases.jsonl": write_jsonl,
    "cases.json": write_json,
    "cases.xlsx": write_excel,
}


def request(tmp_path: Path, source: str, mapping: str, **more: Any) -> ImportRequest:
    path = tmp_path / "mapping.toml"
    path.write_text(mapping + (QUERY if source.startswith("sqlite") else ""), encoding="utf-8")
    return ImportRequest(source=source, mapping=path, out=tmp_path / "out", **more)


def rows(count: int) -> list[tuple[str | None, ...]]:
    return [
        (f"r{one}", f"p{one // 3}", f"How many is {one} and {one}?", None, str(2 * one), None)
        for one in range(count)
    ]
