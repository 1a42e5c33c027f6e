"""How a ledger came to be: its start, a restart in place of a lost one, and its keys.

What everybody is told who asks what a site has spent: the site, the auditor and whoever verifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lada_secure.privacy.ledger.entries import KeyEntry, LedgerEntry, RestartEntry, ResumeEntry
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.verification import ledger_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHistory:
    """What a ledger says of itself. `resumes`: reservations used again after a failure, free."""

    ledger_id: str
    started: str
    restart: RestartGrant | None
    keys: tuple[KeyEntry, ...]
    resumes: int

    def to_json(self) -> dict[str, Any]:
        """One object for machines; `restart` is null where the ledger replaces none."""
        grant = self.restart
        return {
            "ledger_id": self.ledger_id,
            "started": self.started,
            "restart": None if grant is None else restart_facts(grant),
            "key_renewals": [
                {
                    "index": key.index,
                    "time": key.time,
                    "decided_by": key.decided_by,
                    "public_key": key.new_public_key,
                }
                for key in self.keys
            ],
            "resumes": self.resumes,
        }

    def sentences(self) -> tuple[str, ...]:
        """The same for people."""
        said = [f"The ledger {self.ledger_id[:12]} starts on {_day(self.started)}."]
        if self.restart is not None:
            said.append(restart_sentence(self.restart))
        said += [
            f"Its signing key was renewed on {_day(key.time)} by {key.decided_by}, who held the "
            f"old key; it is {key.new_public_key[:12]} since then."
            for key in self.keys
        ]
        if self.resumes:
            said.append(
                f"{self.resumes} times a release was tried again on its first payment, because "
                "nothing had left before; that costs nothing more."
            )
        return tuple(said)


def history_of(entries: Sequence[LedgerEntry]) -> LedgerHistory:
    """The history of a verified ledger, from the first entry on."""
    first = entries[0]
    return LedgerHistory(
        ledger_id=ledger_identity(entries).ledger_id,
        started=first.time,
        restart=first.grant if isinstance(first, RestartEntry) else None,
        keys=tuple(one for one in entries if isinstance(one, KeyEntry)),
        resumes=sum(isinstance(one, ResumeEntry) for one in entries),
    )


def restart_facts(grant: RestartGrant) -> dict[str, Any]:
    """A restart for machines."""
    told = (
        *("ledger_id", "previous_ledger_id", "previous_index", "carried_epsilon", "target_delta"),
        *("requested_by", "auditor", "granted_by", "time"),
    )
    return {"studies": list(grant.studies), **{name: getattr(grant, name) for name in told}}


def restart_sentence(grant: RestartGrant) -> str:
    """A restart for people."""
    return (
        f"IT WAS RESTARTED in place of the lost ledger {grant.previous_ledger_id[:12]}: "
        f"{grant.requested_by} of {grant.site} asked for it and {grant.granted_by} of "
        f"{grant.auditor} granted it on {_day(grant.time)}. Epsilon {grant.carried_epsilon:.4f} at "
        f"delta {grant.target_delta:g} is carried over, what {grant.auditor} knew of the lost "
        f"ledger's entries 0 to {grant.previous_index}; what was spent after them is not in it."
    )


def _day(time: str) -> str:
    return time[:10]
