"""`lada explain`: what it finds, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lada_clients.site.explain.allocation import ExplainedCell, read_rounds, site_study
from lada_clients.site.explain.commands import app
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.explanation import explain_cells
from lada_secure.allocation.gap import cell_rewards
from lada_secure.allocation.reward_model import CellBeliefs, Forecast
from lada_secure.allocation.strategies import CellView
from lada_secure.errors import ParameterError


def cell(number: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cell": number, "cluster": number // 2, "difficulty": number % 2, "mass": 0.5, "band": 0.9,
        "probability": 0.6, "exploitation": 0.05, "exploration": 0.02, "utility": 1.0,
        "picked": 0, "trained": 0, "reward": None,
    }  # fmt: skip
    return {**row, **changes}


def study(run: Path, name: str = "first") -> Path:
    return run / "site-a" / "state" / "studies" / f"{name}-{'0' * 16}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two sites; site-a has one round in which two of four cells got samples."""
    for name in ("site-a", "site-b"):
        (tmp_path / name / "state").mkdir(parents=True)
        (tmp_path / name / "site.toml").touch()
    study(tmp_path).mkdir(parents=True)
    (study(tmp_path) / "plan.json").touch()
    cells = [
        cell(0, picked=3, trained=2, reward=0.04, agreement=0.97),
        cell(1),
        cell(2, picked=9, mass=0.0, band=0.1, probability=0.98, agreement=0.02),
        cell(3),
    ]
    path = study(tmp_path) / "allocation-round-1.json"
    path.write_text(json.dumps({"round": 1, "cells": cells}))
    return tmp_path


def test_cells_with_samples_are_told_with_reasons_and_outcome(run: Path) -> None:
    done = CliRunner().invoke(app, [str(run), "--site", "site-a", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["site"] == "site-a"
    first, second = told["rounds"][0]["cells"]
    assert (first["cell"], first["picked"], second["cell"], second["picked"]) == (2, 9, 0, 3)
    assert "none of the site's data" in first["why"]
    assert "almost known (p 0.98)" in first["why"]
    assert first["brought"] == "nothing trained: no path passed the screen"
    assert "its paths contradict the site's records (98% sure)" in first["why"]
    assert "within reach (p 0.60)" in second["why"]
    assert "its paths agree with the site's records (97% sure)" in second["why"]
    assert "expects +0.050" in second["why"]
    assert second["brought"] == "p rose by 0.040"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lacking": 0.82}, "the SLM lacks most of the topic's pool samples (82%)"),
        ({"lacking": 0.1}, "the SLM knows most of the topic's pool samples (90%)"),
    ],
)
def test_what_the_slm_lacks_is_told_where_it_is_much_or_little(
    run: Path, changes: dict[str, Any], told: str
) -> None:
    path = study(run) / "allocation-round-1.json"

    def why(**more: Any) -> str:
        path.write_text(json.dumps({"round": 1, "cells": [cell(0, picked=1, **more)]}))
        done = CliRunner().invoke(app, [str(run), "--site", "site-a", "--json"])
        return str(json.loads(done.stdout)["rounds"][0]["cells"][0]["why"])

    assert told in why(**changes)
    # In the middle, and in files from before, there is nothing to say.
    assert not any("SLM" in why(**more) for more in ({"lacking": 0.5}, {}))


def test_what_a_site_writes_of_a_cell_is_what_is_read() -> None:
    """A column by another name would be left out without a word."""
    grid = CellGrid(clusters=1, bins=1)
    one = np.full(1, 0.5)
    view = CellView(
        beliefs=CellBeliefs(
            grid=grid, mass_share=one, mean_loss=one, probability=one, last_reward=one, picks=one
        ),
        forecast=Forecast(exploitation=one, exploration=one),
        agreement=one,
        lacking=one,
    )
    rewards = cell_rewards([], [], [], cells=1)
    (written,) = explain_cells(view, one, picked_cells=[], rewards=rewards)
    assert set(written) == set(ExplainedCell.model_fields)


def test_a_round_that_fell_back_says_why(run: Path) -> None:
    path = study(run) / "allocation-round-1.json"
    fallback = {"action": "any_topic", "cause": "few_records", "because": "20 records [noise 7]"}
    told = "20 records [noise 7]; topics decide nothing, and any sample that the LLM solves may be"

    def rows(cells: list[dict[str, Any]], **fallback: Any) -> Any:
        path.write_text(json.dumps({"round": 1, "cells": cells, **fallback}))
        done = CliRunner().invoke(app, [str(run), "--site", "site-a", "--json"])
        return json.loads(done.stdout)["rounds"][0]

    one = rows([cell(0, picked=3)], fallback=fallback)
    assert one["fallback"]["cause"] == "few_records"
    assert one["fallback"]["told"].startswith(told)
    assert one["cells"][0]["why"] == "any topic: this round fell back"
    text = CliRunner().invoke(app, [str(run), "--site", "site-a"]).stdout
    assert f"Fallback in round 1: {told}" in text
    without = {**fallback, "action": "no_pool", "cause": "llm_weaker"}
    one = rows([cell(0, picked=3)], fallback=without)
    assert one["cells"][0]["brought"] == "nothing trained: this round did without the pool"
    assert "of the site's data" in one["cells"][0]["why"]
    rows([cell(0)], fallback=without)
    text = CliRunner().invoke(app, [str(run), "--site", "site-a"]).stdout
    assert "was given no samples in round 1" in text
    assert "on the records alone, without the pool" in text
    assert rows([cell(0, picked=3)])["fallback"] is None


def test_the_table_names_site_and_round(run: Path) -> None:
    done = CliRunner().invoke(app, [str(run), "--site", "site-a"])
    assert done.exit_code == 0, done.output
    assert "site-a, round 1: 12 samples from 2 of 4 cells" in done.stdout


def test_a_site_s_own_folder_needs_no_name(run: Path) -> None:
    assert site_study(run / "site-a", None, None) == ("site-a", study(run))


def test_of_two_studies_one_is_named(run: Path) -> None:
    second = study(run, "second")
    second.mkdir()
    (second / "plan.json").touch()
    with pytest.raises(ParameterError, match=r"several studies; name one: first-0+, second-0+"):
        site_study(run, "site-a", None)
    assert site_study(run, "site-a", "second") == ("site-a", second)
    with pytest.raises(ParameterError, match="no study third here yet"):
        site_study(run, "site-a", "third")


@pytest.mark.parametrize(
    ("folder", "site", "message"),
    [
        ("", None, "several sites"),
        ("", "site-c", "has site-a, site-b"),
        ("nowhere", None, "no such folder"),
        ("site-b", None, "no run and no site"),
        ("site-a", "site-b", "--site site-b: .* has site-a"),
    ],
)
def test_what_is_no_run_is_refused(run: Path, folder: str, site: str | None, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        site_study(run / folder, site, None)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"round": 0, "cells": []}', '{"round": 1, "cells": 3}']
)
def test_a_damaged_file_is_named(run: Path, text: str) -> None:
    (study(run) / "allocation-round-1.json").write_text(text)
    with pytest.raises(ParameterError, match=r"allocation-round-1\.json.*damaged"):
        read_rounds(study(run), None)


def test_a_round_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(ParameterError, match="has rounds 1"):
        read_rounds(study(run), 4)
