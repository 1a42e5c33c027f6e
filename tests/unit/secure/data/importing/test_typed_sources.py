"""What a source has typed becomes text in one form: Parquet, Excel, databases."""

from __future__ import annotations

import datetime
import sqlite3
import traceback
import zipfile
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row, text_of
from lada_secure.data.importing.sources import open_source
from lada_secure.errors import ParameterError, TransportError

DAY = datetime.date(2025, 3, 4)
MOMENT = datetime.datetime(2025, 3, 4, 5, 6, 7)


def cells(path: Path | str, settings: SourceSettings | None = None) -> list[dict[str, str | None]]:
    source = open_source(str(path), settings or SourceSettings())
    rows = list(source.read(frozenset(source.columns or ())))
    assert all(isinstance(row, Row) for row in rows)
    return [dict(row.cells) for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", None),
        (" ", " "),
        ("007", "007"),
        (7, "7"),
        (7.0, "7"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2.0**60, "1.152921504606847e+18"),
        (True, "true"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), "nan"),
        (DAY, "2025-03-04"),
        (MOMENT, "2025-03-04 05:06:07"),
        (datetime.datetime(2025, 3, 4), "2025-03-04 00:00:00"),
        (["a", 1, None], '["a", 1, null]'),
        ([DAY], '["2025-03-04"]'),
        (b"p1", None),
        ([b"p1", None], None),
        ([{"bytes": b"p1", "path": "x"}], '[{"bytes": null, "path": "x"}]'),
    ],
)
def test_a_typed_value_has_one_text(value: object, text: str | None) -> None:
    assert text_of(value) == text


def test_parquet_keeps_digits_dates_and_what_is_nested(tmp_path: Path) -> None:
    table = pa.table(
        {
            "whole": pa.array([7], pa.int64()),
            "short": pa.array([0.1], pa.float32()),
            "long": pa.array([0.1], pa.float64()),
            "money": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
            "day": pa.array([DAY]),
            "moment": pa.array([MOMENT], pa.timestamp("us")),
            "label": pa.array(["a"]).dictionary_encode(),
            "wide": pa.array(["b"], pa.large_string()),
            "picture": pa.array([b"\xff"], pa.binary()),
            "none": pa.array([None], pa.string()),
            "inside": pa.array([{"text": "x", "codes": [{"code": "1"}, {"code": "2"}]}]),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    source = open_source(str(tmp_path / "c.parquet"), SourceSettings())
    assert source.columns is None
    needed = {*table.schema.names, "inside.text", "inside.codes.1.code", "inside.codes"}
    (row,) = source.read(frozenset(needed))
    assert isinstance(row, Row)
    assert dict(row.cells) == {
        "whole": "7",
        "short": "0.1",
        "long": "0.1",
        "money": "1.50",
        "day": "2025-03-04",
        "moment": "2025-03-04 05:06:07",
        "label": "a",
        "wide": "b",
        "picture": None,
        "none": None,
        "inside": None,
        "inside.text": "x",
        "inside.codes.1.code": "2",
        "inside.codes": '[{"code": "1"}, {"code": "2"}]',
    }


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ParameterError, match="stand twice, as 'x'"):
        open_source(str(tmp_path / "c.parquet"), SourceSettings())


def workbook(path: Path, *rows: tuple[object, ...], sheets: tuple[str, ...] = ("cases",)) -> Path:
    book = openpyxl.Workbook()
    book.active.title = sheets[0]
    for name in sheets[1:]:
        book.create_sheet(name)
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_excel_gives_what_is_stored(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "c.xlsx",
        ("id", "day", "moment", "share", "flag", "empty", "fault"),
        (7, DAY, MOMENT, 0.05, True, None, "#REF!"),
        (),
        ("007", DAY, MOMENT, 1.5, False, None, "x"),
    )
    assert cells(path) == [
        {"id": "7", "day": "2025-03-04", "moment": "2025-03-04 05:06:07", "share": "0.05",
         "flag": "true", "empty": None, "fault": "#REF!"},
        {"id": "007", "day": "2025-03-04", "moment": "2025-03-04 05:06:07", "share": "1.5",
         "flag": "false", "empty": None, "fault": "x"},
    ]  # fmt: skip


def test_excel_rows_are_numbered_as_on_the_screen(tmp_path: Path) -> None:
    rows = (("Title",), ("a", "b"), ("1", "2"), (), ("a", "b"), ("3", "4", "over"), ("5", "6"))
    path = workbook(tmp_path / "c.xlsx", *rows)
    source = open_source(str(path), SourceSettings(skip_lines=1))
    found = list(source.read(frozenset({"a"})))
    assert [row.line for row in found] == [3, 5, 6, 7]
    assert [row.reason for row in found if isinstance(row, Reject)] == [
        "header-again",
        "too-many-columns",
    ]


def test_excel_needs_a_sheet_named_where_there_are_several(tmp_path: Path) -> None:
    path = workbook(tmp_path / "c.xlsx", ("a",), ("1",), sheets=("one", "two"))
    with pytest.raises(ParameterError, match="has the sheets one, two; name one"):
        open_source(str(path), SourceSettings())
    assert cells(path, SourceSettings(sheet="one")) == [{"a": "1"}]


@pytest.mark.parametrize(
    ("rows", "told"),
    [((), "holds no column names"), ((("a", "a"), (1, 2)), "stand twice, first in column 1")],
)
def test_an_excel_header_that_is_none_is_refused(
    rows: tuple[tuple[object, ...], ...], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=told):
        open_source(str(workbook(tmp_path / "c.xlsx", *rows)), SourceSettings())


def test_excel_asks_for_results_of_formulas_that_are_needed_alone(tmp_path: Path) -> None:
    path = workbook(tmp_path / "c.xlsx", ("a", "b"), ("x", "=A2"), ("y", "z"))
    source = open_source(str(path), SourceSettings())
    assert [row.line for row in source.read(frozenset({"a"}))] == [2, 3]
    with pytest.raises(ParameterError, match=r"c\.xlsx:2: column 'b' is a formula"):
        list(source.read(frozenset({"a", "b"})))
    # As spreadsheet programs write an empty text that was calculated.
    with_results(path, b"<v />", b"<v></v>", b'<c r="B2"', b'<c r="B2" t="str"')
    assert cells(path) == [{"a": "x", "b": None}, {"a": "y", "b": "z"}]
    with_results(path, b"<v></v>", b"<v>x</v>")
    assert cells(path) == [{"a": "x", "b": "x"}, {"a": "y", "b": "z"}]


def with_results(path: Path, *changes: bytes) -> None:
    """Changes parts of the sheet's XML, each given before and after."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    for before, after in zip(changes[::2], changes[1::2], strict=True):
        assert before in sheet
        sheet = sheet.replace(before, after)
    with zipfile.ZipFile(path, "w") as book:
        for name, raw in (parts | {"xl/worksheets/sheet1.xml": sheet}).items():
            book.writestr(name, raw)


def test_a_damaged_sheet_is_the_files_fault_and_its_name_is_in_no_report(tmp_path: Path) -> None:
    path = workbook(tmp_path / "c.xlsx", ("a",), ("x",), sheets=("Dr. Meier",))
    source = open_source(str(path), SourceSettings())
    assert "Meier" not in " ".join(source.said)
    with_results(path, b"</row></sheetData>", b"</row></sheet>")
    with pytest.raises(ParameterError, match=r"cannot read .* as \.xlsx"):
        list(source.read(frozenset({"a"})))


def test_a_value_without_a_text_is_its_rows_fault_wherever_it_lies(tmp_path: Path) -> None:
    far = pa.array([0, 10**7], pa.int32()).view(pa.date32())
    table = pa.table({"id": ["1", "2"], "visit": pa.StructArray.from_arrays([far], ["day"])})
    pq.write_table(table, tmp_path / "c.parquet")
    source = open_source(str(tmp_path / "c.parquet"), SourceSettings())
    row, rejected = source.read(frozenset({"id", "visit.day"}))
    assert isinstance(row, Row)
    assert row.cells == {"id": "1", "visit.day": "1970-01-01"}
    assert rejected == Reject(2, "value-unreadable", "visit.day")
    assert [one.line for one in source.read(frozenset())] == [1, 2]
    assert [one.line for one in source.read(frozenset({"id"}))] == [1, 2]


@pytest.fixture
def database(tmp_path: Path) -> str:
    base = sqlite3.connect(tmp_path / "c.sqlite")
    base.execute("CREATE TABLE c (id INTEGER, dose REAL, note TEXT, scan BLOB)")
    base.execute("INSERT INTO c VALUES (7, 1.5, 'at 12:30', x'ff'), (8, NULL, NULL, NULL)")
    base.commit()
    base.close()
    return f"sqlite:///{tmp_path / 'c.sqlite'}"


def test_a_query_gives_texts_and_may_hold_colons(database: str) -> None:
    query = "SELECT * FROM c WHERE note = 'at 12:30' OR id = 8 ORDER BY id"
    assert cells(database, SourceSettings(query=query)) == [
        {"id": "7", "dose": "1.5", "note": "at 12:30", "scan": None},
        {"id": "8", "dose": None, "note": None, "scan": None},
    ]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (None, "names no query"),
        ("SELECT * FROM nothing", "was refused"),
        ("SELECT id FROM c; DROP TABLE c", "one statement at a time"),
        ("SELECT id, id FROM c", "two columns are called 'id'"),
        ("DELETE FROM c RETURNING id", "begins with SELECT or WITH"),
        ("-- SELECT\nUPDATE c SET id = 1 RETURNING id", "begins with SELECT or WITH"),
        ("PRAGMA journal_mode = WAL", "begins with SELECT or WITH"),
        ("ATTACH DATABASE 'other.sqlite' AS x", "begins with SELECT or WITH"),
        ("VACUUM INTO 'other.sqlite'", "begins with SELECT or WITH"),
        ("WITH x AS (SELECT 1) DELETE FROM c RETURNING id", "was refused"),
        ("SELECT * FROM pragma_journal_mode('WAL')", "was refused"),
        ("SELECT length(hex(zeroblob(300000000)))", "was refused"),
    ],
)
def test_a_query_that_is_wrong_or_writes_is_refused(
    query: str | None, told: str, database: str
) -> None:
    with pytest.raises(ParameterError, match=told):
        open_source(database, SourceSettings(query=query))
    everything = SourceSettings(query="/* all */ -- of them\nSELECT id FROM c ORDER BY id")
    assert cells(database, everything) == [{"id": "7"}, {"id": "8"}]


def test_a_query_may_open_lists_and_search_texts(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "c.sqlite")
    base.execute("CREATE TABLE c (id INTEGER, given TEXT)")
    base.execute("""INSERT INTO c VALUES (1, '["a", "b"]')""")
    base.execute("CREATE VIRTUAL TABLE notes USING fts5(note)")
    base.execute("INSERT INTO notes VALUES ('has gout'), ('is well')")
    base.commit()
    base.close()
    address = f"sqlite:///{tmp_path / 'c.sqlite'}"
    opened = SourceSettings(
        query="SELECT c.id, j.value FROM c, json_each(c.given) j ORDER BY j.key"
    )
    assert [one["value"] for one in cells(address, opened)] == ["a", "b"]
    found = SourceSettings(query="SELECT note FROM notes WHERE notes MATCH 'gout' ORDER BY note")
    assert cells(address, found) == [{"note": "has gout"}]


def test_a_function_that_fails_on_a_row_quotes_no_cell(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "c.sqlite")
    base.execute("CREATE TABLE c (id INTEGER, note TEXT)")
    base.execute("INSERT INTO c VALUES (1, 'Meier has HIV')")
    base.commit()
    base.close()
    query = "SELECT id, json_extract('{}', '$' || note) FROM c ORDER BY id"
    with pytest.raises((ParameterError, TransportError)) as failed:
        cells(f"sqlite:///{tmp_path / 'c.sqlite'}", SourceSettings(query=query))
    assert "Meier" not in str(failed.value)


@pytest.mark.timeout(20)
def test_comments_in_front_of_a_query_are_looked_at_once(database: str) -> None:
    with pytest.raises(ParameterError, match="begins with SELECT or WITH"):
        open_source(database, SourceSettings(query="/**/" * 5_000 + "x"))
    query = "/**/" * 5_000 + "SELECT id FROM c ORDER BY id"
    assert cells(database, SourceSettings(query=query)) == [{"id": "7"}, {"id": "8"}]


def test_a_cell_that_is_no_text_is_one_rows_fault_and_in_no_message(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "c.sqlite")
    base.execute("CREATE TABLE c (id INTEGER, note TEXT)")
    base.execute("INSERT INTO c VALUES (1, CAST(x'48495620ff' AS TEXT)), (2, 'well')")
    base.commit()
    base.close()
    settings = SourceSettings(query="SELECT id, note FROM c ORDER BY id")
    source = open_source(f"sqlite:///{tmp_path / 'c.sqlite'}", settings)
    rejected, row = source.read(frozenset())
    assert rejected == Reject(1, "not-in-encoding", "note")
    assert isinstance(row, Row)
    assert row.cells == {"id": "2", "note": "well"}


@pytest.mark.parametrize(
    "address",
    [
        "PostgreSQL+psycopg://u:SECRETPW@h/db",
        " postgresql+psycopg://u:SECRETPW@h/db",
        "postgresql+psycopg://u:pa@SECRETPW@h/db",
        "postgresql+psycopg://u:pa@ss:SECRETPW@h/db",
        "nosuch://u:SECRETPW@h/db",
        "postgresql:/u:SECRETPW@h/db",
        "postgresql+psycopg:u:SECRETPW@h/db",
    ],
)
def test_an_address_is_in_no_message_however_it_is_wrong(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_TEST_SOURCE", address)
    for source in (address, "env:LADA_TEST_SOURCE"):
        with pytest.raises(ParameterError, match="the database's address") as failed:
            open_source(source, SourceSettings(query="SELECT 1"))
        shown = "".join(traceback.format_exception(failed.value))
        assert "SECRETPW" not in shown


def test_a_query_without_an_order_is_told(database: str) -> None:
    source = open_source(database, SourceSettings(query="SELECT id FROM c"))
    assert any("no ORDER BY" in line for line in source.said)


def test_an_address_comes_out_of_the_environment(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_TEST_SOURCE", database)
    assert len(cells("env:LADA_TEST_SOURCE", SourceSettings(query="SELECT id FROM c"))) == 2
