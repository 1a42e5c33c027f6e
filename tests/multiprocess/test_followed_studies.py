"""Services that stay: one study after the other, and no file of site or auditor is edited."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from federation import PreparedFederation
from next_studies import set_value

from lada_lab.mock.preparation import free_port, lada_command

SITES = ("site-a", "site-b", "site-c")
FOLLOWERS = ("auditor", *SITES)
# A study of 1 round costs epsilon 2.08 here, two of them 2.5, three of them 2.9.
CAP = 2.7


class Federation:
    """Followers run for the whole test; the coordinator is started for each study."""

    def __init__(self, root):
        self.prepared = PreparedFederation(root, rounds=1, seed=7)
        self.layout = self.prepared.layout
        self.root = root
        study = self.layout.coordinator.root / "study.toml"
        set_value(study, "steps_per_round", 2)
        set_value(study, "phase_timeout_s", 120.0)
        for site in SITES:
            set_value(self.layout.site(site).root / "policy.toml", "epsilon_cap_total", CAP)
        self.untouched = self.files()

    def files(self):
        """Everything that people at sites and auditor have written."""
        return {
            path: path.read_bytes()
            for party in FOLLOWERS
            for path in self.layout.parties[party].root.glob("*.toml")
        }

    @contextmanager
    def following(self):
        """All sites and the auditor as services, each with a log; they are killed at the end."""
        running = {}
        try:
            for party in FOLLOWERS:
                with self.log(party).open("wb") as log:
                    running[party] = subprocess.Popen(
                        [*self.prepared.child(party).arguments, "--follow"],
                        env=self.prepared.environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
            yield running
        finally:
            for process in running.values():
                process.kill()
                process.wait()

    def log(self, party):
        """What a service has said."""
        return self.root / f"{party}.log"

    def coordinate(self, study_id):
        """Propose a study by one line of the coordinator's, and serve it to its end."""
        set_value(self.layout.coordinator.root / "study.toml", "study_id", study_id)
        done = self.prepared.start("coordinator")
        said = done.communicate(timeout=500)[0]
        assert "Traceback" not in said, said
        return done.returncode, said

    def lada(self, *arguments):
        done = subprocess.run(
            lada_command(*arguments),
            env=self.prepared.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def studies(self, group, party):
        """What `studies --json` says, by study id."""
        settings = self.layout.parties[party].settings
        told = json.loads(self.lada(group, "studies", "--settings", settings, "--json"))
        assert told["party"] == party
        return {study["study_id"]: study for study in told["studies"]}

    def waits(self, party, times):
        """Until a service has said so often that it waits for the next study."""
        deadline = time.monotonic() + 120
        while self.log(party).read_text().count("waiting for the next study") < times:
            assert time.monotonic() < deadline, self.log(party).read_text()
            time.sleep(0.5)


def open_files(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def resident_mib(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_studies_one_after_the_other_without_an_edit_at_site_or_auditor(tmp_path):
    federation = Federation(tmp_path / "run")
    with federation.following() as services:
        status, said = federation.coordinate("first")
        assert status == 0, said
        for party in FOLLOWERS:
            federation.waits(party, 2)
        handles = {party: open_files(one) for party, one in services.items()}
        memory = {party: resident_mib(one) for party, one in services.items()}

        # The same services; the coordinator changed one line.
        status, said = federation.coordinate("second")
        assert status == 0, said
        for party in FOLLOWERS:
            federation.waits(party, 3)
            assert services[party].poll() is None, federation.log(party).read_text()
        assert {party: open_files(one) for party, one in services.items()} == handles
        for party, one in services.items():
            assert resident_mib(one) < memory[party] + 150, party

        # A third one would pass the budget of every site: refused, and everybody lives on.
        status, said = federation.coordinate("third")
        assert status == 1, said
        assert "site-a: the study would pass what is left of its privacy budget" in said
        for party in FOLLOWERS:
            federation.waits(party, 4)
            assert services[party].poll() is None, federation.log(party).read_text()
        told = federation.studies("site", "site-a")
        assert [one["state"] for one in told.values()] == ["finished", "finished", "refused"]
        assert [one["rounds_done"] for one in told.values()] == [1, 1, 0]
        assert told["first"]["epsilon"] == pytest.approx(told["second"]["epsilon"])
        assert told["third"]["epsilon"] == 0.0
        assert all(one["epsilon_promised"] is None for one in told.values())

        audited = federation.studies("auditor", "auditor")
        assert list(audited) == ["first", "second", "third"]
        assert audited["second"]["by_site"] == pytest.approx(
            dict.fromkeys(SITES, told["second"]["epsilon"])
        )
        assert len({audited[one]["export"] for one in audited}) == 3
        proposed = federation.studies("server", "coordinator")
        assert [one["state"] for one in proposed.values()] == ["finished", "finished", "failed"]
        assert len({one["folder"] for one in proposed.values()}) == 3

        for one in services.values():
            one.send_signal(signal.SIGTERM)
        for party, one in services.items():
            assert one.wait(timeout=60) == 0, federation.log(party).read_text()
    assert federation.files() == federation.untouched
    first_two = [audited[one]["export"] for one in ("first", "second")]
    assert "2 studies: all good" in federation.lada("audit", "verify", *first_two)


def second_federation(federation):
    """The same sites, with the same state folders, beside another coordinator and auditor.

    One roster serves both: the two coordinators are one party at two addresses, and so are the
    auditors. Returns: the command of each process.
    """
    layout, port = federation.layout, free_port(0)
    others = {}
    for party, folder in layout.parties.items():
        other = folder.root / f"second-{folder.settings.name}"
        shutil.copyfile(folder.settings, other)
        if party == "coordinator":
            shutil.copyfile(folder.root / "study.toml", folder.root / "second-study.toml")
            set_value(other, "study", "second-study.toml")
            set_value(folder.root / "second-study.toml", "study_id", "beside")
            set_value(other, "listen", f"127.0.0.1:{port}")
        else:
            set_value(other, "coordinator", f"localhost:{port}")
        if party in ("coordinator", "auditor"):
            set_value(other, "state_dir", "second-state")
        if party == "auditor":
            set_value(other, "export_dir", "../second-export")
        own = federation.prepared.child(party).arguments
        others[party] = [str(other) if one == str(folder.settings) else one for one in own]
        assert str(other) in others[party]
    return others


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_studies_at_once_share_one_ledger_and_one_budget(tmp_path):
    federation = Federation(tmp_path / "run")
    parties = list(federation.layout.parties)
    others = second_federation(federation)
    commands = {("first", party): federation.prepared.child(party).arguments for party in parties}
    commands |= {("beside", party): others[party] for party in parties}
    running = {}
    for name, command in commands.items():
        with federation.log("-".join(name)).open("wb") as log:
            running[name] = subprocess.Popen(
                command, env=federation.prepared.environment, stdout=log, stderr=subprocess.STDOUT
            )
    try:
        for name, process in running.items():
            said = federation.log("-".join(name))
            assert process.wait(timeout=900) == 0, f"{name}: {said.read_text()}"
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    told = federation.studies("site", "site-a")
    assert {one["state"] for one in told.values()} == {"finished"}
    assert len(told) == 2
    settings = federation.layout.site("site-a").settings
    budget = json.loads(federation.lada("site", "ledger", "--settings", settings, "--json"))
    assert max(one["epsilon"] for one in told.values()) < budget["epsilon"] <= CAP
    # They were under way together: neither had ended when the other one reserved.
    lines = federation.layout.site("site-a").state.glob("studies/*/events.jsonl")
    spans = [[json.loads(line)["time_s"] for line in path.open()] for path in lines]
    (first, second) = ((span[0], span[-1]) for span in spans)
    assert first[0] < second[1]
    assert second[0] < first[1]
    exports = [federation.layout.export, federation.root / "second-export"]
    assert "2 studies: all good" in federation.lada("audit", "verify", *exports)
