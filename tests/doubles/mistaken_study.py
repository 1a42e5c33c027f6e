"""A whole study as `lada init`, `lada ca admit` and `lada init join` make it, to be spoiled.

It lies at one place, because settings name whole paths; each mistake begins with a fresh copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from architecture_doubles import family_folder
from checked_run import change_json, change_toml
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from lada_clients.ca.authority import init_ca, issue_party
from lada_clients.site.gates.policy import study_caps
from lada_clients.site.ledger.population import ledger_path
from lada_clients.site.ledger.store import SqliteLedger
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_lab.worlds.federation import build_federation
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role
from lada_protocol.party_files import read_roster, read_settings
from lada_protocol.plan import StudyPlan, parse_plan
from lada_secure.canonical import canonical_json
from lada_secure.cli import build_app
from lada_secure.data.records import read_pool, write_json_lines
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.proposal import prepare_study

COORDINATOR, AUDITOR, SITE = "hub", "auditor", "hospital-a"
SITES = (SITE, "hospital-b", "bank")
PLAN = "plan.json"
# Not 7443: a coordinator of somebody else may run on this machine.
PORT = 45_219


def invoke(*words: str) -> Result:
    """Run a `lada` command in this process."""
    return CliRunner().invoke(build_app(), words, env={"COLUMNS": "200", "NO_COLOR": "1"})


def set_up(root: Path) -> None:
    """Make everything: public and private data, a small model, five parties that have joined.

    Beside them lie a second model of another family, and the plan that would be proposed.
    """
    root.mkdir(parents=True)
    family_folder("Llama", root / "models" / "small")
    family_folder("GPT-2", root / "models" / "other")
    data = build_federation("tiny", sites=len(SITES), seed=7)
    write_json_lines(root / "pool.jsonl", data.pool)
    for party, site in zip(SITES, data.sites.values(), strict=True):
        write_json_lines(root / f"{party}.jsonl", site.train)
        write_json_lines(root / f"{party}-held-out.jsonl", site.held_out)
    os.chdir(root)
    begun = _done(
        "init coordinator hub --name hub --pool pool.jsonl --llm models/small --rounds 1 --threads "
        f"1 --address localhost:{PORT} --auditor {AUDITOR} --embedder hashed-ngrams "
        + " ".join(f"--site {site}" for site in SITES)
    )
    invited = begun["invitations"]
    _done(f"init auditor {AUDITOR} --invite {invited[AUDITOR]}")
    for site in SITES:
        _done(
            f"init site {site} --invite {invited[site]} --records {site}.jsonl --held-out "
            f"{site}-held-out.jsonl --model models/small --threads 1"
        )
    requests = " ".join(f"{one}/request-{one}.json" for one in (AUDITOR, *SITES))
    admitted = _done(f"ca admit hub/ca {requests}")
    for party in (COORDINATOR, AUDITOR, *SITES):
        _done(f"init join {party} hub/ca/bundle.json --fingerprint '{admitted['fingerprint']}'")
    (root / PLAN).write_bytes(_proposal(root).to_bytes())


def _done(command: str) -> dict[str, Any]:
    done = invoke(*shlex.split(command), "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _proposal(root: Path) -> StudyPlan:
    settings = read_settings(root / COORDINATOR / "server.toml", ServerSettings)
    return prepare_study(
        read_settings(settings.study, StudySettings),
        pool=read_pool(settings.pool),
        roster=read_roster(settings.roster),
        now=datetime.now(UTC),
        kept_plan=root / "nowhere.json",
    ).plan


@dataclass(frozen=True)
class Study:
    """The study of one mistake. patch, ends: undone and closed when the mistake is over."""

    root: Path
    patch: pytest.MonkeyPatch
    ends: ExitStack

    def path(self, name: str) -> Path:
        """A file by its name in the study."""
        return self.root / name

    def toml(self, name: str, **changes: Any) -> None:
        """Set keys of a settings file; see `change_toml`."""
        change_toml(self.path(name), **changes)

    def json(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file."""
        change_json(self.path(name), change)

    def text(self, name: str, change: Callable[[str], str]) -> None:
        """Change a text file."""
        self.path(name).write_text(change(self.path(name).read_text()))

    def lines(self, name: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Change the objects of a JSON Lines file."""
        rows = [json.loads(line) for line in self.path(name).read_text().splitlines()]
        change(rows)
        self.path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plan(self, **changes: Any) -> None:
        """Change the plan: a table is added to."""

        def change(found: dict[str, Any]) -> None:
            for key, value in changes.items():
                found[key] = {**found[key], **value} if isinstance(value, dict) else value

        self.json(PLAN, change)
        path = self.path(PLAN)
        path.write_bytes(canonical_json(json.loads(path.read_text())))

    def other_identity(self, party: str, role: Role, *, days: int = 30, ago: int = 0) -> Path:
        """An identity folder that another CA, or one of another time, has issued."""
        now = datetime.now(UTC).replace(microsecond=0)
        then = now.fromtimestamp(now.timestamp() - ago * 86_400, UTC)
        ca, folder = self.path("other-ca"), self.path("other-identity")
        init_ca(ca, name="another study", days=days, now=then)
        issue_party(
            ca,
            party=PartyName(role=role, id=party),
            hosts=("localhost",),
            days=days,
            out=folder,
            now=then,
        )
        return folder

    def later(self, *, days: int) -> datetime:
        """So many days from now."""
        return datetime.now(UTC) + timedelta(days=days)

    def answering(self, said: bytes) -> int:
        """A port of this machine where whoever calls is told this, whatever they say."""
        listening = self.ends.enter_context(socket.create_server(("127.0.0.1", 0)))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    called, _ = listening.accept()
                    with called:
                        called.recv(65_536)
                        called.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        return int(listening.getsockname()[1])

    def ledger(
        self, *, ahead_s: float = 0.0, site: str = SITE, key: Ed25519PrivateKey | None = None
    ) -> SqliteLedger:
        """The site's ledger, begun by a clock that is so far ahead; for the mistake to close."""
        settings = read_settings(self.path("hospital-a/site.toml"), SiteSettings)
        policy = read_settings(settings.policy, SitePolicy)
        settings.state_dir.mkdir(exist_ok=True)
        plan = parse_plan(self.path(PLAN).read_bytes())
        return SqliteLedger(
            ledger_path(settings, policy),
            site=site,
            population=policy.population,
            signing_key=key or settings.credentials().signing_key,
            caps=study_caps(plan, policy),
            clock=lambda: datetime.now(UTC) + timedelta(seconds=ahead_s),
            time_step_s=plan.privacy.ledger_time_step_s,
        )


def ledgers(root: Path) -> dict[str, bytes]:
    """Every ledger under a root, by its name; their logs with them."""
    found: Iterable[Path] = root.rglob("ledger-*")
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(found)}


def fresh_copy(pristine: Path, root: Path) -> None:
    """Put the study back as it was set up."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)
