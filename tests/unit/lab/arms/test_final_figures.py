"""Figures of the final runs on the pages are those that the frozen command gives."""

from __future__ import annotations

import csv
import json
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from lada_lab.bench_commands import app

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "docs" / "results"
KINDS = ("harm", "familiar")


def cells(line: str) -> list[str]:
    """Of one line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


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
    # Below a table's title: its head, a rule, and a row for every condition.
    rows = [[cells(line) for line in tables(kind)[1].splitlines()[2:]] for kind in KINDS]
    wanted = [[*harm[2:4], *familiar[2:4]] for harm, familiar in zip(*rows, strict=True)]
    readme = (ROOT / "README.md").read_text("utf-8")
    _, table = readme.split("## Does choosing samples help?")
    lines = [line for line in table.splitlines() if line.startswith("|")][2 : 2 + len(wanted)]
    assert [cells(line)[1:] for line in lines] == wanted


def test_both_pages_say_what_real_processes_gave() -> None:
    found: dict[str, dict[int, list[float]]] = {}
    with (RESULTS / "data" / "end-to-end.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_seed = found.setdefault(row["strategy"], {})
            by_seed.setdefault(int(row["seed"]), []).append(100 * float(row["after"]))
    means = {
        name: np.array([np.mean(one) for _, one in sorted(by_seed.items())])
        for name, by_seed in found.items()
    }
    page = (RESULTS / "allocation.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for at, seed in enumerate(sorted(found["domain"])):
        told = " | ".join(f"{means[name][at]:.1f}" for name in ("valued_gain", "domain", "random"))
        assert f"| {seed} | {told} |" in page
    for rival in ("domain", "random"):
        lead = means["valued_gain"] - means[rival]
        low, high = stats.t.interval(0.95, len(lead) - 1, lead.mean(), stats.sem(lead))
        assert f"**{lead.mean():+.1f}" in page
        assert f"[{low:+.1f}, {high:+.1f}]**" in page
        assert re.search(rf"by {lead.mean():.1f}( points)? \[{low:.1f}, {high:.1f}\]", readme)


def test_the_page_says_what_each_part_is_worth() -> None:
    files = [str(RESULTS / "data" / name) for name in ("final-harm.csv", "parts-harm.csv")]
    done = CliRunner().invoke(app, ["analyse", *files, "--rivals", "mass-valuation", "--json"])
    page = (RESULTS / "allocation.md").read_text("utf-8")
    worths = [one for one in json.loads(done.stdout)["parts"] if one["epsilon"] == 8.0]
    assert {one["part"] for one in worths} >= {"both judges", "data valuation", "replay"}
    for one in worths:
        low, high = one["interval"]
        told = f"{100 * one['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        assert re.search(
            rf"^\| {one['part']} \|.* {one['worlds']} \| {re.escape(told)} \|", page, re.MULTILINE
        ), one["part"]


def test_no_description_of_a_run_names_a_folder_of_its_machine() -> None:
    for path in (RESULTS / "data").glob("*.json"):
        assert not re.search(r"[\s\"'=]/\w+/", path.read_text("utf-8")), path.name
