"""Figures of the final runs on the pages are those that the frozen command gives."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_lab.bench_commands import app

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "docs" / "results"
KINDS = ("harm", "familiar")
ROW = re.compile(r"^\| ([\w-]+) \| (?:\d+) \| ([\d.]+%) \| (.*?) \|", re.MULTILINE)


@cache
def tables(kind: str) -> list[str]:
    """What the protocol's own command prints for one kind of world."""
    protocol = (RESULTS / "protocol.md").read_text("utf-8")
    (command,) = re.findall(rf"^lada bench (analyse final-{kind}\.csv .*)$", protocol, re.MULTILINE)
    words = [str(RESULTS / "data" / one) if ".csv" in one else one for one in shlex.split(command)]
    done = CliRunner().invoke(app, [*words, "--markdown"])
    assert done.exit_code == 0, done.output
    return done.stdout.strip().split("\n\n")


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_every_table_of_the_final_runs(kind: str) -> None:
    page = (RESULTS / "allocation.md").read_text("utf-8")
    missing = [one for one in tables(kind) if one.startswith("|") and one not in page]
    assert missing == [], f"{len(missing)} tables of final-{kind}.csv"


def test_the_readme_has_accuracies_and_leads_at_epsilon_8() -> None:
    columns = [ROW.findall(tables(kind)[1]) for kind in KINDS]
    told = [
        " | ".join(cell for _, accuracy, lead in row for cell in (accuracy, lead))
        for row in zip(*columns, strict=True)
    ]
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\|[^|]+\| (\d.*) \|$", readme, re.MULTILINE)
    assert [one.replace("| |", "|  |").removesuffix(" |") for one in rows] == [
        one.removesuffix(" | ") for one in told
    ]


def test_the_page_says_what_each_part_is_worth() -> None:
    files = [str(RESULTS / "data" / name) for name in ("final-harm.csv", "parts-harm.csv")]
    done = CliRunner().invoke(app, ["analyse", *files, "--rivals", "mass-valuation", "--json"])
    page = (RESULTS / "allocation.md").read_text("utf-8")
    worths = [one for one in json.loads(done.stdout)["parts"] if one["epsilon"] == 8.0]
    assert {one["part"] for one in worths} >= {"both judges", "data valuation", "replay"}
    for one in worths:
        points = [f"{100 * share:+.1f}" for share in (one["mean"], *one["interval"])]
        told = "{} [{}, {}]".format(*points)
        assert re.search(
            rf"^\| {one['part']} \|.* {one['worlds']} \| {re.escape(told)} \|", page, re.MULTILINE
        ), one["part"]
