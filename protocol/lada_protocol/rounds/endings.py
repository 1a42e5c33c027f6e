"""Who has ended and why: `failed` of a site or the auditor, as everybody reads it.

It changes nobody's next task. Whoever has ended may come back by the same command, so the others
wait for it as for one that is silent, for `phase_timeout_s` and no longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lada_protocol.failure_codes import CODES, FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt, MessageIndex, Slot
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.errors import PeerError

# Of one party at one place of a round; a supervisor that starts a party again and again says no
# more than that.
MOST_ENDINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyEnded:
    """The newest word of a party is that it has ended. place: what it was at; its number of it."""

    code: FailureCode
    place: Attempt
    message_hash: str


def ended_parties(index: MessageIndex) -> dict[str, PartyEnded]:
    """Sites and auditor whose newest message says that they have ended."""
    newest = {one.header.sender: one for one in index}
    return {
        party: ended
        for party, one in newest.items()
        if party != index.coordinator and (ended := ending_in(one)) is not None
    }


def ending_in(message: Envelope) -> PartyEnded | None:
    """What a party's `failed` says; None for any other message.

    A code that this software does not know, or a body that cannot be read, is `untold`.
    """
    if message.kind is not Kind.FAILED:
        return None
    head = message.header
    try:
        said = parse_body(message, FaultBody).code
    except PeerError:
        said = FailureCode.UNTOLD
    return PartyEnded(
        code=FailureCode(said if said in CODES else FailureCode.UNTOLD),
        place=Attempt(round_id=head.round_id, purpose=head.purpose, number=head.attempt),
        message_hash=message.message_hash,
    )


def slot_of_ending(
    index: MessageIndex, code: FailureCode, *, party: str, place: Attempt
) -> Slot | None:
    """Where a party says that it ends: the next number of its round and purpose.

    Returns: None where its newest message says so already, or it has said too much there.
    """
    known = ended_parties(index).get(party)
    if known is not None and (known.code, known.place.round_id, known.place.purpose) == (
        code,
        place.round_id,
        place.purpose,
    ):
        return None
    mine = [
        one
        for one in index.sent(Kind.FAILED)
        if (one.header.sender, one.header.round_id, one.header.purpose)
        == (party, place.round_id, place.purpose)
    ]
    if len(mine) >= MOST_ENDINGS:
        return None
    return Slot(Kind.FAILED, place.round_id, place.purpose, len(mine), party, "")
