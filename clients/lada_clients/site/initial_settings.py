"""What `lada init site` writes: the site's settings and its policy, with recommended values."""

from __future__ import annotations

from typing import Final

from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.kinds import Role
from lada_protocol.party_templates import RoleTemplates, template_beside

_POLICY: Final = template_beside(__file__, "policy.toml", SitePolicy)
TEMPLATES: Final = RoleTemplates(
    role=Role.SITE,
    files=(template_beside(__file__, "site.toml", SiteSettings), _POLICY),
    pins=_POLICY,
)
