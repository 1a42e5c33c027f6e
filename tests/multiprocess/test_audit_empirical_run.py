"""`lada audit empirical` on a real federation's site: the commands of its page, and a fault.

With an eighth of the noise (1/8 where 1 is claimed, q = .1, 40 steps) the 704 guesses are the
surest of about 940 canaries that joined and took part: 60 simulated runs expected less than 1e-17
wrong guesses each, and two are allowed. The right trainer gets about three quarters right.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LADA = str(Path(sys.executable).with_name("lada"))
PAGE = Path(__file__).parents[2] / "docs" / "audit-empirically.md"
FAULTY = """
from lada_secure.dpsgd import trainer
from lada_secure.dpsgd.noise import DiscreteGaussian
trainer.DiscreteGaussian = lambda std: DiscreteGaussian(std / 8)
from lada_secure.cli import main
main()
"""

pytestmark = pytest.mark.slow


def run(*arguments, cwd):
    return subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, timeout=900, check=False
    )


def commands_of(page):
    fences = re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [line for fence in fences for line in fence.splitlines() if line.startswith("lada ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `runs/first` is a finished mock run."""
    root = tmp_path_factory.mktemp("attack")
    done = run(
        LADA, "mock", "run", "--preset", "tiny", "--sites", "3", "--rounds", "1",
        "--out", "runs/first", cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def test_the_page_has_commands():
    assert len(commands_of(PAGE)) == 3
    assert all(one.startswith("lada audit empirical ") for one in commands_of(PAGE))


@pytest.mark.parametrize("command", commands_of(PAGE))
def test_every_command_of_the_page_clears_the_shipped_trainer(folder, command):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = run(LADA, *shlex.split(command)[1:], cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    if "--json" in command:
        result = json.loads(done.stdout)
        assert 0.0 < result["bound"] < result["epsilon"] < result["largest_bound"]
        assert result["noise_seen"] == pytest.approx(result["noise_multiplier"], rel=0.1)
    else:
        assert "no contradiction" in done.stdout


def test_an_eighth_of_the_noise_is_found(folder):
    done = run(
        sys.executable, "-c", FAULTY, "audit", "empirical", "runs/first", "--site", "site-b",
        "--json", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["flagged"] is True
    assert result["bound"] > result["epsilon"]
    assert result["noise_seen"] < 0.25 * result["noise_multiplier"]
