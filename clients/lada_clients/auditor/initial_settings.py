"""What `lada init auditor` writes: the auditor's settings, with recommended values."""

from __future__ import annotations

from typing import Final

from lada_clients.auditor.runner import AuditorSettings
from lada_protocol.kinds import Role
from lada_protocol.party_templates import RoleTemplates, template_beside

_SETTINGS: Final = template_beside(__file__, "auditor.toml", AuditorSettings)
TEMPLATES: Final = RoleTemplates(role=Role.AUDITOR, files=(_SETTINGS,), pins=_SETTINGS)
