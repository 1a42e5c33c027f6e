"""Whether a proposed study may still be withdrawn: only while no site can have spent anything."""

from __future__ import annotations

from typing import Final

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.wire.messages import CohortBody, parse_body
from lada_secure.method.plan import STATISTICS

# In the coordinator's `failed`: the proposal is taken back, and another one follows.
WITHDRAWN: Final = "withdrawn"


def may_have_spent(index: MessageIndex) -> tuple[str, ...]:
    """Sites that may have reserved something for this study; empty where none can have.

    The first thing that costs is a round's statistics, and a site releases them once it has seen
    the mask keys of its whole cohort. Its reservation shows nowhere before its next message, so
    from the last key on each site of the cohort counts as one that has spent.
    """
    found: set[str] = set()
    for round_id in range(index.plan.rounds):
        for number in index.attempts(Kind.COHORT, round_id=round_id, purpose=STATISTICS):
            attempt = Attempt(round_id=round_id, purpose=STATISTICS, number=number)
            named = index.at(Kind.COHORT, attempt, sender=index.coordinator)
            sites = () if named is None else parse_body(named, CohortBody).sites
            if set(sites) <= set(index.all_at(Kind.MASK_KEY, attempt)):
                found.update(sites)
    return tuple(sorted(found))
