"""The same made-up table as each kind of source that an import reads, and as others read it.

Beside every kind stands what most people would call for such a file: polars where it reads the
kind by itself, else openpyxl, datasets or json. A plain reader takes cells and keeps them all.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lada_secure.data.importing.guessing import preset_mapping

COLUMNS: Final = ("case_id", "patient", "note", "a", "b", "c", "d", "right", "reason")
_QUERY: Final = "SELECT * FROM cases ORDER BY rowid"
_MAPPING: Final = """\
format = "lada-mapping/1"

[record]
id = "case_id"
unit = "patient"
question = { template = "{{ note }} Which is it?" }
choices = ["a", "b", "c", "d"]
answer = { column = "right", stands_as = "letter" }
rationale = "reason"

[split]
held_out = 0.2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKind:
    """One kind of source.

    suffix: of its file. write: so many rows to a path. plain: reads such a file, by the library
    that `reader` names, and says how many rows it has. mapping: for an import.
    """

    suffix: str
    write: Callable[[Path, int], None]
    plain: Callable[[Path], int]
    reader: str = "polars"
    mapping: Callable[[], str] = lambda: _MAPPING
    is_database: bool = False

    def source(self, path: Path) -> str:
        """What an import is given."""
        return f"sqlite:///{path}" if self.is_database else str(path)


def made_up_rows(rows: int) -> Iterator[tuple[str, ...]]:
    """A table of nobody: three rows a patient, some 250 letters a row."""
    for number in range(rows):
        sign = (number * 7919) % 100_003
        yield (
            f"case-{number}",
            f"patient-{number // 3}",
            f"A person of {sign % 90} years comes with sign {sign}, for {number % 14} days, and "
            f"has taken drug {sign * 31 % 997} without effect; the value was {sign / 7:.3f}.",
            *(f"finding {(sign + step) % 5000}" for step in (0, 17, 170, 1700)),
            "ABCD"[number % 4],
            f"Sign {sign} with drug {sign * 31 % 997} points to it.",
        )


def _objects(rows: int) -> Iterator[dict[str, str]]:
    return (dict(zip(COLUMNS, row, strict=True)) for row in made_up_rows(rows))


def _write_delimited(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(COLUMNS)
        writer.writerows(made_up_rows(rows))


def _write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*made_up_rows(rows), strict=True))
    pq.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), path)


def _write_dataset(path: Path, rows: int) -> None:
    import datasets

    columns = zip(*made_up_rows(rows), strict=True)
    datasets.Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True))).save_to_disk(str(path))


def _write_json(path: Path, rows: int) -> None:
    path.write_text(json.dumps(list(_objects(rows)), indent=1), encoding="utf-8")


def _write_lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in objects)


def _write_excel(path: Path, rows: int) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("cases")
    sheet.append(COLUMNS)
    for row in made_up_rows(rows):
        sheet.append(row)
    book.save(path)


def _insert(base: sqlite3.Connection, table: str, columns: str, rows: Iterable[Any]) -> None:
    base.execute(f"CREATE TABLE {table} ({columns})")
    marks = ", ".join("?" * len(columns.split(",")))
    base.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608


def _write_sql(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as base, base:
        _insert(base, "cases", ", ".join(f'"{one}" TEXT' for one in COLUMNS), made_up_rows(rows))


def _write_omop(path: Path, rows: int) -> None:
    """The tables that the mapping for OMOP joins; a condition is a row, a visit has three."""
    sexes, visits, first, codes = (8507, 8532), (9201, 9202, 9203), 1_000_000, 5000
    names = {8507: "MALE", 8532: "FEMALE", 9201: "Inpatient", 9202: "Outpatient", 9203: "Emergency"}
    concepts = [*names.items(), *((first + one, f"finding {one}") for one in range(codes))]
    people = range(1, rows // 3 + 2)
    with closing(sqlite3.connect(path)) as base, base:
        _insert(base, "concept", "concept_id INTEGER PRIMARY KEY, concept_name TEXT", concepts)
        _insert(
            base,
            "person",
            "person_id INTEGER PRIMARY KEY, gender_concept_id INTEGER, year_of_birth INTEGER",
            ((one, sexes[one % 2], 1930 + one % 80) for one in people),
        )
        _insert(
            base,
            "visit_occurrence",
            "visit_occurrence_id INTEGER PRIMARY KEY, visit_concept_id INTEGER",
            ((one, visits[one % 3]) for one in people),
        )
        _insert(
            base,
            "condition_occurrence",
            "condition_occurrence_id INTEGER PRIMARY KEY, person_id INTEGER, "
            "condition_concept_id INTEGER, condition_start_date TEXT, visit_occurrence_id INTEGER",
            (
                (
                    number,
                    number // 3 + 1,
                    first + number * 7919 % codes,
                    f"20{number % 24:02}-{number % 12 + 1:02}-{number * 31 % 28 + 1:02}",
                    number // 3 + 1,
                )
                for number in range(rows)
            ),
        )


def _conditions(rows: int) -> Iterator[dict[str, Any]]:
    """Conditions of FHIR, with what an export has around them."""
    for row in _objects(rows):
        yield {
            "resourceType": "Condition",
            "id": row["case_id"],
            "meta": {"versionId": "1", "lastUpdated": "2024-03-01T10:00:00Z"},
            "subject": {"reference": f"Patient/{row['patient']}"},
            "code": {"coding": [{"system": "http://snomed.info/sct", "display": row["a"]}]},
            "bodySite": [{"text": row["b"]}],
            "note": [{"text": row["note"]}],
        }


def _write_bundle(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('{"resourceType": "Bundle", "type": "collection", "entry": [\n')
        for number, one in enumerate(_conditions(rows)):
            file.write((",\n" if number else "") + json.dumps({"resource": one}))
        file.write("\n]}\n")


def _by_polars(name: str, **options: Any) -> Callable[[Path], int]:
    def read(path: Path) -> int:
        import polars

        return int(getattr(polars, name)(path, **options).height)

    return read


def _query_by_polars(mapping: Callable[[], str]) -> Callable[[Path], int]:
    def read(path: Path) -> int:
        import polars

        query = tomllib.loads(mapping())["source"]["query"]
        with closing(sqlite3.connect(path)) as base:
            return int(polars.read_database(query, base).height)

    return read


def _read_dataset(path: Path) -> int:
    import datasets

    return len(datasets.load_from_disk(str(path)).with_format("arrow")[:])


def _read_bundle(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8"))["entry"])


def _read_excel(path: Path) -> int:
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True)
    return sum(1 for _ in book.active.iter_rows(values_only=True))


def _of_table() -> str:
    return _MAPPING.replace("[record]", f'[source]\nquery = "{_QUERY}"\n\n[record]')


def _of_omop() -> str:
    return preset_mapping("omop-conditions")


def _of_bundle() -> str:
    return preset_mapping("fhir-conditions")


def _of_ndjson() -> str:
    return _of_bundle().replace('at = "entry"\ninside = "resource"\n', "")


KINDS: Final[dict[str, SourceKind]] = {
    "csv": SourceKind(suffix=".csv", write=_write_delimited, plain=_by_polars("read_csv")),
    "tsv": SourceKind(
        suffix=".tsv", write=_write_delimited, plain=_by_polars("read_csv", separator="\t")
    ),
    "parquet": SourceKind(
        suffix=".parquet", write=_write_parquet, plain=_by_polars("read_parquet")
    ),
    "jsonl": SourceKind(
        suffix=".jsonl",
        write=lambda path, rows: _write_lines(path, _objects(rows)),
        plain=_by_polars("read_ndjson"),
    ),
    "json": SourceKind(suffix=".json", write=_write_json, plain=_by_polars("read_json")),
    "excel": SourceKind(suffix=".xlsx", write=_write_excel, plain=_read_excel, reader="openpyxl"),
    "dataset": SourceKind(suffix="", write=_write_dataset, plain=_read_dataset, reader="datasets"),
    "sql": SourceKind(
        suffix=".sqlite",
        write=_write_sql,
        plain=_query_by_polars(_of_table),
        mapping=_of_table,
        is_database=True,
    ),
    "omop": SourceKind(
        suffix=".sqlite",
        write=_write_omop,
        plain=_query_by_polars(_of_omop),
        mapping=_of_omop,
        is_database=True,
    ),
    "fhir-bundle": SourceKind(
        suffix=".json",
        write=_write_bundle,
        plain=_read_bundle,
        reader="json",
        mapping=_of_bundle,
    ),
    "fhir-ndjson": SourceKind(
        suffix=".ndjson",
        write=lambda path, rows: _write_lines(path, _conditions(rows)),
        plain=_by_polars("read_ndjson"),
        mapping=_of_ndjson,
    ),
}
