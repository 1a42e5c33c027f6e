"""Why a site does not take part, or no longer does: the closed list of what others are told.

What people give as their reasons stays at the site. A decision of theirs travels as a code, and as
a sentence that follows from the code alone.
"""

from __future__ import annotations

from enum import StrEnum

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex


class RefusalCode(StrEnum):
    """`code` of a site's own `refusal` (SPEC.md, "Checks and error codes")."""

    POLICY = "policy"
    OVER_BUDGET = "over_budget"
    BY_PERSON = "refused_by_person"
    UNDECIDED = "undecided"
    WITHDRAWN = "withdrawn"


def peoples_refusal(code: RefusalCode, *, site: str) -> str:
    """What all others read of what people at a site have decided, or have not.

    Args: code: one that is about people.
    """
    said = {
        RefusalCode.BY_PERSON: f"{site} refuses the plan: a person there decided against it",
        RefusalCode.UNDECIDED: f"{site} does not take part: nobody there decided in time",
        RefusalCode.WITHDRAWN: f"{site} withdrew from the study: a person there decided so",
    }
    return said[code]


def has_left(index: MessageIndex, site: str) -> bool:
    """Whether a site has refused the plan, or has withdrawn after it had accepted."""
    return index.find(Kind.REFUSAL, sender=site) is not None
