"""docs/own-data-own-model.md, typed as it stands by somebody who knows nothing else.

The first test ends where a site has checked everything; the second one goes on to an answer of the
trained model.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checked_run import change_toml

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.preparation import child_environment, free_port, lada_command
from lada_lab.worlds.named_models import make_model

PAGE = (Path(__file__).parents[2] / "docs" / "own-data-own-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
NAMED = re.findall(r"Save as `([a-z]+\.(?:py|toml))`", PAGE)
FINGERPRINT = "03763 54990 66182 35385 24468 17502"
MODELS = ("tiny-llm-3-0", "tiny-slm-3-0")
pytestmark = pytest.mark.slow
RUN = ("lada server run", "lada auditor run", "lada site run")


class User:
    """Somebody with an empty folder and the page."""

    def __init__(self, root):
        self.root = root
        self.address = f"localhost:{free_port(0)}"
        self.invitations = {}
        self.fingerprint = ""
        self.names = iter(NAMED)
        self.typed = []

    def save(self, text):
        """A file that the page shows."""
        (self.root / next(self.names)).write_text(text, encoding="utf-8")

    def change(self, text):
        """The lines that the page has changed in the study file."""
        change_toml(self.root / "hub" / "study.toml", **tomllib.loads(text))

    def words(self, line):
        """A line as it is typed: with this machine's port, and what was printed before."""
        line = line.replace("localhost:7443", self.address).replace(FINGERPRINT, self.fingerprint)
        found = re.search(r"lada init \w+ (\S+) --invite INVITATION", line)
        if found is not None:
            line = line.replace("INVITATION", self.invitations[found[1]])
        return shlex.split(line)

    def start(self, line):
        self.typed.append(line)
        program, *rest = self.words(line)
        command = lada_command(*rest) if program == "lada" else (sys.executable, *rest)
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=child_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, line, shown):
        """Run a command to its end; it prints what the page shows, where "..." is anything."""
        running = self.start(line)
        said, wrong = running.communicate(timeout=300)
        assert running.returncode == 0, f"{line}\n{said}\n{wrong}"
        pattern = ".*".join(map(re.escape, re.split(r"\.\.\.", shown.rstrip())))
        assert re.search(pattern, said, re.DOTALL), f"{line}\nshown:\n{shown}\nprinted:\n{said}"
        printed = re.findall(r"^for \w+ (\S+) alone, until .*: (\S+)$", said, re.MULTILINE)
        self.invitations |= dict(printed)
        told = re.search(r"^fingerprint of the roster: ([0-9 ]+)$", said, re.MULTILINE)
        self.fingerprint = self.fingerprint if told is None else told[1]
        return said

    def follow(self, blocks):
        """Do what the page says, block by block."""
        for kind, text in blocks:
            if kind == "console":
                for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                    self.type(line, shown)
            elif kind == "toml" and not text.startswith("format ="):
                self.change(text)
            else:
                self.save(text)


def terminals():
    """Where the parties run, each in a terminal of its own."""
    (place,) = [at for at, (_, text) in enumerate(BLOCKS) if text.startswith("hub$ ")]
    return place, [line.partition("$ ")[2] for line in BLOCKS[place][1].splitlines()]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """Everything up to the study is done."""
    user = User(tmp_path_factory.mktemp("user"))
    # They take a minute to make, and are the same ones.
    for name in MODELS:
        make_model(name, cache_dir=default_cache_dir(os.environ))
        shutil.copytree(default_cache_dir(os.environ) / name, user.root / "models" / name)
    user.follow(BLOCKS[: terminals()[0]])
    return user


@pytest.mark.timeout(900)
def test_tables_become_a_study_that_is_ready_to_run(user):
    assert NAMED == ["tables.py", "mapping.toml", "pool.toml"]
    assert {path.name for path in (user.root / "models").iterdir()} == set(MODELS)
    records = (user.root / "data" / "hospital-a" / "records.jsonl").read_bytes().splitlines()
    assert json.loads(records[0])["task"] == {"kind": "number"}
    pool = (user.root / "data" / "pool" / "pool.jsonl").read_bytes().splitlines()
    assert json.loads(pool[0])["licence"] == "CC0"


@pytest.mark.timeout(1800)
def test_the_study_runs_and_its_model_answers(user):
    place, lines = terminals()
    assert len(lines) == 5
    assert all(line.startswith(RUN) for line in lines)
    running = {line: user.start(line) for line in lines}
    told = {}
    try:
        for line, one in running.items():
            told[line] = one.communicate(timeout=1500)
        assert {one.returncode for one in running.values()} == {0}, told
    finally:
        for one in running.values():
            one.kill()
    user.follow(BLOCKS[place + 1 :])
    found = json.loads((user.root / "report" / "study-report.json").read_bytes())
    before, after = found["rounds"][-1]["evaluation"]["models"]
    print(f"before {before['accuracy']}, after {after['accuracy']}")
    assert before["kinds"][0]["kind"] == "number"
    # What the page says of the figures; how much better is a matter of noise.
    assert after["accuracy"]["value"] > before["accuracy"]["value"]
    assert (user.root / "exported" / "adapter_model.safetensors").is_file()
