"""A mock federation in which people at some sites decide, each by a command of their own."""

import json
import subprocess
import time
from typing import NamedTuple

from federation import PreparedFederation
from typer.testing import CliRunner

from lada_lab.mock.preparation import lada_command
from lada_lab.mock.presets import preset_for
from lada_lab.worlds.federation import build_federation
from lada_secure.cli import build_app
from lada_secure.errors import LadaError

# For machines that are busy with other things: 40 seconds are enough where cores are free.
PATIENCE_S = 600.0
PERSON = "Dr. Ana O'Neil, data protection"
DAY_S = 86_400.0


class Said(NamedTuple):
    """How a command ended, and what it has printed."""

    returncode: int
    stdout: str
    stderr: str


class PeoplesStudy:
    """Parties of a small study; `asking` sites wait for a person.

    Args: decide_s: how long people may decide, from the proposal on; None: the plan says nothing.
    """

    def __init__(self, root, *, sites, asking, decide_s=None):
        preset = preset_for("tiny", sites=3, rounds=1, seed=7)
        short = preset.training.model_copy(update={"steps_per_round": 2})
        data = build_federation("tiny", sites=sites, seed=7)
        self.prepared = PreparedFederation(
            root, preset=preset.model_copy(update={"training": short}), data=data
        )
        self.layout, self.study = self.prepared.layout, preset.study_id
        self.running = {}
        for site in asking:
            policy = self.layout.site(site).root / "policy.toml"
            self.prepared.edit(policy, 'approval = "policy"', 'approval = "person"')
        if decide_s is not None:
            file = self.layout.coordinator.root / "study.toml"
            file.write_text(f"approval_days = {decide_s / DAY_S:.9f}\n{file.read_text()}")

    def __enter__(self):
        for party in self.layout.parties:
            self.running[party] = self.prepared.start(party)
        return self

    def __exit__(self, *_):
        for process in self.running.values():
            process.kill()
            process.communicate()

    def process(self, *words):
        """Run a command in a process of its own; status and output."""
        return subprocess.run(
            lada_command(*words),
            env=self.prepared.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def lada(self, *words):
        """Run a command in this process, which is no party's; status and output."""
        done = CliRunner().invoke(build_app(), [str(word) for word in words])
        error, said = done.exception, done.stderr
        if isinstance(error, LadaError):
            return Said(error.exit_status, done.stdout, f"{said}error ({error.code}): {error}")
        assert error is None or isinstance(error, SystemExit), error
        return Said(done.exit_code, done.stdout, said)

    def words(self, verb, site, *more, by=PERSON):
        """`lada site approve`, `refuse` or `withdraw`."""
        settings = self.layout.site(site).settings
        return ("site", verb, self.study, "--settings", settings, "--by", by, *more)

    def decide(self, verb, site, *more, by=PERSON):
        """The same, carried out here."""
        return self.lada(*self.words(verb, site, *more, by=by))

    def shown(self, site):
        """`lada site show`, for programs."""
        settings = self.layout.site(site).settings
        done = self.lada("site", "show", "--settings", settings, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def spent(self, site):
        """What the ledger of a site says, for programs."""
        settings = self.layout.site(site).settings
        done = self.lada("site", "ledger", "--settings", settings, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def decisions(self, site):
        """Every decision in a ledger, and by whom."""
        lines = self.layout.root / f"ledger-of-{site}.jsonl"
        settings = self.layout.site(site).settings
        done = self.lada("site", "ledger", "--settings", settings, "--out", lines)
        assert done.returncode == 0, done.stderr
        entries = [json.loads(line) for line in lines.read_text().splitlines()]
        return [
            (one["decision"], one["decided_by"]) for one in entries if one["kind"] == "decision"
        ]

    def status(self):
        """`lada server status`, for programs."""
        settings = self.layout.coordinator.settings
        return json.loads(self.lada("server", "status", "--settings", settings, "--json").stdout)

    def until(self, found, what):
        """Wait until something is there."""
        ends_s = time.monotonic() + PATIENCE_S
        while not found():
            assert time.monotonic() < ends_s, what
            ended = [one for one in self.running.values() if one.poll() is not None]
            assert not ended, (what, ended[0].communicate()[0])
            time.sleep(0.3)

    def until_it_asks(self, site):
        """Wait until a site waits for a person."""
        events = self.layout.site(site).state / "events.jsonl"
        self.until(
            lambda: events.exists() and "a person's decision" in events.read_text(),
            f"{site} never asked anybody",
        )

    def ended(self):
        """Status and output of every party."""
        said = {
            party: one.communicate(timeout=PATIENCE_S)[0] for party, one in self.running.items()
        }
        for party, text in said.items():
            assert "Traceback" not in text, f"{party}: {text}"
        return {party: (one.returncode, said[party]) for party, one in self.running.items()}

    def holds(self, text, *, but):
        """Files of all parties but one, and of everybody, that hold a text."""
        raw, own = text.encode(), self.layout.site(but).root
        return [
            path
            for path in self.layout.root.rglob("*")
            if path.is_file() and own not in path.parents and raw in path.read_bytes()
        ]
