"""`lada bench analyse`: JSON with everything, tables of 100 columns, and a drawing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bench_runs import made_up_run
from typer.testing import CliRunner

from lada_lab.arms.runs import Run, csv_text
from lada_lab.bench_commands import app
from lada_secure.errors import ParameterError

OLD = Path(__file__).parents[4] / "docs" / "results" / "data"


def runs(marked: str | None = None) -> list[Run]:
    rng = np.random.default_rng(2)
    found = []
    leads = {"lada-secure": 0.3, "random": 0.0, "no-pool": 0.1, "no-valuation": 0.2}
    for seed in range(100, 107):
        for draw in (1, 2):
            usual = 0.4 + 0.05 * rng.normal(size=3)
            for name, lead in leads.items():
                shares = np.clip(usual + lead + 0.02 * rng.normal(size=3), 0, 1).round(6).tolist()
                point = () if marked is None else (("world.marked", marked),)
                found.append(made_up_run(name, seed, shares, draw=draw, point=point))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(csv_text(runs()))
    return path


def analyse(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["analyse", *map(str, words)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_the_json_has_everything_and_is_the_same_again(file: Path) -> None:
    wanted = (file, "--rivals", "random,no-pool", "--margin", "3", "--harm", "-2", "--json")
    text = analyse(*wanted)
    report = json.loads(text)
    (group,) = report["groups"]
    assert (group["epsilon"], group["draws"], group["factors"]) == (8.0, 2, {})
    assert [one["rival"] for one in group["comparisons"]] == ["random", "no-pool"]
    first = group["comparisons"][0]
    assert first["mean"] == pytest.approx(0.3, abs=0.02)
    assert first["interval"][0] < first["mean"] < first["interval"][1]
    assert first["p"] == pytest.approx(2 / 2**7, abs=1e-6)
    assert first["p_holm"] == pytest.approx(4 / 2**7, abs=1e-6)
    assert first["decision"] == "superior"
    assert first["seeds"] == list(range(100, 107))
    assert set(first["by_site"]) == {"site-a", "site-b", "site-c"}
    assert first["worst_site"]["difference"] < first["mean"]
    assert group["harmed"]["random"]["mean"] == 1.0
    assert group["harmed"]["lada-secure"]["mean"] == 0.0
    assert group["accuracy"]["random"]["missing"] == []
    (part,) = report["parts"]
    assert part["part"] == "data valuation"
    assert part["mean"] == pytest.approx(0.1, abs=0.02)
    assert report["machine_hours"] == pytest.approx(7 * 2 * 4 * 6.0 / 3600, abs=1e-4)
    assert analyse(*wanted) == text


def test_a_page_gets_the_same_tables(file: Path) -> None:
    wanted = (file, "--rivals", "random", "--margin", "3", "--harm", "-2")
    lines = analyse(*wanted, "--markdown").splitlines()
    assert lines[0] == "**lada-secure at epsilon 8**"
    head, _, ours, rival, alone = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7]
    )
    (group,) = json.loads(analyse(*wanted, "--json"))["groups"]
    assert [ours[0], rival[0], alone[0]] == ["lada-secure", "random", "no-pool"]
    (told,) = group["comparisons"]
    behind = head.index("behind by, 95%")
    assert rival[behind].startswith(f"{100 * told['mean']:+.1f} [")
    assert rival[head.index("p")] == f"{told['p_holm']:.3f}"
    # Nothing is decided about a site's own records, and so nothing is corrected for them.
    assert alone[behind].startswith(f"{100 * group['over_alone']['mean']:+.1f} [")
    assert alone[head.index("p")] == ""
    assert analyse(file, "--settings", "--markdown").startswith("**Settings tried**")


def test_a_p_of_nothing_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        csv_text(
            made_up_run(name, seed, [share + seed % 2 / 100] * 3)
            for seed in range(100, 112)
            for name, share in (("lada-secure", 0.8), ("random", 0.2))
        )
    )
    assert "| < 0.001 | superior |" in analyse(path, "--markdown")


def test_tables_fit_a_hundred_columns(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    grid = [*runs("0"), *runs("0.5")]
    path.write_text(csv_text(grid, ["world.marked"]))
    text = analyse(path)
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "lada-secure at epsilon 8, world.marked=0.5",
        "random",
        "data valuation at world.marked=0",
        "world.marked: 0.5 for 0",
        "Superior: interval above 3 points",
    ):
        assert part in text
    rows = [line for line in text.splitlines() if line.split()[:1] == ["random"]]
    assert len(rows) == 2
    assert "+30" in rows[0]


def tuning(tmp_path: Path) -> Path:
    """Two weights at which a rival was tried in three worlds, the second one better."""
    found = [
        made_up_run(name, seed, [lead + share, lead + share], point=(("loss.weight", weight),))
        for name, lead in (("topic-quotas", 0.0), ("random", 0.1))
        for weight, share in (("0.0", 0.2), ("0.3", 0.4))
        for seed in (10_001, 10_002, 10_003)
    ]
    path = tmp_path / "tuning.csv"
    path.write_text(csv_text(found, ["loss.weight"]))
    return path


def test_settings_that_were_tried_are_a_table_with_the_best_of_each_condition(
    tmp_path: Path,
) -> None:
    path = tuning(tmp_path)
    report = json.loads(analyse(path, "--ours", "topic-quotas", "--json"))
    rows = [
        (one["condition"], one["factors"]["loss.weight"], one["mean"], one["best"])
        for one in report["settings"]
    ]
    assert rows == [
        ("topic-quotas", "0.3", 0.4, True),
        ("topic-quotas", "0.0", 0.2, False),
        ("random", "0.3", 0.5, True),
        ("random", "0.0", 0.3, False),
    ]
    assert all((one["worlds"], one["draws"]) == (3, 1) for one in report["settings"])
    text = analyse(path, "--ours", "topic-quotas", "--settings")
    rows_of_text = [line.split() for line in text.splitlines()]
    (best,) = [row for row in rows_of_text if row[:1] == ["topic-quotas"] and "best" in row]
    assert best[-2:] == ["best", "0.3"]
    assert "Superior" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_setting_is_the_best_of_others_that_were_tried_on_other_worlds(tmp_path: Path) -> None:
    path = tuning(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    kept = [one for one in lines if not ("topic-quotas" in one and "10003" in one and "0.3" in one)]
    path.write_text("".join(kept))
    report = json.loads(analyse(path, "--ours", "topic-quotas", "--json"))
    best = {one["condition"] for one in report["settings"] if one["best"]}
    assert best == {"random"}


def test_one_setting_is_no_table(file: Path) -> None:
    assert json.loads(analyse(file, "--json"))["settings"] == []
    assert "random" not in analyse(file, "--settings")


def test_what_is_not_private_is_marked_and_is_no_rival(file: Path) -> None:
    bare = [
        made_up_run("oracle", seed, [0.9] * 3, draw=draw, cost=(math.inf, 10.0))
        for seed in range(100, 107)
        for draw in (1, 2)
    ]
    file.write_text(csv_text([*runs(), *bare]))
    report = json.loads(analyse(file, "--json"))
    assert report["not_private"] == ["oracle"]
    assert "oracle" not in report["rivals"]
    (group,) = report["groups"]
    assert group["accuracy"]["oracle"]["mean"] == pytest.approx(0.9)
    # Three rivals are corrected for, not four.
    assert {one["p_holm"] for one in group["comparisons"]} == {round(6 / 2**7, 6)}
    (row,) = [line for line in analyse(file).splitlines() if line.split()[:1] == ["oracle"]]
    assert row.split()[1:4] == ["(not", "private)", "7"]
    named = json.loads(analyse(file, "--rivals", "oracle,random", "--json"))
    assert [one["rival"] for one in named["groups"][0]["comparisons"]] == ["oracle", "random"]


def test_the_drawing_has_a_line_per_rival_and_is_the_same_again(file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    analyse(file, "--plot", plot, "--json")
    once = plot.read_text()
    drawn = ElementTree.fromstring(once)  # noqa: S314 (our own)
    texts = {one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"random", "no-pool", "no-valuation"} <= texts
    analyse(file, "--plot", plot, "--json")
    assert plot.read_text() == once


def test_published_runs_give_the_published_differences() -> None:
    wanted = ("--rivals", "domain-screen,random", "--json")
    report = json.loads(analyse(OLD / "tiny-eps8-seeds70-79.csv", *wanted))
    eight = next(group for group in report["groups"] if group["epsilon"] == 8.0)
    found = {one["rival"]: one for one in eight["comparisons"]}
    # As docs/results/allocation-two-methods.md has them.
    assert found["domain-screen"]["mean"] == pytest.approx(0.127, abs=0.0006)
    assert found["random"]["mean"] == pytest.approx(0.456, abs=0.0006)
    assert report["machine_hours"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ours", "best"], "best: no such runs"),
        (["--rivals", "random,best"], "best: no such runs"),
    ],
)
def test_conditions_that_were_not_run_are_refused(
    words: list[str], message: str, file: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        analyse(file, *words)
