"""Who takes no part in a study, or no longer does."""

from __future__ import annotations

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex


def has_left(index: MessageIndex, site: str) -> bool:
    """Whether a site has refused the plan, or has withdrawn after it had accepted."""
    return index.find(Kind.REFUSAL, sender=site) is not None
