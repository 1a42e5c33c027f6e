"""Imports end to end: the same bytes from every kind of source, and nothing half-done ever."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lada_lab.worlds.federation import build_federation
from lada_secure.data.importing.outputs import OutputFolder
from lada_secure.data.importing.run import ImportRefused, ImportRequest, run_import
from lada_secure.data.records import Record, inspect_records, write_json_lines
from lada_secure.errors import ParameterError, Stopped, TransportError
from lada_secure.storage.whole_files import replace_file

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


def contents(folder: Path) -> dict[str, bytes]:
    found = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def demo() -> tuple[Record, ...]:
    """A site's records as the mock writes them: of the preset demo where WordNet is there."""
    try:
        data = build_federation("demo", sites=3, seed=0)
    except ParameterError:
        data = build_federation("arithmetic", sites=3, seed=0)
    return next(iter(data.sites.values())).train


@pytest.mark.parametrize("file", WRITERS)
def test_every_kind_of_source_gives_the_records_file_of_the_demo(
    file: str, tmp_path: Path, demo: tuple[Record, ...]
) -> None:
    write_json_lines(tmp_path / "expected.jsonl", demo)
    mapping = LISTED if demo[0].choices else OPEN
    asked = request(tmp_path, WRITERS[file](tmp_path / file, cells(demo)), mapping)
    run_import(asked, progress=nothing)
    expected = (tmp_path / "expected.jsonl").read_bytes()
    assert (asked.out / "records.jsonl").read_bytes() == expected
    # Once more over the first result, and with all other files: nothing changes.
    first = contents(asked.out)
    run_import(asked, progress=nothing)
    assert contents(asked.out) == first


def test_too_many_rejects_write_no_records_and_leave_older_ones(tmp_path: Path) -> None:
    good = request(tmp_path, write_csv(tmp_path / "good.csv", rows(100)), OPEN)
    run_import(good, progress=nothing)
    before = (good.out / "records.jsonl").read_bytes()
    bad = [*rows(98), ("x", "p", "", None, "1", None), ("y", "", "Q", None, "1", None)]
    asked = request(tmp_path, write_csv(tmp_path / "bad.csv", bad), OPEN)
    with pytest.raises(ImportRefused, match="2 of 100 rows make no record") as refused:
        run_import(asked, progress=nothing)
    assert refused.value.exit_status == 1
    assert refused.value.told["rejected_by_reason"] == {"cell-empty": 2}
    assert (good.out / "records.jsonl").read_bytes() == before
    assert (good.out / "rejects.csv").read_text("utf-8").splitlines()[1:] == [
        "100,cell-empty,question",
        "101,cell-empty,unit",
    ]
    # At the threshold, and not above it.
    run_import(request(tmp_path, asked.source, OPEN, most_rejects=0.02), progress=nothing)
    assert len(inspect_records(good.out / "records.jsonl").records) == 98


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: the kernel refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10_000, 30_000, 150_000])
def test_a_disk_that_fills_leaves_what_was_there(size: int, tmp_path: Path) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "few.csv", rows(9)), OPEN)
    run_import(asked, progress=nothing)
    before = contents(asked.out)
    many = request(tmp_path, write_csv(tmp_path / "many.csv", rows(3000)), OPEN)
    with largest_file(size), pytest.raises(TransportError, match="nothing was imported"):
        run_import(many, progress=nothing)
    assert contents(asked.out) == before


def test_a_disk_that_fills_at_the_last_moment_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "few.csv", rows(9)), OPEN)
    run_import(asked, progress=nothing)
    before = contents(asked.out)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    many = request(tmp_path, write_csv(tmp_path / "many.csv", rows(30)), OPEN)
    with pytest.raises(TransportError, match="No space left on device"):
        run_import(many, progress=nothing)
    assert contents(asked.out) == before


def test_a_database_that_dies_half_way_leaves_no_file(tmp_path: Path) -> None:
    source = write_sql(tmp_path / "cases.sqlite", rows(3000))
    path = tmp_path / "cases.sqlite"
    raw = bytearray(path.read_bytes())
    # A page in the middle of the table is gone, as on a disk that fails.
    raw[len(raw) // 2 : len(raw) // 2 + 8192] = bytes(8192)
    path.write_bytes(raw)
    asked = request(tmp_path, source, OPEN)
    with pytest.raises(TransportError, match=r"broke off behind row [1-9][0-9]+"):
        run_import(asked, progress=nothing)
    assert contents(asked.out) == {}


def test_a_server_that_is_stopped_half_way_leaves_no_file(tmp_path: Path, postgres: Any) -> None:
    url = postgres.new_database()
    from sqlalchemy import create_engine, text

    with create_engine(url).begin() as base:
        base.execute(text("CREATE TABLE cases AS SELECT 'r' || n AS record_id, 'p' || n AS unit, "
                          "'Q ' || n || repeat(' and more', 200) AS question, NULL AS choices, "
                          "'1' AS answer, NULL AS rationale, n AS rowid "
                          "FROM generate_series(1, 50000) AS n"))  # fmt: skip
    asked = request(tmp_path, url, OPEN + QUERY)

    def stop(done: int, *_: object) -> None:
        if done > 2000:
            postgres.stop()

    try:
        with pytest.raises(TransportError, match="broke off behind row") as failed:
            run_import(asked, progress=stop)
    finally:
        # Other tests have the same server.
        postgres.restart()
    assert "lada@" not in str(failed.value)
    assert contents(asked.out) == {}


def test_an_interrupt_leaves_no_part_and_a_killed_import_is_swept(tmp_path: Path) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "many.csv", rows(3000)), OPEN)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_import(asked, progress=interrupt)
    assert not asked.out.exists()
    asked.out.mkdir()
    # What a process that was killed has left, and a file of somebody else.
    (asked.out / ".records.jsonl.999999999").write_bytes(b"half")
    (asked.out / ".notes.999999999").write_bytes(b"mine")
    run_import(asked, progress=nothing)
    assert ".records.jsonl.999999999" not in contents(asked.out)
    assert ".notes.999999999" in contents(asked.out)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "beside an earlier one"])
def test_a_signal_to_stop_leaves_what_was_there_and_says_so(
    tmp_path: Path, name: str, again: bool
) -> None:
    source = write_csv(tmp_path / "many.csv", rows(3000))
    asked = replace(request(tmp_path, source, OPEN), out=tmp_path / "new" / "out")
    before: dict[str, bytes] = {}
    if again:
        run_import(asked, progress=nothing)
        before = contents(asked.out)
    handler = signal.getsignal(getattr(signal, name))

    def stop(*_: object) -> None:
        assert len(contents(asked.out)) > len(before)
        os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(Stopped, match=f"stopped by {name}; nothing was imported") as stopped:
        run_import(asked, progress=stop)
    assert stopped.value.exit_status == 128 + getattr(signal, name)
    assert signal.getsignal(getattr(signal, name)) is handler
    if again:
        assert contents(asked.out) == before
    else:
        assert not (tmp_path / "new").exists()


def test_an_import_that_takes_its_names_is_not_stopped_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "many.csv", rows(30)), OPEN)
    rename = Path.replace

    def stopped(path: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    assert run_import(asked, progress=nothing)["records"] == 30
    assert (asked.out / "records.jsonl").exists()


def test_a_refused_import_says_that_what_lies_beside_it_is_of_another(tmp_path: Path) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "c.csv", rows(30)), OPEN)
    run_import(asked, progress=nothing)
    report = asked.out / "import-report.json"
    assert json.loads(report.read_bytes())["refused"] is False
    wrong = [*rows(30), ("x", "p", "", None, "1", None)]
    write_csv(tmp_path / "c.csv", wrong)
    with pytest.raises(ImportRefused, match=r"records\.jsonl is of an earlier one") as refused:
        run_import(asked, progress=nothing)
    assert json.loads(report.read_bytes())["refused"] is True
    assert refused.value.told["refused"] is True
    (asked.out / "records.jsonl").unlink()
    with pytest.raises(ImportRefused) as refused:
        run_import(asked, progress=nothing)
    assert "earlier" not in str(refused.value)


def test_private_files_are_closed_to_others_and_the_report_is_rounded(tmp_path: Path) -> None:
    many = [*rows(95), ("x", "p", "", None, "1", None)]
    mapping = OPEN + "\n[split]\nheld_out = 0.3\n"
    asked = request(tmp_path, write_csv(tmp_path / "c.csv", many), mapping, most_rejects=0.1)
    told = run_import(asked, progress=nothing)
    assert told["records"] + told["held_out"] == 95
    assert told["counts_rounded_up_to"] == 1
    for name in ("records.jsonl", "held-out.jsonl", "rejects.csv", "near-duplicates.csv"):
        assert (asked.out / name).stat().st_mode & 0o077 == 0
    assert (tmp_path / "mapping.salt").stat().st_mode & 0o077 == 0
    shown = json.loads((asked.out / "import-report.json").read_bytes())
    assert shown["rejected"] == 10
    counts = [
        value for key, value in flat(shown) if isinstance(value, int) and "rounded" not in key
    ]
    assert counts
    assert all(count % 10 == 0 for count in counts)


def flat(report: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(report, dict):
        for name, value in report.items():
            yield from flat(value, name)
    else:
        yield key, report


def test_held_out_records_of_an_earlier_import_do_not_outlive_it(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "c.csv", rows(60))
    run_import(request(tmp_path, source, OPEN + "[split]\nheld_out = 0.5\n"), progress=nothing)
    assert "held-out.jsonl" in contents(tmp_path / "out")
    run_import(request(tmp_path, source, OPEN), progress=nothing)
    assert "held-out.jsonl" not in contents(tmp_path / "out")


@pytest.mark.parametrize("name", ["records.jsonl", "held-out.jsonl", "rejects.csv"])
def test_an_import_does_not_write_over_its_own_source(name: str, tmp_path: Path) -> None:
    made = request(tmp_path, str(tmp_path / "out" / name), OPEN)
    (tmp_path / "out").mkdir()
    write = write_csv if name.endswith(".csv") else write_jsonl
    write(Path(made.source), rows(30))
    before = contents(tmp_path / "out")
    with pytest.raises(ParameterError, match=f"the source is its {name}, which an import writes"):
        run_import(made, progress=nothing)
    assert contents(tmp_path / "out") == before


def test_where_a_header_is_missing_no_message_quotes_a_person(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    for first in ("p-17,Anna has HIV,yes", "p-17,Anna has HIV,Anna has HIV"):
        path.write_text(f"{first}\np-18,Ben has none,no\n", encoding="utf-8")
        with pytest.raises(ParameterError) as failed:
            run_import(request(tmp_path, str(path), OPEN), progress=nothing)
        assert "Anna" not in str(failed.value)


def test_people_who_are_held_out_no_more_are_counted(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "c.csv", rows(300))
    half = OPEN + "[split]\nheld_out = 0.5\n"
    first = run_import(request(tmp_path, source, half), progress=nothing)
    assert first["held_out_no_more"] == 0
    assert run_import(request(tmp_path, source, half), progress=nothing)["held_out_no_more"] == 0
    # A mapping that was copied without its salt.
    (tmp_path / "mapping.salt").unlink()
    moved = run_import(request(tmp_path, source, half), progress=nothing)["held_out_no_more"]
    assert 0 < moved < 100


def warned(tmp_path: Path, units: Sequence[str], unit: str, split: str = "") -> dict[str, Any]:
    people = [(f"r{at}", one, f"Q{at}?", "", "a", "") for at, one in enumerate(units)]
    source = write_csv(tmp_path / "c.csv", people)
    mapping = OPEN.replace('unit = "unit"', f"unit = {unit}") + split
    return run_import(request(tmp_path, source, mapping), progress=nothing)


def test_people_in_several_forms_are_warned_of_and_the_filter_makes_them_one(
    tmp_path: Path,
) -> None:
    units = ["007", "7", "7.0", "ward/7", "8", "8", "123/2024", "124/2024"]
    told = warned(tmp_path, units, '"unit"')
    assert told["units"]["may_be_one_person"] == 4
    (warning,) = told["warnings"]
    assert warning.startswith("4 units may be one person with another one")
    for_others = json.loads((tmp_path / "out" / "import-report.json").read_bytes())
    assert for_others["units"]["may_be_one_person"] == 10
    assert for_others["warnings"][0].startswith("10 units may be")
    told = warned(tmp_path, units[:6], """{ template = "{{ row['unit'] | plain_id }}" }""")
    assert told["warnings"] == []
    assert told["units"]["units"] == 2


def test_a_rejected_row_makes_nobody_alike(tmp_path: Path) -> None:
    source = write_csv(
        tmp_path / "c.csv",
        [("r1", "7", "Q?", "", "a", ""), ("r1", "007", "R?", "", "a", "")],
    )
    asked = request(tmp_path, source, OPEN, most_rejects=0.5)
    assert run_import(asked, progress=nothing)["units"]["may_be_one_person"] == 0


@pytest.mark.parametrize("name", ["0", "000", "9999999", "Test"])
def test_a_placeholder_with_far_more_records_than_others_is_warned_of(
    name: str, tmp_path: Path
) -> None:
    people = [f"p{at}" for at in range(20)]
    told = warned(tmp_path, people + 6 * [name], '"unit"')
    assert told["units"]["may_be_nobody"] == 1
    assert "look like a placeholder" in told["warnings"][0]
    # The template that the warning names.
    shown = told["warnings"][0].partition("template = ")[2]
    template = shown.replace("the column", "unit").replace("'0'", f"'{name}'")
    with pytest.raises(ImportRefused, match="6 of 26 rows"):
        warned(tmp_path, people + 6 * [name], f"{{ template = {template} }}")
    assert warned(tmp_path, [*people, name], '"unit"')["warnings"] == []


def test_words_for_nobody_are_no_people(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        warned(tmp_path, ["NN", "N. N.", "anonym", "unbekannt", "p1"], '"unit"')
    assert refused.value.told["rejected_by_reason"] == {"unit-looks-missing": 4}


def test_that_nobody_is_held_out_is_said(tmp_path: Path) -> None:
    told = warned(tmp_path, ["p1", "p2"], '"unit"', "[split]\nheld_out = 1e-9\n")
    assert told["warnings"][0].startswith("nobody of 2 unit(s) is held out, though")
    assert warned(tmp_path, ["p1", "p2"], '"unit"')["warnings"] == []


def test_a_link_under_the_name_of_a_part_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    with OutputFolder(tmp_path / "out") as out:
        out.part("records.jsonl").symlink_to(victim)
        out.open("records.jsonl")
        out.write("records.jsonl", b"private")
        out.commit()
    assert victim.read_text() == "mine"
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == b"private"
    replaced = tmp_path / "settings.toml"
    replaced.with_name(f".settings.toml.{os.getpid()}").symlink_to(victim)
    replace_file(replaced, b"other")
    assert (victim.read_text(), replaced.read_bytes()) == ("mine", b"other")
    assert not replaced.is_symlink()


def test_what_no_import_has_written_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "held-out.jsonl").write_text("by hand")
    source = write_csv(tmp_path / "c.csv", rows(30))
    run_import(request(tmp_path, source, OPEN), progress=nothing)
    assert contents(tmp_path / "out")["held-out.jsonl"] == b"by hand"


def test_a_refused_import_makes_nothing_its_own(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "held-out.jsonl").write_text("by hand")
    bad = [(*one[:2], None, *one[3:]) for one in rows(20)]
    source = write_csv(tmp_path / "c.csv", bad)
    with pytest.raises(ImportRefused):
        run_import(request(tmp_path, source, OPEN), progress=nothing)
    run_import(request(tmp_path, write_csv(tmp_path / "c.csv", rows(30)), OPEN), progress=nothing)
    assert contents(tmp_path / "out")["held-out.jsonl"] == b"by hand"


def test_the_cap_is_counted_over_people_to_train_on(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "c.csv", rows(90))
    asked = request(tmp_path, source, OPEN + "[split]\nheld_out = 0.5\n", cap=2)
    told = run_import(asked, progress=nothing)
    assert told["units"]["units"] == 30
    assert told["units"]["by_records"]["3-5"] == 30
    assert told["units"]["cut_by_cap"] == told["records"] // 3
    assert told["units"]["records_cut_by_cap"] == told["records"] // 3


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nothing.csv", "there is no such file"),
        ("cases.doc", "no kind of file is called '.doc'"),
        ("sqlite:///nothing.sqlite", "there is no such SQLite file"),
        ("env:LADA_TEST_NOWHERE", "the environment has no LADA_TEST_NOWHERE"),
        ("nosuch+driver://me:secret@host/x", "the database's address cannot be used"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cases.doc").write_bytes(b"x")
    asked = request(tmp_path, source, OPEN + ("" if source.startswith("sqlite") else QUERY))
    with pytest.raises(ParameterError, match=told) as failed:
        run_import(asked, progress=nothing)
    assert "secret" not in str(failed.value)
    assert not asked.out.exists()


def test_a_damaged_file_of_each_kind_is_one_sentence(tmp_path: Path) -> None:
    for name in ("c.parquet", "c.xlsx"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(ParameterError, match="cannot read"):
            run_import(request(tmp_path, str(tmp_path / name), OPEN), progress=nothing)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ParameterError, match="cannot read"):
        run_import(request(tmp_path, str(tmp_path / "folder"), OPEN), progress=nothing)
