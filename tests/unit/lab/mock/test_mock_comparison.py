"""Runs side by side: means and standard errors against values worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lada_lab.mock.commands import app
from lada_lab.mock.comparison import ALL_SITES, Comparison, compare, read_reports
from lada_lab.mock.page import report_page
from lada_lab.mock.report import Report, Run, SiteFacts, Study, build_report
from lada_lab.mock.view import print_summary
from lada_protocol.events import Accuracy, Event, parse_event
from lada_secure.errors import ParameterError

SITES = ("hospital-a", "bank-a")
RECORDS = 50


def accuracy(party: str, when: str, value: float) -> Event:
    told = {
        "event": "accuracy",
        "party": party,
        "time_s": 1.0,
        "round_id": 0,
        "step": "evaluation",
        "when": when,
        "accuracy": value,
        "n": RECORDS,
        "seconds": 0.5,
    }
    found = parse_event(json.dumps(told).encode())
    assert isinstance(found, Accuracy)
    return found


def report(
    strategy: str, seed: int, after: tuple[float, float], *, preset: str = "tiny", failure: str = ""
) -> Report:
    """A run in which both sites start at 40% right."""
    return build_report(
        run=Run(
            preset=preset,
            seed=seed,
            rounds=1,
            outcome="failed" if failure else "finished",
            failure=failure,
            started="2026-01-31T12:00:00Z",
            wall_s=34.5,
            peak_memory_bytes=None,
            cpus=2,
            platform="Linux",
            python="3.11.7",
            software_version="0.1.0",
        ),
        study=Study(
            study_id=f"mock-tiny-{seed}",
            title="Arithmetic",
            slm="slm",
            llm="llm",
            embedder="hashed-ngrams",
            unit="customer",
            target_delta=1e-5,
            epsilon_cap=8.0,
            pool_size=192,
            pool_gradients="public",
            clusters=4,
            difficulty_bins=3,
            quota=40,
            strategy=strategy,
        ),
        facts=[SiteFacts(party=one, records=100, units=60, held_out=RECORDS) for one in SITES],
        roles=dict.fromkeys(SITES, "site"),
        events={
            site: [accuracy(site, "before", 0.4), accuracy(site, "after", value)]
            for site, value in zip(SITES, after, strict=True)
        },
        allocations={},
        started_s=0.0,
    )


RUNS = [
    report("lada", 1, (0.6, 0.8)),
    report("random", 1, (0.5, 0.5)),
    report("lada", 2, (0.7, 0.9)),
    report("random", 2, (0.7, 0.5)),
]


def gain(found: Comparison, strategy: str, site: str) -> dict[str, object]:
    (one,) = [one for one in found.gains if (one.strategy, one.site) == (strategy, site)]
    return one.model_dump()


def test_a_sites_gain_is_the_mean_over_runs_with_its_errors() -> None:
    one = gain(compare(RUNS), "lada", "hospital-a")
    assert (one["runs"], one["records"]) == (2, 2 * RECORDS)
    assert one["gain"] == pytest.approx(0.25)
    variances = [0.6 * 0.4, 0.7 * 0.3, 0.4 * 0.6, 0.4 * 0.6]
    assert one["standard_error"] == pytest.approx(math.sqrt(sum(variances) / RECORDS) / 2)
    # Gains of 0.2 and 0.3: their standard deviation over the root of two.
    assert one["between_runs"] == pytest.approx(0.05)


def test_strategies_are_compared_over_the_seeds_that_both_ran() -> None:
    found = compare([*RUNS, report("lada", 3, (0.1, 0.1))])
    (both,) = [one for one in found.differences if one.site == ALL_SITES]
    assert (both.strategy, both.other, both.seeds) == ("lada", "random", 2)
    # Seed 1: 0.7 less 0.5, seed 2: 0.8 less 0.6.
    assert both.difference == pytest.approx(0.2)
    assert both.between_runs == pytest.approx(0.0, abs=1e-9)
    (bank,) = [one for one in found.differences if one.site == "bank-a"]
    assert bank.difference == pytest.approx(0.35)


def test_one_run_has_no_spread_and_two_strategies_without_a_seed_in_common_no_difference() -> None:
    found = compare([RUNS[0], RUNS[3]])
    assert gain(found, "lada", "bank-a")["between_runs"] is None
    assert found.differences == ()


def test_the_command_prints_what_it_found(tmp_path: Path) -> None:
    for number, run in enumerate(RUNS):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "report.json").write_text(run.model_dump_json())
    folders = [str(tmp_path / str(number)) for number in range(len(RUNS))]
    done = CliRunner().invoke(app, ["compare", *folders, "--json"])
    assert done.exit_code == 0
    assert Comparison.model_validate_json(done.stdout) == compare(RUNS)
    shown = CliRunner().invoke(app, ["compare", *folders]).stdout
    assert "lada - random" in shown
    assert "+20.0" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{}", "not a report"),
        (report("lada", 1, (0.5, 0.5), failure="a site was lost").model_dump_json(), "was lost"),
        (report("lada", 1, (0.5, 0.5), preset="demo").model_dump_json(), "one preset"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    tmp_path: Path, text: str | None, message: str
) -> None:
    for name, content in (("good", RUNS[0].model_dump_json()), ("other", text)):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "report.json").write_text(content)
    with pytest.raises(ParameterError, match=message):
        read_reports([tmp_path / "good", tmp_path / "other"])


def test_what_a_run_has_over_others_is_on_its_page_and_in_its_summary() -> None:
    ours, other = report("lada", 1, (0.8, 0.6)), report("random", 1, (0.5, 0.6))
    told = ours.model_copy(update={"against": compare([ours, other]).differences})
    assert [(one.other, one.site) for one in told.against] == [
        ("random", "hospital-a"),
        ("random", "bank-a"),
        ("random", ALL_SITES),
    ]
    page = report_page(told)
    assert "Against other strategies" in page
    assert "+30.0" in page
    assert "Against other strategies" not in report_page(ours)
    console = Console(record=True, width=120)
    print_summary(console, told, files={})
    assert "lada - random" in (text := console.export_text())
    assert "+15.0" in text
