"""What `lada init coordinator` writes: its settings and a first study, with recommended values."""

from __future__ import annotations

from typing import Final

from lada_protocol.kinds import Role
from lada_protocol.party_templates import RoleTemplates, template_beside
from lada_server.settings import ServerSettings, StudySettings

TEMPLATES: Final = RoleTemplates(
    role=Role.COORDINATOR,
    files=(
        template_beside(__file__, "server.toml", ServerSettings),
        template_beside(__file__, "study.toml", StudySettings),
    ),
    pins=None,
)
