"""Shared by all folders: a small study with real certificates, made once per test session."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from postgresql_server import PostgresServer

from lada_clients.ca.authority import init_ca, issue_party, make_roster
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.credentials import Credentials
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Role
from lada_protocol.party_files import load_credentials
from lada_protocol.wire.envelope import Envelope, Header, sign_envelope

# A shell that starts a job in the background lets it ignore Ctrl-C, and every child of the job
# too; tests that send one want it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HOSTS = ("localhost", "127.0.0.1")
PARTIES = (
    PartyName(role=Role.COORDINATOR, id="coordinator"),
    PartyName(role=Role.AUDITOR, id="auditor"),
    PartyName(role=Role.SITE, id="hospital-a"),
    PartyName(role=Role.SITE, id="hospital-b"),
    PartyName(role=Role.SITE, id="bank"),
)


class Study:
    """One CA, its parties' identity folders and the roster. `outsider` is issued, not listed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.now(UTC)
        init_ca(folder / "ca", name="test CA", days=30, now=self.now)
        for name in (*PARTIES, PartyName(role=Role.SITE, id="outsider")):
            issue_party(
                folder / "ca",
                party=name,
                hosts=HOSTS,
                days=20,
                out=folder / name.id,
                now=self.now,
            )
        self.roster: Roster = make_roster(
            folder / "ca",
            parties=[folder / name.id for name in PARTIES],
            out=folder / "roster.json",
            now=self.now,
        )

    def identity(self, party: str) -> Path:
        """The party's identity folder."""
        return self.folder / party

    def credentials(self, party: str) -> Credentials:
        """The party's loaded credentials."""
        return load_credentials(self.folder / party)

    def envelope(
        self,
        kind: str,
        sender: str,
        payload: bytes = b"",
        *,
        to: str = "",
        round_id: int = 0,
        attempt: int = 0,
        purpose: str = "",
        body: dict[str, Any] | None = None,
    ) -> Envelope:
        """A message that `sender` really signed."""
        header = Header(
            kind=kind,
            study_id="study",
            plan_hash="0" * 64,
            roster_hash=self.roster.hash,
            round_id=round_id,
            attempt=attempt,
            purpose=purpose,
            sender=sender,
            to=to,
            body=self._body(kind) if body is None else body,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            payload_bytes=len(payload),
        )
        return sign_envelope(header, self.credentials(sender).signing_key)

    def _body(self, kind: str) -> dict[str, Any]:
        """A body with the fields of its kind, for tests that are about something else."""
        digest = "0" * 64
        certificate = "a certificate that nobody reads here"
        bodies: dict[str, dict[str, Any]] = {
            "plan": {"certificate": certificate},
            "acceptance": {
                "certificate": certificate,
                "population": "records",
                "ledger_id": digest,
                "head_index": 1,
                "head_hash": digest,
                "new_ledger": True,
                "slm": {
                    "architecture": "LlamaForCausalLM",
                    "parameters": 1000,
                    "licence": "",
                    "revision": "",
                    "weights_sha256": digest,
                    "tokenizer_sha256": digest,
                    "template_sha256": digest,
                },
            },
            "admission": {"acceptance": digest, "known_entries": 0},
            "cohort": {"sites": ["bank", "hospital-a", "hospital-b"]},
            "mask_key": {"public_key": "09" + "0" * 62},
            "contribution": {
                "keys_digest": digest,
                "opening_key": digest,
                "paid_by": digest,
                "parameters_digest": digest,
                "rests_on": digest,
            },
            "opened": {"contributions": {}, "sum_message": digest, "largest": 0},
            "query": {"cells": 1},
            "scores": {"matrix": digest, "query": digest, "pool_size": 1},
            "trained": {"paid_by": digest},
            "abort": {"code": "malformed", "message": "given up by a test"},
            "finished": {"rounds": 1},
        }
        return bodies.get(kind, {})


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with one coordinator, one auditor and three sites."""
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def make_study(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Study]:
    """Makes further studies, each with a CA of its own."""
    return lambda: Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; tests that need one are skipped where none is installed."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
