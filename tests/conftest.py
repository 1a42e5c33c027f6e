"""Shared by all folders: a small study with real certificates, made once per test session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lada_clients.ca.authority import init_ca, issue_party, make_roster
from lada_clients.credentials import load_credentials
from lada_protocol.credentials import Credentials
from lada_protocol.envelope import Envelope, Header, sign_envelope
from lada_protocol.identity import PartyName
from lada_protocol.kinds import Role
from lada_protocol.roster import Roster

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
            body=body or {},
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            payload_bytes=len(payload),
        )
        return sign_envelope(header, self.credentials(sender).signing_key)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with one coordinator, one auditor and three sites."""
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def make_study(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Study]:
    """Makes further studies, each with a CA of its own."""
    return lambda: Study(tmp_path_factory.mktemp("study"))
