"""What the coordinator's checks read: each file once, at its first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from lada_protocol.identity.roster import Roster
from lada_protocol.party_files import read_roster, read_settings
from lada_secure.check.running import Request
from lada_secure.data.records import PoolSample, read_pool
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.places import check_others_over, settings_of_study


class CoordinatorReading:
    """Files of the coordinator. Every property raises what reading its file raises."""

    def __init__(self, file: Path, request: Request) -> None:
        self._file = file
        self.request = request

    @cached_property
    def settings(self) -> ServerSettings:
        """`server.toml`."""
        return read_settings(self._file, ServerSettings)

    @cached_property
    def study(self) -> StudySettings:
        """`study.toml`."""
        return read_settings(self.settings.study, StudySettings)

    @cached_property
    def study_dir(self) -> Path:
        """The folder of this study; nothing is made."""
        check_others_over(self.settings.state_dir, self.study.study_id)
        return settings_of_study(self.settings, self.study.study_id).state_dir

    @cached_property
    def roster(self) -> Roster:
        """As the file says it; nobody pins it here."""
        return read_roster(self.settings.roster)

    @cached_property
    def pool(self) -> tuple[PoolSample, ...]:
        """The study's public pool."""
        return read_pool(self.settings.pool)

    @property
    def known_roster(self) -> Roster | None:
        """The roster where it has been read already; it has a check of its own."""
        return vars(self).get("roster")
