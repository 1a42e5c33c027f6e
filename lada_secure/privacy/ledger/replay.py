"""The rules of a ledger as a pure machine: stores append through it, the verifier replays.

Both go through `LedgerReplay.append`, so a store cannot write what a verifier would refuse.
`proposals` makes the next entry of a ledger.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.accountant import PldAccountant
from lada_secure.privacy.accounting.fields import load_public_key
from lada_secure.privacy.ledger.book import LedgerHead, check_mechanism
from lada_secure.privacy.ledger.entries import (
    ADJACENCY,
    CommitEntry,
    DecisionEntry,
    KeyEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
    StudyEntry,
    check_new_signature,
    check_signature,
)
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant


class LedgerReplay:
    """Everything that the entries so far imply. Changes only in `append`, all or nothing."""

    def __init__(self, identity: LedgerIdentity) -> None:
        self._identity = identity
        self._key = ""
        self._length = 0
        self._head_hash = identity.genesis_hash
        self._last_time: str | None = None
        self._grant: RestartGrant | None = None
        self._decisions: dict[str, DecisionEntry] = {}
        self._reserved: dict[str, ReserveEntry] = {}
        self._last_reserve: ReserveEntry | None = None
        self._of_key: dict[ReleaseKey, list[str]] = {}
        self._tries: dict[str, StudyEntry] = {}
        self._resumes: dict[str, int] = {}
        self._commits: dict[ReleaseKey, CommitEntry] = {}
        self._total = PldAccountant()
        self._by_study: dict[str, PldAccountant] = {}

    @property
    def identity(self) -> LedgerIdentity:
        """Whose ledger it is."""
        return self._identity

    @property
    def public_key(self) -> str:
        """The key in force, hex; empty before the first entry."""
        return self._key

    @property
    def length(self) -> int:
        """How many entries were appended."""
        return self._length

    @property
    def last_time(self) -> str | None:
        """The newest time in an entry, None before the first."""
        return self._last_time

    @property
    def grant(self) -> RestartGrant | None:
        """What the auditor granted where this ledger replaces a lost one."""
        return self._grant

    def head(self) -> LedgerHead:
        """Where the ledger ends: at index -1 and the genesis hash before the first entry."""
        return LedgerHead(
            site=self._identity.site,
            population=self._identity.population,
            ledger_id=self._identity.ledger_id,
            index=self._length - 1,
            entry_hash=self._head_hash,
        )

    def committed(self, key: ReleaseKey) -> CommitEntry | None:
        """The commit entry of a key, or None."""
        return self._commits.get(key)

    def reserved(self, entry_hash: str) -> ReserveEntry | None:
        """The reservation with this hash, or None."""
        return self._reserved.get(entry_hash)

    def reservations(self, key: ReleaseKey) -> tuple[str, ...]:
        """Hashes of all reservations of a key, oldest first."""
        return tuple(self._of_key.get(key, ()))

    def resumes(self, reserve_hash: str) -> int:
        """How often a reservation was used again."""
        return self._resumes.get(reserve_hash, 0)

    def last_try(self, reserve_hash: str) -> StudyEntry:
        """The newest `reserve` or `resume` entry of a reservation that the ledger holds."""
        return self._tries[reserve_hash]

    def last_reserve(self) -> ReserveEntry | None:
        """The newest reservation, or None."""
        return self._last_reserve

    def decision(self, study_id: str) -> DecisionEntry | None:
        """The latest decision on a study, or None."""
        return self._decisions.get(study_id)

    def studies(self) -> tuple[str, ...]:
        """Studies that have spent anything, here or in the ledger that this one replaces."""
        return tuple(sorted(self._by_study))

    def accountant(self, study_id: str | None = None) -> PldAccountant:
        """The composed releases of one study, or of all, with what a restart carried over."""
        if study_id is None:
            return self._total
        return self._by_study.get(study_id) or PldAccountant()

    def require_approval(self, study_id: str, plan_hash: str, now: str, *, where: str) -> None:
        """Raises: LedgerError: the latest decision is no approval of this plan, or it expired."""
        decision = self._decisions.get(study_id)
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
        latest = self._decisions.get(entry.study_id)
        approved = latest is not None and latest.decision == "approve"
        if entry.decision == "withdraw" and not approved:
            raise LedgerError(
                f"{where}: the study is not approved, so there is nothing to withdraw"
            )

    def append(self, entry: LedgerEntry) -> None:
        """Check an entry against everything before it, then count it.

        Epsilon and caps are not checked here: stores do that when they propose, and
        `verification` recomputes them.

        Raises: LedgerError: names the entry; the state is unchanged.
        """
        where = f"entry {entry.index}"
        self._check_link(entry)
        if isinstance(entry, StartEntry | RestartEntry):
            self._check_first(entry, where=where)
        check_signature(entry, _loaded(self._key or _first_key(entry), where))
        match entry:
            case StartEntry() | RestartEntry():
                pass
            case KeyEntry():
                self._check_key(entry, where=where)
            case ReserveEntry():
                self._check_reserve(entry, where=where)
            case ResumeEntry():
                self._check_resume(entry, where=where)
            case CommitEntry():
                self._check_commit(entry, where=where)
            case DecisionEntry():
                self.require_decision(entry, entry.time, where=where)
            case _:
                raise LedgerError(f"{where}: unknown kind {entry.kind!r}")
        self._count(entry)

    def _check_link(self, entry: LedgerEntry) -> None:
        if entry.index != self._length:
            raise LedgerError(
                f"entry {self._length}: its index says {entry.index}; an entry is missing, "
                "repeated or out of order"
            )
        if (entry.site, entry.population) != (self._identity.site, self._identity.population):
            raise LedgerError(
                f"entry {entry.index}: it belongs to site {entry.site!r}, population "
                f"{entry.population!r}, not to {self._identity.site!r}, "
                f"{self._identity.population!r}"
            )
        if entry.previous_hash != self._head_hash:
            raise LedgerError(
                f"entry {entry.index}: previous_hash does not match the entry before it; this "
                "entry or the one before was changed, or the history was forked here"
            )
        late = self._last_time is not None and entry.time < self._last_time
        # A commit carries the time of its reservation's newest try, see `_check_commit`.
        if late and not isinstance(entry, CommitEntry):
            raise LedgerError(
                f"entry {entry.index}: time {entry.time} is before the entry before it "
                f"({self._last_time})"
            )

    def _check_first(self, entry: StartEntry | RestartEntry, *, where: str) -> None:
        if self._length:
            raise LedgerError(f"{where}: a {entry.kind} entry is only ever the first one")
        if entry.ledger_id != self._identity.ledger_id:
            raise LedgerError(
                f"{where}: it begins the ledger {entry.ledger_id[:12]}..., not "
                f"{self._identity.ledger_id[:12]}..."
            )
        if isinstance(entry, RestartEntry):
            grant = entry.grant
            check_grant(grant, where=where)
            if (grant.site, grant.population) != (entry.site, entry.population):
                raise LedgerError(
                    f"{where}: the restart was granted to site {grant.site!r}, population "
                    f"{grant.population!r}"
                )

    def _check_key(self, entry: KeyEntry, *, where: str) -> None:
        if entry.new_public_key == self._key:
            raise LedgerError(f"{where}: the new key is the one that is in force already")
        check_new_signature(entry, _loaded(entry.new_public_key, where))

    def _check_reserve(self, entry: ReserveEntry, *, where: str) -> None:
        self.require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        if entry.adjacency != ADJACENCY:
            raise LedgerError(f"{where}: adjacency: only {ADJACENCY} is known")
        try:
            check_mechanism(entry.mechanism, entry.parameters, entry.event)
        except ParameterError as error:
            raise LedgerError(f"{where}: {error}") from error
        if entry.key in self._commits:
            raise LedgerError(f"{where}: {entry.key} was committed before and is reserved again")
        expected = len(self.reservations(entry.key))
        if entry.attempt != expected:
            raise LedgerError(f"{where}: attempt: expected {expected}, got {entry.attempt}")

    def _paid(self, entry: ResumeEntry | CommitEntry, *, where: str) -> ReserveEntry:
        """The reservation that an entry names, which has no output yet."""
        self.require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        paid = self._reserved.get(entry.reserve_hash)
        if paid is None:
            raise LedgerError(f"{where}: it names a reservation that this ledger does not hold")
        if (paid.study_id, paid.plan_hash) != (entry.study_id, entry.plan_hash):
            raise LedgerError(f"{where}: it names entry {paid.index}, which is for {paid.key}")
        if paid.key in self._commits:
            raise LedgerError(f"{where}: {paid.key} was committed before")
        return paid

    def _check_resume(self, entry: ResumeEntry, *, where: str) -> None:
        self._paid(entry, where=where)
        expected = self.resumes(entry.reserve_hash) + 1
        if entry.attempt != expected:
            raise LedgerError(f"{where}: attempt: expected {expected}, got {entry.attempt}")

    def _check_commit(self, entry: CommitEntry, *, where: str) -> None:
        paid = self._paid(entry, where=where)
        if paid.key != entry.key:
            raise LedgerError(f"{where}: it names entry {paid.index}, which is for {paid.key}")
        expected = self._tries[entry.reserve_hash].time
        if entry.time != expected:
            raise LedgerError(
                f"{where}: time: a commit has that of its reservation's newest try, {expected}, "
                f"got {entry.time}"
            )

    def _count(self, entry: LedgerEntry) -> None:
        entry_hash = entry.entry_hash
        match entry:
            case StartEntry() | RestartEntry():
                self._begin(entry)
            case KeyEntry():
                self._key = entry.new_public_key
            case ReserveEntry():
                self._reserved[entry_hash] = entry
                self._last_reserve = entry
                self._of_key.setdefault(entry.key, []).append(entry_hash)
                self._tries[entry_hash] = entry
                self._total.compose(entry.event)
                self._by_study.setdefault(entry.study_id, PldAccountant()).compose(entry.event)
            case ResumeEntry():
                self._tries[entry.reserve_hash] = entry
                self._resumes[entry.reserve_hash] = entry.attempt
            case CommitEntry():
                self._commits[entry.key] = entry
            case DecisionEntry():
                self._decisions[entry.study_id] = entry
        if not isinstance(entry, CommitEntry):
            self._last_time = entry.time
        self._head_hash = entry_hash
        self._length += 1

    def _begin(self, entry: StartEntry | RestartEntry) -> None:
        self._key = entry.public_key
        if isinstance(entry, RestartEntry):
            self._grant = entry.grant
            if entry.grant.carried is not None:
                self._total.compose(entry.grant.carried)
                for study_id in entry.grant.studies:
                    self._by_study[study_id] = PldAccountant()
                    self._by_study[study_id].compose(entry.grant.carried)


def _first_key(entry: LedgerEntry) -> str:
    if isinstance(entry, StartEntry | RestartEntry):
        return entry.public_key
    raise LedgerError(
        f"entry {entry.index}: expected the start or restart entry that a ledger begins with, "
        f"got a {entry.kind} entry"
    )


def _loaded(key: str, where: str) -> Ed25519PublicKey:
    try:
        return load_public_key(bytes.fromhex(key))
    except ParameterError as error:
        raise LedgerError(f"{where}: {error}") from error
