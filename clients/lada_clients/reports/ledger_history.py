"""How a ledger came to be: its start, a restart in place of a lost one, and its keys.

What everybody is told who asks what a site has spent: the site, the auditor and whoever verifies.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from lada_secure.privacy.ledger.entries import KeyEntry
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.verification import LedgerSummary


class DocumentPart(BaseModel):
    """A part of a document for programs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyRenewal(DocumentPart):
    """The site's signing key was renewed by an entry that both keys signed."""

    index: int
    time: str
    decided_by: str
    public_key: str


class Restart(DocumentPart):
    """The ledger took the place of a lost one; two people confirmed it.

    `carried_epsilon`, at `target_delta`, is what the auditor knew of the lost ledger up to its
    entry `previous_index`, and is part of every later figure. `studies` had spent it.
    """

    ledger_id: str
    previous_ledger_id: str
    previous_index: int
    carried_epsilon: float
    target_delta: float
    studies: tuple[str, ...]
    requested_by: str
    auditor: str
    granted_by: str
    time: str


Part = TypeVar("Part", bound=DocumentPart)


def filled(part: type[Part], *sources: object, **fields: object) -> Part:
    """A part of a document; what is not given is what a source calls by the same name."""
    for name in part.model_fields.keys() - fields.keys():
        fields[name] = next(getattr(one, name) for one in sources if hasattr(one, name))
    return part(**fields)


def history_facts(ledger: LedgerSummary) -> dict[str, Any]:
    """What a verified ledger says of itself, for machines; `restart` is null where there is none.

    `resumes`: reservations used again after a failure, free.
    """
    return {
        "ledger_id": ledger.identity.ledger_id,
        "started": ledger.started,
        "restart": ledger.restart and restart_facts(ledger.restart),
        "key_renewals": [renewal.model_dump() for renewal in key_renewals(ledger)],
        "resumes": ledger.resumes,
    }


def history_sentences(ledger: LedgerSummary) -> tuple[str, ...]:
    """The same for people."""
    said = [f"The ledger {ledger.identity.ledger_id[:12]} starts on {_day(ledger.started)}."]
    if ledger.restart is not None:
        said.append(restart_sentence(ledger.restart))
    said += [
        f"Its signing key was renewed on {_day(entry.time)} by {entry.decided_by}, who held the "
        f"old key; it is {entry.public_key[:12]} since then."
        for entry in key_renewals(ledger)
    ]
    if ledger.resumes:
        said.append(
            f"{ledger.resumes} times a release was tried again on its first payment, because "
            "nothing had left before; that costs nothing more."
        )
    return tuple(said)


def key_renewals(ledger: LedgerSummary) -> tuple[KeyRenewal, ...]:
    """Every time that the site's key was renewed."""
    entries = (entry for entry in ledger.entries if isinstance(entry, KeyEntry))
    return tuple(filled(KeyRenewal, one, public_key=one.new_public_key) for one in entries)


def restart_facts(grant: RestartGrant) -> dict[str, Any]:
    """A restart for machines."""
    return filled(Restart, grant).model_dump(mode="json")


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
