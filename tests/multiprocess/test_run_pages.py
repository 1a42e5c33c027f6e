"""Five machines from nothing, by the pages for those who run them: every command of them is typed.

docs/run-a-site.md, run-an-auditor.md, operate-a-coordinator.md and what size-a-machine.md tries, in
the order that people would: one study is run, with all logs in JSON, and its folders are backed up,
restored and left.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from next_studies import set_value
from page_shell import Page, PageShell

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.preparation import child_environment, free_port, lada_command
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.named_models import make_model
from lada_secure.data.records import write_json_lines

pytestmark = pytest.mark.slow

SITES = ("hospital-a", "hospital-b", "bank")
MACHINES = ("hub", "auditor", *SITES)
RUNS = ("lada server run", "lada auditor run", "lada site run")
FINGERPRINT = "46643 34748 74415 75499 15828 84013"


class Machines(PageShell):
    """The parties' machines, with what each has ready, and the pages' commands."""

    def __init__(self, root):
        super().__init__(root)
        self.site, self.auditor = Page("run-a-site.md"), Page("run-an-auditor.md")
        self.hub, self.size = Page("operate-a-coordinator.md"), Page("size-a-machine.md")
        self.monitor = f"127.0.0.1:{free_port(0)}"
        port = free_port(0)
        # What the pages leave to their defaults, and small models on a few shared cores need
        # otherwise, stands behind the last option of each command.
        self.said = {
            "hub.example.org:7443": f"localhost:{port}",
            "'hub.example.org', 7443": f"'localhost', {port}",
            "127.0.0.1:9090": self.monitor,
            "--llm models/llm": "--llm models/llm --rounds 1 --threads 1",
            "--model models/slm": "--model models/slm --threads 1",
        }
        cache = default_cache_dir(os.environ)
        data = build_federation("tiny", sites=3, seed=7)
        for machine in MACHINES:
            (root / machine / "models").mkdir(parents=True)
        make_model("tiny-llm-3-7", cache_dir=cache)
        make_model("tiny-slm-3-7", cache_dir=cache)
        shutil.copytree(cache / "tiny-llm-3-7", root / "hub" / "models" / "llm")
        write_json_lines(root / "hub" / "pool.jsonl", data.pool)
        for machine, site in zip(SITES, data.sites.values(), strict=True):
            shutil.copytree(cache / "tiny-slm-3-7", root / machine / "models" / "slm")
            write_json_lines(root / machine / "records.jsonl", site.train)
            write_json_lines(root / machine / "held-out.jsonl", site.held_out)

    def carry(self, name, source, *targets):
        """Carry a file or folder from one machine to others."""
        for target in targets:
            found = self.root / source / name
            copy = shutil.copytree if found.is_dir() else shutil.copy
            copy(found, self.root / target / found.name)

    def at_sites(self, heading, **more):
        """A section of the site's page, at every site."""
        for site in SITES:
            self.type_section(self.site, heading, machines={"hospital-a": site}, **more)

    def set_up(self):
        """Everybody joins."""
        ((_, line, _), *rest) = self.hub.sections["Begin"]
        told = json.loads(self.type("hub", f"{line} --json"))
        self.said["INVITATION"] = told["invitations"]
        for machine, following, shown in rest:
            self.type(machine, following, shown)
        self.hub.left.discard("Begin")
        set_value(self.root / "hub" / "hub" / "study.toml", "steps_per_round", 2)
        self.type_section(self.auditor, "Begin")
        self.at_sites("Begin")
        for machine in MACHINES[1:]:
            self.carry(f"{machine}/request-{machine}.json", machine, "hub")
        ((_, admit, _), *_) = self.hub.sections["Admit the others"]
        self.said[FINGERPRINT] = json.loads(self.type("hub", f"{admit} --json"))["fingerprint"]
        self.type_section(self.hub, "Admit the others", without=(*RUNS, admit))
        self.carry("hub/ca/bundle.json", "hub", *MACHINES[1:])
        self.type_section(self.auditor, "Join")
        self.at_sites("Join")

    def start(self, machine, line):
        """Start a party; its standard error is kept."""
        environment = child_environment(os.environ)
        return subprocess.Popen(
            lada_command(*line.split()[1:]),
            cwd=self.root / machine,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def serve(self):
        """Start the coordinator and wait until it answers."""
        running = self.start("hub", "lada server run --settings hub/server.toml")
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            try:
                with urlopen(f"http://{self.monitor}/healthz", timeout=5):
                    return running
            except OSError:
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.2)
        running.kill()
        raise AssertionError("the coordinator does not answer")

    def ledger_entries(self, machine, folder):
        """How many entries a site's ledger has."""
        told = self.type(machine, f"lada site ledger --settings {folder}/site.toml --json")
        return json.loads(told)["entries"]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Everybody has joined; no study yet."""
    made = Machines(tmp_path_factory.mktemp("machines"))
    made.set_up()
    return made


@pytest.fixture(scope="module")
def said(machines):
    """The standard error of every party over a whole study, and its status."""
    running = {"hub": machines.serve()}
    try:
        machines.type_section(machines.size, "Network")
        machines.type_section(machines.hub, "Watch it")
        runs = machines.auditor.sections["Run"]
        (line,) = (one for _, one, _ in runs if one.startswith(RUNS))
        running["auditor"] = machines.start("auditor", line)
        (line,) = (one for _, one, _ in machines.site.sections["Run"] if one.startswith(RUNS))
        for site in SITES:
            running[site] = machines.start(site, line.replace("hospital-a", site))
        return {
            name: (one.communicate(timeout=250)[1], one.returncode) for name, one in running.items()
        }
    finally:
        for one in running.values():
            one.kill()


def test_every_line_that_a_party_logs_is_json(said):
    assert {name: status for name, (_, status) in said.items()} == dict.fromkeys(MACHINES, 0), said
    for name, (text, _) in said.items():
        lines = [json.loads(line) for line in text.splitlines()]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines), name
    # How far training is, too. No library has drawn a bar (`test_standard_error` has one do it).
    loggers = {json.loads(line)["logger"] for line in said["hospital-a"][0].splitlines()}
    assert "lada_secure.progress" in loggers
    assert "stderr" not in loggers


@pytest.mark.usefixtures("said")
def test_what_the_pages_say_after_a_study(machines):
    machines.type_section(machines.site, "Run", without=RUNS)
    machines.type_section(machines.auditor, "Run", without=RUNS)
    machines.type_section(machines.auditor, "What a site has spent")
    spent = machines.ledger_entries("hospital-a", "hospital-a")

    machines.type_section(machines.site, "Back up")
    machines.type_section(machines.site, "Restore")
    machines.type_section(machines.auditor, "Back up")
    machines.type_section(machines.auditor, "Restore")
    machines.type_section(machines.hub, "Back up and restore")
    copy = Path("auditor/state/ledgers/hospital-a/hospital-a.people.jsonl")
    known = len((machines.root / "auditor" / copy).read_bytes().splitlines())
    assert machines.ledger_entries("hospital-a", "hospital-a") == known == spent > 1

    ((at, renew, shown), *rest) = machines.site.sections["New certificates, passphrase and key"]
    machines.type(at, renew, shown)
    machines.carry("for-hospital-a", "hub", "hospital-a")
    for at, line, shown in rest:
        machines.type(at, line, shown)
    machines.site.left.discard("New certificates, passphrase and key")
    machines.type_section(machines.hub, "New certificates and keys")
    machines.type_section(machines.auditor, "A site whose ledger is lost")

    machines.type_section(machines.hub, "A party leaves")
    machines.type_section(machines.site, "Leave the federation")
    pages = (machines.site, machines.auditor, machines.hub, machines.size)
    left = {page.name: page.left for page in pages if page.left}
    # The test below.
    assert left == {"run-a-site.md": {"Leave a study"}}


def test_a_site_leaves_a_study_that_it_had_accepted(tmp_path):
    machines = Machines(tmp_path)
    machines.set_up()
    serving = machines.serve()
    site = machines.start("hospital-a", "lada site run --settings hospital-a/site.toml")
    try:
        deadline = time.monotonic() + 200
        ledger = "lada site ledger --settings hospital-a/site.toml --json"
        while '"decision": "approve"' not in machines.type("hospital-a", ledger, status=(0, 1, 2)):
            assert time.monotonic() < deadline
            time.sleep(1)
        machines.type_section(machines.site, "Leave a study")
        told = machines.type("hospital-a", ledger)
        assert re.search('"decision": "withdraw"', told)
    finally:
        for one in (serving, site):
            one.kill()
            one.communicate()
