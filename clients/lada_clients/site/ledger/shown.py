"""What the auditor was shown of a site's ledger in a study, and what it has countersigned of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from lada_clients.net.participant import GOODBYE_S, Participant
from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import TransportError
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import ReserveEntry, format_ledger_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLedger:
    """A site's ledger as the auditor of one study has seen it; all of it is read off the board."""

    participant: Participant
    book: LedgerBook

    def show(self, round_id: int, purpose: str) -> Envelope:
        """Show the auditor every entry since the last part, before anything they paid for."""
        first, entries = self._shown(), self.book.entries()
        head = entries[-1]
        return self.participant.post(
            Kind.LEDGER,
            {"first_index": first, "head_index": head.index, "head_hash": head.entry_hash},
            lambda: format_ledger_lines(entries[first:]),
            round_id=round_id,
            purpose=purpose,
        )

    def unshown(self) -> int | None:
        """The round of the newest reservation of this study that the auditor was not shown."""
        reserved = self._reserved(since=self._shown())
        return reserved[-1].round_id if reserved else None

    def not_countersigned(self) -> str:
        """What this study has spent beyond the auditor's receipts, in words; empty for nothing.

        The auditor gets a moment to answer: the ledger may have been shown just now.
        """
        deadline = time.monotonic() + GOODBYE_S
        while missing := self._reserved(since=self._countersigned()):
            if time.monotonic() > deadline:
                break
            try:
                self.participant.sync(wait_s=1.0, patience_s=GOODBYE_S)
            except TransportError:
                break
        if not missing:
            return ""
        known = [one for one in self._reserved() if one.index < self._countersigned()]
        copy = known[-1].study_epsilon_after if known else 0.0
        return (
            f"the auditor has not countersigned {len(missing)} reservations of this ledger: it "
            f"says epsilon {missing[-1].study_epsilon_after:.3f} of this study, the auditor's copy "
            f"{copy:.3f}. What is spent stays spent; the whole ledger is shown with the next "
            "acceptance, so keep it"
        )

    def _reserved(self, *, since: int = 0) -> list[ReserveEntry]:
        """This study's reservations from an entry on."""
        study = self.participant.plan.study_id
        entries = self.book.entries()[since:]
        return [one for one in entries if isinstance(one, ReserveEntry) and one.study_id == study]

    def _shown(self) -> int:
        """How many entries the auditor was shown."""
        me = self.participant
        sent = me.index.sent(Kind.LEDGER)
        return _entries_of(one for one in sent if one.header.sender == me.party)

    def _countersigned(self) -> int:
        """How many entries the auditor has answered with a receipt."""
        me = self.participant
        return _entries_of(one for one in me.index.sent(Kind.RECEIPT) if one.header.to == me.party)


def _entries_of(parts: Iterable[Envelope]) -> int:
    """How many entries the newest of these parts, or of their receipts, reaches to."""
    return max((int(one.header.body["head_index"]) + 1 for one in parts), default=0)
