"""`lada bench import` measures every kind of source, and says on what."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lada_lab.bench_commands import app
from lada_lab.micro.importing import KINDS, made_up_rows, run_import_bench
from lada_secure.errors import ParameterError


def test_an_import_is_measured_beside_a_plain_reader() -> None:
    done = CliRunner().invoke(
        app, ["import", "--rows", "300", "--kind", "csv", "--kind", "sql", "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report["kinds"]) == {"csv", "sql"}
    for found in report["kinds"].values():
        for one in ("import", "plain"):
            assert found[one]["rows_per_cpu_s"] > 0
            # A Python process alone takes some ten megabytes.
            assert 5_000_000 < found[one]["peak_bytes"] < 1_000_000_000
    assert report["rows"] == 300
    assert "Python" in report["machine"]


@pytest.mark.slow
def test_a_hundred_thousand_rows_of_each_kind_take_less_than_a_gigabyte() -> None:
    report = run_import_bench(rows=100_000, kinds=KINDS, near=True)
    assert {
        kind: found["import"]["peak_bytes"]
        for kind, found in report["kinds"].items()
        if found["import"]["peak_bytes"] > 1_000_000_000
    } == {}


def test_an_unknown_kind_is_refused_and_the_table_is_made_up() -> None:
    with pytest.raises(ParameterError, match="--kind: expected of csv"):
        run_import_bench(rows=3, kinds=("odt",), near=False)
    assert list(made_up_rows(3)) == list(made_up_rows(3))
