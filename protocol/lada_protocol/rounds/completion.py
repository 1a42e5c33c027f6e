"""Whether a study was carried out: enough sites trained in every round and signed its transcript.

Everybody computes this from messages that everybody may read, so nobody takes the coordinator's
word for it that a study has finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.messages import fault_of

Outcome: TypeAlias = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a study ended, or that it has not. `reason` is empty only where it finished."""

    outcome: Outcome
    reason: str = ""


def ending_of(index: MessageIndex) -> Ending:
    """How a study ended, from its messages alone."""
    coordinator = index.coordinator
    failed = index.find(Kind.FAILED, sender=coordinator)
    failed = failed or index.find(Kind.REFUSAL, sender=index.auditor)
    if failed is not None:
        return Ending(outcome="failed", reason=fault_of(failed))
    rounds = range(index.plan.rounds)
    lacks = next(filter(None, (missing_from_round(index, one) for one in rounds)), "")
    if index.find(Kind.FINISHED, sender=coordinator) is None:
        where = lacks or "all of its rounds are closed"
        return Ending(outcome="unfinished", reason=f"{coordinator} never ended it; {where}")
    if lacks:
        return Ending(outcome="failed", reason=f"{coordinator} ended it early; {lacks}")
    return Ending(outcome="finished")


def missing_from_round(index: MessageIndex, round_id: int) -> str:
    """What a round lacks of being carried out, in words; empty where it lacks nothing."""
    sites, needed = {one.id for one in index.roster.sites}, index.plan.min_cohort
    trained = set(index.all(Kind.TRAINED, round_id=round_id)) & sites
    if len(trained) < needed:
        return f"round {round_id}: {len(trained)} sites have trained, {needed} are needed"
    signers = _signers(index, round_id)
    closed = trained & signers
    if len(closed) < needed:
        return (
            f"round {round_id}: {len(closed)} sites have trained and signed its transcript, "
            f"{needed} are needed"
        )
    for party in (index.coordinator, index.auditor):
        if party not in signers:
            return f"round {round_id}: {party} never signed its transcript"
    return ""


def _signers(index: MessageIndex, round_id: int) -> set[str]:
    """Who signed the coordinator's transcript of a round."""
    transcript = index.find(Kind.TRANSCRIPT, sender=index.coordinator, round_id=round_id)
    if transcript is None:
        return set()
    digest = transcript.header.payload_sha256
    closes = index.all(Kind.CLOSE, round_id=round_id)
    return {
        party
        for party, close in closes.items()
        if close.header.body.get("transcript_sha256") == digest
    }
