"""More sites on the same machine: each a party of its own, and costs that grow no faster."""

import json
import os
import subprocess
import sys

import pytest

from lada_lab.machine import process_usage
from lada_lab.mock.scale import GROWING, dealt_data, run_scale
from lada_secure.errors import ParameterError

LADA = (sys.executable, "-c", "from lada_secure.cli import main; main()")


def test_records_are_dealt_to_any_number_of_sites():
    data = dealt_data(50, seed=1)
    assert len(data.sites) == 50
    assert {len(one.train) for one in data.sites.values()} == {60}
    assert len({one.train[0].question for one in list(data.sites.values())[:3]}) == 3


@pytest.mark.parametrize("sizes", [[], [2], [3, 201]])
def test_a_number_of_sites_that_makes_no_study_is_refused_and_nothing_is_written(tmp_path, sizes):
    with pytest.raises(ParameterError, match="--sites"):
        run_scale(sizes, out=tmp_path / "out", cache_dir=tmp_path, seed=0, say=print)
    assert list(tmp_path.iterdir()) == []


def test_the_usage_of_a_process_grows_and_ends_with_it():
    own = process_usage(os.getpid())
    assert own.resident_bytes > 10_000_000
    assert own.cpu_s > 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert process_usage(ended.pid) is None


@pytest.mark.slow
def test_a_site_that_fails_ends_the_others_and_is_named(tmp_path):
    folder = tmp_path / "site-009"
    folder.mkdir()
    (folder / "site.toml").write_text("party = 1")
    done = subprocess.run(
        [sys.executable, "-m", "lada_lab.mock.many_sites", folder / "site.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "site-009 ended with status 2" in done.stdout
    assert "the key" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_twice_as_many_sites_send_as_much_each_and_all_evidence_holds(tmp_path):
    wanted = ("--sites", "3", "--sites", "6", "--out", tmp_path / "out", "--json")
    done = subprocess.run(
        [*LADA, "mock", "scale", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    small, large = report["sizes"]
    assert [small["sites"], large["sites"]] == [3, 6]
    assert small["openings"] == large["openings"] == 2
    assert small["messages_up"] == large["messages_up"]
    assert abs(large["bytes_up"] / small["bytes_up"] - 1) < 0.01
    assert set(report["growth"]) == set(GROWING)
    assert report["growth"]["coordinator_peak_bytes"] < 1
