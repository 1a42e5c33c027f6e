"""Whether a site may spend in a study: its ledger must go on where the auditor last saw it.

| the auditor's copy | the ledger that the acceptance names | answer |
|---|---|---|
| none | any | admitted, and said loudly: this auditor knows of no spending before it |
| of this ledger | holds the copy's head at its index | admitted |
| of this ledger | holds another entry there | `ledger_forked` |
| of this ledger | ends before the copy | `ledger_behind` |
| of another ledger | granted as the restart of the copy's, at its head | admitted |
| of another ledger | else | `other_ledger` |

The whole ledger up to the accepted head comes with the acceptance, for the auditor alone: what a
copy does not hold yet is verified before the site may spend, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import AcceptanceBody, AdmissionBody, parse_body
from lada_secure.errors import PeerError
from lada_secure.privacy.ledger.entries import LedgerEntry, RestartEntry, StartEntry
from lada_secure.privacy.ledger.restart import RestartGrant

# The purpose of the ledger part that comes with an acceptance; its round is 0.
WITH_ACCEPTANCE: Final = ""

_WAY_BACK: Final = (
    "Put the newest ledger file back. If it is lost for good, two people restart the ledger with "
    "what the auditor knows of it: `lada auditor grant-restart`, then `lada site restart-ledger`. "
    "Nothing was spent; this study goes on without the site"
)


def shown_with_acceptance(index: MessageIndex, site: str) -> Envelope | None:
    """The ledger that a site accepts with; None before it."""
    return index.find(Kind.LEDGER, sender=site, purpose=WITH_ACCEPTANCE)


def is_to_admit(index: MessageIndex, site: str) -> bool:
    """Whether a site has accepted with a ledger that was verified, and is not answered yet."""
    auditor = index.auditor
    if index.find(Kind.ACCEPTANCE, sender=site) is None:
        return False
    if index.find(Kind.RECEIPT, sender=auditor, to=site) is None:
        return False
    return index.find(Kind.ADMISSION, sender=auditor, to=site) is None


def check_ledger_claim(
    claim: AcceptanceBody,
    shown: Sequence[LedgerEntry],
    copy: Sequence[LedgerEntry],
    *,
    site: str,
    granted: RestartGrant | None,
) -> None:
    """Compare the ledger that a site accepts with to the auditor's copy over all studies.

    Args:
        claim: the acceptance. shown: the ledger that came with it, not verified yet.
        copy: the auditor's verified copy of the population's ledger; empty where it has none.
        granted: what this auditor granted for the ledger of the claim, if anything.
    Raises: PeerError: ledger_behind, ledger_forked, other_ledger; says what to do.
    """
    if not copy:
        return
    known, head = _ledger_id(copy), copy[-1]

    def fault(reason: str, message: str) -> PeerError:
        where = f"{site}, population {claim.population}"
        return PeerError(f"{where}: {message}", reason=reason, peer=site)

    if claim.ledger_id != known:
        refused = _restart_fault(claim, known, head, granted)
        if refused:
            raise fault("other_ledger", refused)
        return
    if claim.head_index < head.index or len(shown) <= head.index:
        raise fault(
            "ledger_behind",
            f"its ledger ends at entry {claim.head_index}, the auditor has seen it up to entry "
            f"{head.index}; an old copy of the ledger was put back. {_WAY_BACK}",
        )
    # The chain makes every entry before it the same, too.
    if shown[head.index].entry_hash != head.entry_hash:
        raise fault(
            "ledger_forked",
            f"entry {head.index} of its ledger is not the entry that it has shown to the auditor; "
            f"the ledger was put back to an old copy and written on, or written in two places. "
            f"{_WAY_BACK}",
        )


def _restart_fault(
    claim: AcceptanceBody, known: str, head: LedgerEntry, granted: RestartGrant | None
) -> str:
    """Why another ledger does not take the place of the known one; empty where it does."""
    if granted is None or granted.previous_ledger_id != known:
        return (
            f"it accepts with the ledger {claim.ledger_id[:12]}..., the auditor knows its ledger "
            f"{known[:12]}... with {head.index + 1} entries; a new state folder has a new ledger, "
            f"and its people have spent more than it says. {_WAY_BACK}"
        )
    if (granted.previous_index, granted.previous_hash) != (head.index, head.entry_hash):
        return (
            "the restart was granted when the auditor knew entries 0 to "
            f"{granted.previous_index} of the lost ledger, it knows {head.index + 1} of it now; "
            "that ledger went on. Ask the auditor for a new grant, or put that ledger back"
        )
    return ""


def check_accepted_head(
    claim: AcceptanceBody, entries: Sequence[LedgerEntry], *, site: str
) -> None:
    """Check that a ledger that was shown is the one that its site has accepted with.

    Raises: PeerError(reason="bad_ledger").
    """
    named = entries[claim.head_index : claim.head_index + 1]
    found = _ledger_id(entries), tuple(one.entry_hash for one in named)
    if found != (claim.ledger_id, (claim.head_hash,)):
        raise PeerError(
            f"ledger of {site}: it does not hold the entry {claim.head_index} that {site} accepted "
            "the plan with",
            reason="bad_ledger",
            peer=site,
        )


def admission_of(index: MessageIndex, site: str) -> Envelope | None:
    """The auditor's admission of a site's acceptance; None before it.

    Raises: PeerError: it is about another acceptance than the one on the board.
    """
    acceptance = index.find(Kind.ACCEPTANCE, sender=site)
    admission = index.find(Kind.ADMISSION, sender=index.auditor, to=site)
    if acceptance is None or admission is None:
        return None
    if parse_body(admission, AdmissionBody).acceptance != acceptance.message_hash:
        raise PeerError(
            f"{index.auditor} admits {site} with another acceptance than the one it sent",
            reason="wrong_admission",
            peer=index.auditor,
        )
    return admission


def _ledger_id(entries: Sequence[LedgerEntry]) -> str:
    first = entries[0] if entries else None
    return first.ledger_id if isinstance(first, StartEntry | RestartEntry) else ""
