"""`lada bench import`: rows a second and memory of an import, beside plain reading of the file.

Each kind of source holds the same made-up table. Every measurement runs in a process of its own,
which says how much processor time and resident memory it took at most; the plain reader of the same
file is what most people would call: pyarrow, openpyxl, sqlite3, datasets or json. It reads cells
and keeps them; an import also makes, checks and writes records.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from lada_lab.machine import machine
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.errors import ParameterError

KINDS: Final = ("csv", "parquet", "jsonl", "json", "dataset", "sql", "excel")
COLUMNS: Final = ("case_id", "patient", "note", "a", "b", "c", "d", "right", "reason")
_TABLE: Final = "cases"
_TIMEOUT_S: Final = 3600.0
_QUERY: Final = 'query = "SELECT * FROM cases ORDER BY rowid"'
_MAPPING: Final = """\
format = "lada-mapping/1"

[source]
QUERY
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


def run_import_bench(
    *, rows: int, kinds: Sequence[str], near: bool, folder: Path | None = None
) -> dict[str, Any]:
    """Measure imports of the same table from each kind of source.

    Args: folder: for the files; a temporary one by default.
    Returns: JSON-ready: per kind, rows a second of processor time and peak memory in bytes, of the
        import and of the plain reader; and what it was measured on.
    Raises: ParameterError: an unknown kind, or no Linux /proc.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ParameterError(f"--kind: expected of {', '.join(KINDS)}, got {unknown[0]!r}")
    if not Path("/proc/self/status").exists():
        raise ParameterError("bench import: memory is read from Linux's /proc, which is not here")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = {kind: _measured(kind, rows, near, Path(place)) for kind in kinds}
    cores, system, python = machine()
    return {
        "kinds": found,
        "rows": rows,
        "near_duplicates": near,
        "machine": f"{cores} cores, {system}, Python {python}",
    }


def _measured(kind: str, rows: int, near: bool, place: Path) -> dict[str, Any]:
    source = _apart(_write, kind, rows, place)["answer"]
    mapping = place / f"{kind}.toml"
    mapping.write_text(_MAPPING.replace("QUERY", _QUERY if kind == "sql" else ""), "utf-8")
    ours = _apart(_import, source, mapping, place / f"{kind}-out", near)
    plain = _apart(_READERS[kind], Path(source.removeprefix("sqlite:///")))
    return {
        "import": _figures(ours, rows),
        "plain": _figures(plain, rows),
        "time_ratio": round(ours["cpu_s"] / max(plain["cpu_s"], 1e-9), 1),
    }


def _figures(measured: dict[str, Any], rows: int) -> dict[str, Any]:
    return {
        "rows_per_cpu_s": round(rows / max(measured["cpu_s"], 1e-9)),
        "cpu_s": round(measured["cpu_s"], 2),
        "peak_bytes": measured["peak_bytes"],
    }


def _apart(work: Callable[..., Any], *words: Any) -> dict[str, Any]:
    """Do work in a process of its own; its time and its peak are of the work and its imports."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, work, words), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise ParameterError(f"bench import: no answer within {_TIMEOUT_S:.0f} s")
        found: dict[str, Any] = ours.recv()
    except EOFError as error:
        raise ParameterError("bench import: its process died; was memory short?") from error
    finally:
        child.kill()
        child.join()
    if "error" in found:
        raise ParameterError(f"bench import: {found['error']}")
    return found


def _answer(pipe: Connection, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    try:
        before = time.process_time()
        answer = work(*words)
        pipe.send(
            {"answer": answer, "cpu_s": time.process_time() - before, "peak_bytes": _peak_bytes()}
        )
    # The parent tells it; nothing here is worth a traceback of a process that nobody sees.
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _import(source: str, mapping: Path, out: Path, near: bool) -> int:
    request = ImportRequest(source=source, mapping=mapping, out=out, near=near)
    told = run_import(request, progress=lambda *_: None)
    return int(told["records"]) + int(told["held_out"])


def _write(kind: str, rows: int, place: Path) -> str:
    """Write the table as a file of a kind. Returns: what an import is given."""
    if kind == "sql":
        path = place / "cases.sqlite"
        with sqlite3.connect(path) as base:
            base.execute(f"CREATE TABLE {_TABLE} ({', '.join(f'{one} TEXT' for one in _quoted())})")
            marks = ", ".join("?" * len(COLUMNS))
            base.executemany(f"INSERT INTO {_TABLE} VALUES ({marks})", made_up_rows(rows))  # noqa: S608
        base.close()
        return f"sqlite:///{path}"
    suffix = {"dataset": "", "excel": ".xlsx"}.get(kind, f".{kind}")
    path = place / f"cases-{kind}{suffix}"
    _WRITERS[kind](path, rows)
    return str(path)


def _quoted() -> tuple[str, ...]:
    return tuple(f'"{name}"' for name in COLUMNS)


def _write_csv(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
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
    objects = [dict(zip(COLUMNS, row, strict=True)) for row in made_up_rows(rows)]
    if path.suffix == ".json":
        path.write_text(json.dumps(objects, indent=1), encoding="utf-8")
    else:
        lines = "".join(json.dumps(one) + "\n" for one in objects)
        path.write_text(lines, encoding="utf-8")


def _write_excel(path: Path, rows: int) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("cases")
    sheet.append(COLUMNS)
    for row in made_up_rows(rows):
        sheet.append(row)
    book.save(path)


_WRITERS: Final[dict[str, Callable[[Path, int], None]]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "jsonl": _write_json,
    "json": _write_json,
    "dataset": _write_dataset,
    "excel": _write_excel,
}


def _read_csv(path: Path) -> int:
    from pyarrow import csv as arrow_csv

    return int(arrow_csv.read_csv(path).num_rows)


def _read_parquet(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_table(path).num_rows)


def _read_jsonl(path: Path) -> int:
    from pyarrow import json as arrow_json

    return int(arrow_json.read_json(path).num_rows)


def _read_json(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8")))


def _read_dataset(path: Path) -> int:
    import datasets

    return len(datasets.load_from_disk(str(path)).with_format("arrow")[:])


def _read_sql(path: Path) -> int:
    base = sqlite3.connect(path)
    try:
        return len(base.execute(f"SELECT * FROM {_TABLE}").fetchall())  # noqa: S608
    finally:
        base.close()


def _read_excel(path: Path) -> int:
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True)
    return sum(1 for _ in book.active.iter_rows(values_only=True))


_READERS: Final[dict[str, Callable[[Path], int]]] = {
    "csv": _read_csv,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "dataset": _read_dataset,
    "sql": _read_sql,
    "excel": _read_excel,
}
