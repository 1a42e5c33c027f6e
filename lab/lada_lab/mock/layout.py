"""Where everything of a mock run lies: one folder per party, as if each were a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

from lada_clients.net.study_folder import find_study_folder
from lada_protocol.events import EVENTS_FILE
from lada_protocol.studies import STUDIES

COORDINATOR: Final = "coordinator"
AUDITOR: Final = "auditor"


Role: TypeAlias = Literal["coordinator", "auditor", "site"]
_SETTINGS: Final[dict[Role, str]] = {
    "coordinator": "server.toml",
    "auditor": "auditor.toml",
    "site": "site.toml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyFolder:
    """One party's folder.

    identity: certificates and keys, as `lada ca issue` writes them. settings: the file that the
    party's command reads. state: everything its process writes; `events` is in it. log: standard
    output and error of the process.
    """

    root: Path
    role: Role
    identity: Path
    settings: Path
    state: Path
    events: Path
    log: Path

    @classmethod
    def at(cls, root: Path, role: Role) -> Self:
        """The folder of a party in that role."""
        return cls(
            root=root,
            role=role,
            identity=root / "identity",
            settings=root / _SETTINGS[role],
            state=root / "state",
            events=root / "state" / EVENTS_FILE,
            log=root / "log.txt",
        )

    @property
    def study(self) -> Path:
        """What the party keeps of the run's one study.

        Raises: ParameterError: it has joined none yet.
        """
        return find_study_folder(self.state, None)

    def allocations(self, rounds: int) -> list[Path]:
        """What a site allocated, in the rounds that it reached. It stays in the site's folder."""
        names = (f"{STUDIES}/*/allocation-round-{number}.json" for number in range(rounds))
        return [path for name in names for path in self.state.glob(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLayout:
    """The folder of a run. Site ids come from the data."""

    root: Path
    site_ids: tuple[str, ...]

    @property
    def ca(self) -> Path:
        """The study CA, made for this run only."""
        return self.root / "ca"

    @property
    def roster(self) -> Path:
        """Fingerprints of all parties; in real life agreed out of band."""
        return self.root / "roster.json"

    @property
    def export(self) -> Path:
        """What the auditor exports for `lada audit verify`."""
        return self.root / "export"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        """The report for people."""
        return self.root / "report.html"

    @property
    def coordinator(self) -> PartyFolder:
        """The coordinator's folder."""
        return PartyFolder.at(self.root / COORDINATOR, "coordinator")

    @property
    def auditor(self) -> PartyFolder:
        """The auditor's folder."""
        return PartyFolder.at(self.root / AUDITOR, "auditor")

    def site(self, site_id: str) -> PartyFolder:
        """One site's folder."""
        return PartyFolder.at(self.root / site_id, "site")

    @property
    def parties(self) -> dict[str, PartyFolder]:
        """Folders by party id: coordinator, auditor, then the sites."""
        sites = {site_id: self.site(site_id) for site_id in self.site_ids}
        return {COORDINATOR: self.coordinator, AUDITOR: self.auditor, **sites}
