"""Imports end to end: the same bytes from every kind of source, and nothing half-done ever."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from import_sources import (
    LISTED,
    OPEN,
    QUERY,
    WRITERS,
    cells,
    nothing,
    request,
    rows,
    write_csv,
    write_jsonl,
    write_sql,
)

from lada_lab.worlds.federation import build_federation
from lada_secure.data.importing.outputs import OutputFolder
from lada_secure.data.importing.run import ImportRefused, run_import
from lada_secure.data.records import Record, inspect_records, write_json_lines
from lada_secure.errors import ParameterError, Stopped, TransportError
from lada_secure.storage.whole_files import replace_file


def contents(folder: Path) -> dict[str, bytes]:
    found = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def demo() -> tuple[Record, ...]:
    """A site's records as the mock writes them: of the preset demo where WordNet is there."""
    try:
        data = build_federation("demo", sites=3, seed=0)
    except ParameterError:
        data = build_federation("tiny", sites=3, seed=0)
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


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals that this process may have been started without, as by nohup."""
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    deaf = [one for one in stops if signal.getsignal(one) is signal.SIG_IGN]
    for one in deaf:
        signal.signal(one, signal.SIG_DFL)
    yield
    for one in deaf:
        signal.signal(one, signal.SIG_IGN)


def test_a_signal_that_the_shell_has_switched_off_stops_nothing(tmp_path: Path) -> None:
    asked = request(tmp_path, write_csv(tmp_path / "many.csv", rows(3000)), OPEN)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        told = run_import(asked, progress=lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told["records"] == 3000


@pytest.mark.usefixtures("heard")
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
