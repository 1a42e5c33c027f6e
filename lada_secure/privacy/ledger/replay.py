"""The rules of a ledger as a pure machine: stores append through it, the verifier replays.

Both go through `LedgerReplay.append`, so a store cannot write what a verifier would refuse.
`proposals` makes the next entry of a ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.accountant import Spending
from lada_secure.privacy.accounting.fields import check_signed
from lada_secure.privacy.ledger.entries import (
    ADJACENCY,
    CommitEntry,
    DecisionEntry,
    FirstEntry,
    KeyEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
    StudyEntry,
)
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant
from lada_secure.privacy.ledger.terms import LedgerHead, check_mechanism


class LedgerReplay:
    """Everything that the entries so far imply. Changes only in `append`, all or nothing.

    Attributes:
        identity: whose ledger it is. public_key: the key in force, hex; empty before an entry.
        entries: what was appended. last_time: the newest time in one, None before.
        grant: what the auditor granted where this ledger replaces a lost one.
        spending: all reservations, with what a restart carried over.
        decisions: the latest one on each study.
        reserved: reservations by the hash of their entry, oldest first; tries: the newest `reserve`
            or `resume` entry of each; resumes: how often it was used again.
        commits: by what they are for.
    """

    def __init__(self, identity: LedgerIdentity) -> None:
        self.identity = identity
        self.public_key = ""
        self.entries: list[LedgerEntry] = []
        self.last_time: str | None = None
        self.grant: RestartGrant | None = None
        self.spending = Spending()
        self.decisions: dict[str, DecisionEntry] = {}
        self.reserved: dict[str, ReserveEntry] = {}
        self.tries: dict[str, StudyEntry] = {}
        self.resumes: Counter[str] = Counter()
        self.commits: dict[ReleaseKey, CommitEntry] = {}
        self._of_key: dict[ReleaseKey, list[str]] = {}
        self._head_hash = identity.genesis_hash

    @property
    def length(self) -> int:
        """How many entries were appended."""
        return len(self.entries)

    def head(self) -> LedgerHead:
        """Where the ledger ends: at index -1 and the genesis hash before the first entry."""
        return LedgerHead(
            site=self.identity.site,
            population=self.identity.population,
            ledger_id=self.identity.ledger_id,
            index=self.length - 1,
            entry_hash=self._head_hash,
        )

    def link(self, time: str) -> dict[str, Any]:
        """What the next entry says about its place, unsigned."""
        return {
            "index": self.length,
            "previous_hash": self._head_hash,
            "site": self.identity.site,
            "population": self.identity.population,
            "time": time,
            "signature": "",
        }

    def reservations(self, key: ReleaseKey) -> Sequence[str]:
        """Hashes of all reservations of a key, oldest first."""
        return self._of_key.get(key, ())

    def require_key(self, given: str) -> None:
        """Args: given: hex. Raises: LedgerError: the key in force is another one."""
        if self.public_key != given:
            raise LedgerError(
                f"ledger of {self.identity.site}, population {self.identity.population}: its key "
                f"in force is {self.public_key[:12]}..., the signing key given is "
                f"{given[:12]}.... Renew the key with the old identity (`lada site renew-key`) or "
                "put the right identity back. Nothing was written"
            )

    def require_approval(self, study_id: str, plan_hash: str, now: str, *, where: str) -> None:
        """Raises: LedgerError: the latest decision is no approval of this plan, or it expired."""
        decision = self.decisions.get(study_id)
        if decision is None:
            raise LedgerError(f"{where}: the site has not approved study {study_id}")
        if decision.decision != "approve":
            raise LedgerError(
                f"{where}: the site's latest decision on study {study_id} is "
                f"{decision.decision!r} (entry {decision.index})"
            )
        if decision.plan_hash != plan_hash:
            raise LedgerError(
                f"{where}: the approved plan of study {study_id} is "
                f"{decision.plan_hash[:12]}..., not {plan_hash[:12]}..."
            )
        if now > decision.expires:
            raise LedgerError(
                f"{where}: the plan of study {study_id} expired on {decision.expires}; it is "
                f"{now}. Ask the coordinator for a new plan"
            )

    def require_decision(self, entry: DecisionEntry, now: str, *, where: str) -> None:
        """Raises: LedgerError: approving what has expired, withdrawing what is not approved."""
        if entry.decision == "approve" and entry.expires <= now:
            raise LedgerError(f"{where}: the plan expired on {entry.expires}; it is {now}")
        latest = self.decisions.get(entry.study_id)
        approved = latest is not None and latest.decision == "approve"
        if entry.decision == "withdraw" and not approved:
            raise LedgerError(
                f"{where}: the study is not approved, so there is nothing to withdraw"
            )

    def append(self, entry: LedgerEntry) -> None:
        """Check an entry against everything before it, then count it. No check follows a change.

        Epsilon and caps are not checked here: stores do that when they propose, and
        `verification` recomputes them.

        Raises: LedgerError: names the entry; the state is unchanged.
        """
        where = f"entry {entry.index}"
        self._check_link(entry)
        if not self.length and not isinstance(entry, FirstEntry):
            raise LedgerError(
                f"{where}: expected the start or restart entry that a ledger begins with, got a "
                f"{entry.kind} entry"
            )
        signer = entry.public_key if isinstance(entry, FirstEntry) else self.public_key
        check_signed(
            entry.signed_bytes(),
            entry.signature,
            by=signer,
            fault=f"{where}: the signature is not the site's over this entry; the entry was "
            "changed or written by somebody else",
        )
        entry_hash = entry.entry_hash
        match entry:
            case StartEntry() | RestartEntry():
                self._begin(entry, where=where)
            case KeyEntry():
                self._renew_key(entry, where=where)
            case DecisionEntry():
                self.require_decision(entry, entry.time, where=where)
                self.decisions[entry.study_id] = entry
            case ReserveEntry():
                self._reserve(entry, entry_hash, where=where)
            case ResumeEntry():
                self._paid(entry, where=where)
                _check_attempt(entry, self.resumes[entry.reserve_hash] + 1, where=where)
                self.tries[entry.reserve_hash] = entry
                self.resumes[entry.reserve_hash] = entry.attempt
            case CommitEntry():
                self._commit(entry, where=where)
            case _:
                raise LedgerError(f"{where}: unknown kind {entry.kind!r}")
        if not isinstance(entry, CommitEntry):
            self.last_time = entry.time
        self._head_hash = entry_hash
        self.entries.append(entry)

    def _check_link(self, entry: LedgerEntry) -> None:
        if entry.index != self.length:
            raise LedgerError(
                f"entry {self.length}: its index says {entry.index}; an entry is missing, "
                "repeated or out of order"
            )
        if (entry.site, entry.population) != (self.identity.site, self.identity.population):
            raise LedgerError(
                f"entry {entry.index}: it belongs to site {entry.site!r}, population "
                f"{entry.population!r}, not to {self.identity.site!r}, "
                f"{self.identity.population!r}"
            )
        if entry.previous_hash != self._head_hash:
            raise LedgerError(
                f"entry {entry.index}: previous_hash does not match the entry before it; this "
                "entry or the one before was changed, or the history was forked here"
            )
        late = self.last_time is not None and entry.time < self.last_time
        # A commit carries the time of its reservation's newest try, see `_commit`.
        if late and not isinstance(entry, CommitEntry):
            raise LedgerError(
                f"entry {entry.index}: time {entry.time} is before the entry before it "
                f"({self.last_time})"
            )

    def _begin(self, entry: FirstEntry, *, where: str) -> None:
        if self.length:
            raise LedgerError(f"{where}: a {entry.kind} entry is only ever the first one")
        if entry.ledger_id != self.identity.ledger_id:
            raise LedgerError(
                f"{where}: it begins the ledger {entry.ledger_id[:12]}..., not "
                f"{self.identity.ledger_id[:12]}..."
            )
        if isinstance(entry, RestartEntry):
            grant = entry.grant
            check_grant(grant, where=where)
            if (grant.site, grant.population) != (entry.site, entry.population):
                raise LedgerError(
                    f"{where}: the restart was granted to site {grant.site!r}, population "
                    f"{grant.population!r}"
                )
            for event in grant.events:
                self.spending.count(event, *grant.studies)
            self.grant = grant
        self.public_key = entry.public_key

    def _renew_key(self, entry: KeyEntry, *, where: str) -> None:
        if entry.new_public_key == self.public_key:
            raise LedgerError(f"{where}: the new key is the one that is in force already")
        check_signed(
            entry.new_signed_bytes(),
            entry.new_signature,
            by=entry.new_public_key,
            fault=f"{where}: new_signature is not the new key's over this entry",
        )
        self.public_key = entry.new_public_key

    def _reserve(self, entry: ReserveEntry, entry_hash: str, *, where: str) -> None:
        self.require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        if entry.adjacency != ADJACENCY:
            raise LedgerError(f"{where}: adjacency: only {ADJACENCY} is known")
        try:
            check_mechanism(entry.mechanism, entry.parameters, entry.event)
        except ParameterError as error:
            raise LedgerError(f"{where}: {error}") from error
        if entry.key in self.commits:
            raise LedgerError(f"{where}: {entry.key} was committed before and is reserved again")
        _check_attempt(entry, len(self.reservations(entry.key)), where=where)
        self.spending.count(entry.event, entry.study_id)
        self.reserved[entry_hash] = self.tries[entry_hash] = entry
        self._of_key.setdefault(entry.key, []).append(entry_hash)

    def _paid(self, entry: ResumeEntry | CommitEntry, *, where: str) -> ReserveEntry:
        """The reservation that an entry names, which has no output yet."""
        self.require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        paid = self.reserved.get(entry.reserve_hash)
        if paid is None:
            raise LedgerError(f"{where}: it names a reservation that this ledger does not hold")
        if (paid.study_id, paid.plan_hash) != (entry.study_id, entry.plan_hash):
            raise LedgerError(f"{where}: it names entry {paid.index}, which is for {paid.key}")
        if paid.key in self.commits:
            raise LedgerError(f"{where}: {paid.key} was committed before")
        return paid

    def _commit(self, entry: CommitEntry, *, where: str) -> None:
        paid = self._paid(entry, where=where)
        if paid.key != entry.key:
            raise LedgerError(f"{where}: it names entry {paid.index}, which is for {paid.key}")
        expected = self.tries[entry.reserve_hash].time
        if entry.time != expected:
            raise LedgerError(
                f"{where}: time: a commit has that of its reservation's newest try, {expected}, "
                f"got {entry.time}"
            )
        self.commits[entry.key] = entry


def _check_attempt(entry: ReserveEntry | ResumeEntry, expected: int, *, where: str) -> None:
    if entry.attempt != expected:
        raise LedgerError(f"{where}: attempt: expected {expected}, got {entry.attempt}")
