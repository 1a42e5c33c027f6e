"""The two benchmarks: fields that a reader relies on, and figures that the design promises."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lada_lab.bench_commands import app
from lada_lab.micro.aggregation import run_aggregation
from lada_lab.micro.scores import run_scores
from lada_secure.errors import ParameterError


def test_the_opening_benchmark_reports_ratios_of_an_exact_sum() -> None:
    report = run_aggregation(entries=5000, sites=3, repetitions=1)
    assert report["exact"] is True
    assert set(report["ratio"]) == {"encrypt", "bytes", "add", "add_arithmetic", "open"}
    assert report["ratio"]["bytes"] < 0.35
    assert report["bytes"]["contribution"] == 36 + 2 * 2 * 4096 * 6


def test_the_scores_benchmark_reports_traffic_and_error() -> None:
    outcome = CliRunner().invoke(
        app, ["scores", "--pool", "3000", "--cells", "8", "--repetitions", "1", "--json"]
    )
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.output)
    assert 0 < report["ratio"]["server"] < 1
    assert report["bytes"]["up"] < 300_000
    assert report["bytes"]["keys"] == 0
    assert report["error"]["max"] <= 1e-4
    audit = report["audit"]
    assert audit["same_bytes"] is True
    assert audit["bytes_round"] == 36 + 2 * 8 * 2048 * 4
    assert audit["bytes_site"] == report["bytes"]["up"] + report["bytes"]["down"]


@pytest.mark.parametrize(
    ("command", "figures"),
    [
        (
            ["opening", "--entries", "10", "--sites", "2"],
            ["ratio.encrypt", "ratio.bytes", "ratio.add", "ratio.open"],
        ),
        (["scores", "--pool", "10", "--cells", "2"], ["ratio.server", "bytes.up", "error.max"]),
    ],
)
def test_a_benchmark_gives_the_same_figures_as_a_table_and_as_json(
    command: list[str], figures: list[str]
) -> None:
    command = [*command, "--repetitions", "1"]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0, table.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    for figure in figures:
        assert figure in table.output
        group, name = figure.split(".")
        assert isinstance(found[group][name], int | float)
        assert found[group][name] >= 0


@pytest.mark.parametrize("command", ["opening", "scores", "dpsgd"])
def test_each_help_page_has_an_example(command: str) -> None:
    outcome = CliRunner().invoke(app, [command, "--help"])
    assert outcome.exit_code == 0
    assert f"lada bench {command}" in outcome.output


@pytest.mark.parametrize("change", [{"sites": 1}, {"sites": 101}, {"repetitions": 0}])
def test_opening_sizes_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        run_aggregation(**{"entries": 10, "sites": 3, "repetitions": 1, **change})


@pytest.mark.parametrize("change", [{"pool": 0}, {"cells": 2000}, {"repetitions": 0}])
def test_scores_sizes_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        run_scores(**{"pool": 10, "cells": 3, "repetitions": 1, **change})


@pytest.mark.slow
def test_the_promised_ratios_hold() -> None:
    opening = run_aggregation(entries=100_000, sites=10, repetitions=7)["ratio"]
    assert opening["encrypt"] <= 0.30
    assert opening["bytes"] <= 0.18
    assert opening["add"] <= 0.35
    assert opening["open"] <= 0.45
    scores = run_scores(pool=10_000, cells=64, repetitions=3)
    assert scores["ratio"]["server"] <= 0.1
    assert scores["bytes"]["up"] <= 4_500_000
    assert scores["error"]["max"] <= 1e-4
    # The auditor does what the coordinator did, and no more.
    assert scores["audit"]["first_site"] <= 1.2
    assert scores["audit"]["further_site"] <= 1.2
