"""The same parties in one study after the other: state folders stay, the study is new each time."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime

from federation import PreparedFederation

from lada_clients.ca.authority import issue_party, make_roster
from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.preparation import free_port, lada_command
from lada_lab.worlds.named_models import make_model
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role

PARTIES = ("coordinator", "auditor", "site-a", "site-b", "site-c")


class NextStudies:
    """A mock federation whose parties take part in studies 1, 2, ..."""

    def __init__(self, root):
        self.prepared = PreparedFederation(root, rounds=1, seed=7)
        self.layout = self.prepared.layout
        self.number = 0

    def propose(self, *, rounds=1, slm="tiny-slm-3-7"):
        """Settings of the next study, as its operators would write them."""
        make_model(slm, cache_dir=default_cache_dir(os.environ))
        self.number += 1
        study = self.layout.coordinator.root / "study.toml"
        set_value(study, "study_id", f"study-{self.number}")
        for site in self.layout.site_ids:
            set_value(self.layout.site(site).settings, "slm", slm)
        set_value(study, "rounds", rounds)
        set_value(study, "steps_per_round", 2)
        set_value(study, "phase_timeout_s", 60.0)
        server = self.layout.coordinator.settings
        port = free_port(0)
        set_value(server, "state_dir", f"state-{self.number}")
        set_value(server, "listen", f"127.0.0.1:{port}")
        set_value(self.layout.auditor.settings, "export_dir", f"../export-{self.number}")
        for party in PARTIES[1:]:
            settings = self.layout.parties[party].settings
            set_value(settings, "coordinator", f"localhost:{port}")

    def run(self):
        """Run every party to its end; status and output of each."""
        running = {party: self.prepared.start(party) for party in PARTIES}
        said = {party: one.communicate(timeout=200)[0] for party, one in running.items()}
        for party, text in said.items():
            assert "Traceback" not in text, f"{party}: {text}"
        return {party: (one.returncode, said[party]) for party, one in running.items()}

    def export(self, number):
        """Where the auditor has exported a study."""
        return self.layout.root / f"export-{number}"

    def cap(self, epsilon):
        """Let every site allow so much over all studies."""
        for site in self.layout.site_ids:
            set_value(self.policy(site), "epsilon_cap_total", float(epsilon))

    def policy(self, site):
        """A site's policy file."""
        return self.layout.site(site).root / "policy.toml"

    def renew_identity(self, site):
        """New keys for a site, and the new roster that everybody has agreed on; the old folder."""
        folder = self.layout.site(site)
        old = folder.root / "identity-before"
        folder.identity.rename(old)
        now = datetime.now(UTC)
        issue_party(
            self.layout.ca,
            party=PartyName(role=Role.SITE, id=site),
            hosts=("localhost",),
            days=1,
            out=folder.identity,
            now=now,
        )
        self.layout.roster.unlink()
        parties = [self.layout.parties[one].identity for one in PARTIES]
        roster = make_roster(self.layout.ca, parties=parties, out=self.layout.roster, now=now)
        for file in (self.layout.auditor.settings, *map(self.policy, self.layout.site_ids)):
            set_value(file, "roster_sha256", roster.hash)
        return old

    def lada(self, *arguments):
        """Run a command; status and output."""
        done = subprocess.run(
            lada_command(*arguments),
            env=self.prepared.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done


def set_value(file, key, value):
    """Set one top-level or nested key of a TOML file; it is there already, once."""
    text = file.read_text()
    written = f'"{value}"' if isinstance(value, str) else str(value)
    changed, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {written}", text)
    assert count == 1, f"{key} is not once in {file.name}"
    file.write_text(changed)


def put_back(backup, folder):
    """Replace a folder by its backup."""
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
