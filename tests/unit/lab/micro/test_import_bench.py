"""`lada bench import` measures every kind of source, and says on what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_lab.bench_commands import app
from lada_lab.micro.import_files import KINDS, made_up_rows
from lada_lab.micro.importing import run_import_bench
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.errors import ParameterError


def test_an_import_is_measured_beside_a_plain_reader() -> None:
    done = CliRunner().invoke(
        app, ["import", "--rows", "300", "--kind", "csv", "--kind", "omop", "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report["kinds"]) == {"csv", "omop"}
    for found in report["kinds"].values():
        for one in ("import", "plain"):
            assert found[one]["rows_per_cpu_s"] > 0
            # A Python process alone takes some ten megabytes.
            assert 5_000_000 < found[one]["peak_bytes"] < 1_000_000_000
        assert found["plain"]["reader"] == "polars"
        assert found["import"]["same_bytes_again"]
    assert report["rows"] == 300
    assert "Python" in report["machine"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_holds_the_table_for_both_readers(kind: str, tmp_path: Path) -> None:
    known = KINDS[kind]
    file = tmp_path / f"cases{known.suffix}"
    known.write(file, 30)
    # openpyxl counts the header.
    assert known.plain(file) == 30 + (kind == "excel")
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(known.mapping())
    request = ImportRequest(source=known.source(file), mapping=mapping, out=tmp_path / "out")
    told = run_import(request, progress=lambda *_: None)
    assert told["records"] + told["held_out"] == 30
    assert told["rejected"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_rows_take_less_than_a_gigabyte_and_twice_give_one_file(
    kind: str,
) -> None:
    # Records of one template are compared with many like them, which takes minutes.
    near = kind != "omop" and not kind.startswith("fhir")
    found = run_import_bench(rows=100_000, kinds=[kind], near=near)["kinds"][kind]["import"]
    assert found["peak_bytes"] < 1_000_000_000
    assert found["same_bytes_again"]


def test_an_unknown_kind_is_refused_and_the_table_is_made_up() -> None:
    with pytest.raises(ParameterError, match="--kind: expected of csv"):
        run_import_bench(rows=3, kinds=("odt",), near=False)
    assert list(made_up_rows(3)) == list(made_up_rows(3))
