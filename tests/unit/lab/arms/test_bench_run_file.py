"""The file of runs: whole after every run, gone on with, and never overwritten by another plan."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_runs import made_up_run

from lada_lab.arms.ledgers import SharedRelease, SharedReleases
from lada_lab.arms.run_file import (
    held_run_file,
    parse_releases,
    read_runs,
    releases_bytes,
)
from lada_lab.arms.runs import Run, csv_text, parse_runs
from lada_secure.errors import ParameterError

POINT = (("allocation.strategy", '"guided"'), ("world.marked", "0.25"))
RUNS = [
    made_up_run("random", 1, [0.1, 0.3], point=POINT),
    made_up_run("random", 1, [0.2, 0.4], point=POINT, draw=2),
    made_up_run("lada-transfer", 1, [0.5, 0.7], point=POINT, epsilon=0.1 + 0.2,
                transfers=({"asked": 4, "accepted": True},)),
]  # fmt: skip
FACTORS = [name for name, _ in POINT]
PLAN = {"seeds": [1], "conditions": {"random": {"asks": "method"}}, "started": {"command": "one"}}
RELEASES = {
    "site-a": SharedReleases(
        outputs={("group", 0, "statistics", 0): SharedRelease(output=b"\x00\xff", cpu_s=1.5)}
    ),
    "site-b": SharedReleases(),
}


def test_runs_are_read_as_they_were_written() -> None:
    assert parse_runs(csv_text(RUNS, FACTORS), where="here") == RUNS


def test_a_line_per_run_and_site_whose_seconds_add_up() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(RUNS, FACTORS))))
    assert len(rows) == 2 * len(RUNS)
    assert rows[2] == {
        "condition": "random", "epsilon": "8", "seed": "1", "draw": "2",
        "allocation.strategy": '"guided"', "world.marked": "0.25", "site": "site-a",
        "accuracy": "0.200000", "llm_before": "0.700000", "llm_accuracy": "0.750000",
        "asked": "12", "received": "11", "received_harmful": "3", "trained": "8",
        "trained_harmful": "2", "spent": "7.900000", "cpu_s": "3.0000", "alone_s": "5.0000",
        "transfers": "",
    }  # fmt: skip
    assert sum(float(row["cpu_s"]) for row in rows) == sum(run.outcome.cpu_s for run in RUNS)


def test_a_file_from_before_there_were_draws_is_read() -> None:
    text = (
        "condition,epsilon,seed,site,accuracy,llm_before,llm_accuracy,asked,received,"
        "received_harmful,trained,trained_harmful\n"
        "lada-secure@1,1,70,site-a,0.5,0.7,0.7,120,120,26,94,0\n"
        "lada-secure@1,1,70,site-b,0.3,0.7,0.7,120,120,42,114,42\n"
        "lada-nonprivate,,70,site-a,1.0,0.7,0.7,120,120,17,103,0\n"
    )
    one, unbounded = parse_runs(text, where="here")
    assert (one.outcome.condition, one.draw, one.outcome.by_site) == ("lada-secure", 1, (0.5, 0.3))
    assert np.isnan([one.outcome.spent, one.outcome.cpu_s, one.outcome.alone_s]).all()
    assert unbounded.outcome.epsilon == float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("accuracy,", "precision,"), "expected a column accuracy"),
        (("0.100000", "1.1"), r"line 2: cannot be read: expected shares"),
        (("0.100000", ""), "line 2: cannot be read"),
        (("site-b", "site-a"), "has a site twice"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(change: tuple[str, str], message: str) -> None:
    text = csv_text(RUNS[:1], FACTORS).replace(*change)
    with pytest.raises(ParameterError, match=message):
        parse_runs(text, where="here")


def write(path: Path, *runs: Run, plan: dict[str, object] | None = None) -> None:
    with held_run_file(path, plan or PLAN, factors=FACTORS) as file:
        for run in runs:
            file.keep(run, None)


def test_a_file_is_gone_on_with_by_the_same_plan(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    write(path, RUNS[0])
    # Another command line, say with more processes, may lead to the same plan.
    again = {**PLAN, "started": {"command": "two"}}
    with held_run_file(path, again, factors=FACTORS) as file:
        assert list(file.known.values()) == RUNS[:1]
        file.keep(RUNS[1], None)
        assert path.read_text() == csv_text(RUNS[:2], FACTORS)
        file.arrange(lambda run: -run.draw)
    assert path.read_text() == csv_text([RUNS[1], RUNS[0]], FACTORS)
    assert json.loads((tmp_path / "runs.csv.json").read_text()) == PLAN
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.csv", "runs.csv.json"]


def test_another_plan_is_refused_with_what_differs_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    write(path, RUNS[0])
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    other = {**PLAN, "seeds": [1, 2], "conditions": {"random": {"asks": "all"}}}
    with pytest.raises(ParameterError) as refusal:
        write(path, plan=other)
    for part in (
        "seeds is [1] there and [1, 2] here",
        'conditions.random.asks is "method" there and "all" here',
        "name another file",
    ):
        assert part in str(refusal.value)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize("sidecar", [None, "", "not JSON", "[]"])
def test_a_file_that_says_nothing_of_its_plan_is_not_overwritten(
    sidecar: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("mine")
    if sidecar is not None:
        (tmp_path / "runs.csv.json").write_text(sidecar)
    with pytest.raises(ParameterError, match="is there already"):
        write(path)
    assert path.read_text() == "mine"
    assert (tmp_path / "runs.csv.json").exists() == (sidecar is not None)


def test_a_plan_without_runs_gives_way_to_another(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    write(path)
    write(path, RUNS[0], plan={**PLAN, "seeds": [2]})
    assert json.loads((tmp_path / "runs.csv.json").read_text())["seeds"] == [2]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with (
        held_run_file(path, PLAN, factors=FACTORS),
        pytest.raises(ParameterError, match="another process"),
    ):
        write(path)
    write(path)


def test_what_a_draw_shares_is_there_until_the_draw_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with held_run_file(path, PLAN, factors=FACTORS) as file:
        file.keep(RUNS[0], RELEASES)
    with held_run_file(path, PLAN, factors=FACTORS) as file:
        same_draw = replace(RUNS[0], outcome=replace(RUNS[0].outcome, condition="paper"))
        assert file.releases(same_draw.key) == RELEASES
        assert file.releases(RUNS[1].key) == {}
        file.keep(same_draw, None)
        assert file.releases(same_draw.key) == {}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.csv", "runs.csv.json"]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"site-a": [[1]]}', b'{"a": [["g",0,"s",0,1,"!"]]}'])
def test_releases_that_cannot_be_read_are_refused(raw: bytes) -> None:
    with pytest.raises(ParameterError, match="delete it"):
        parse_releases(raw, where="here")
    assert parse_releases(releases_bytes(RELEASES), where="here") == RELEASES


def test_files_of_one_plan_are_read_together_and_no_run_twice(tmp_path: Path) -> None:
    first, second, plain = (tmp_path / f"{name}.csv" for name in ("first", "second", "plain"))
    first.write_text(csv_text(RUNS[:1], FACTORS))
    second.write_text(csv_text(RUNS[1:], FACTORS))
    plain.write_text(csv_text([made_up_run("random", 1, [0.5])]))
    assert read_runs([first, second]) == RUNS
    with pytest.raises(ParameterError, match="is in another file as well"):
        read_runs([first, first])
    with pytest.raises(ParameterError, match="vary different settings"):
        read_runs([first, plain])
    with pytest.raises(ParameterError, match="cannot read"):
        read_runs([tmp_path / "none.csv"])
