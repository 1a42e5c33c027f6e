"""What every kept ledger does the same way; `memory_ledger` and the site's file keep one."""

from __future__ import annotations

import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.fields import check_hash, check_name
from lada_secure.privacy.ledger.book import (
    BudgetCaps,
    LedgerBook,
    LedgerHead,
    ReleaseSpec,
    Reservation,
)
from lada_secure.privacy.ledger.entries import (
    SALT_BYTES,
    CommitEntry,
    Decision,
    DecisionEntry,
    Entry,
    KeyEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    ReserveEntry,
    ResumeEntry,
    commit_to_output,
    sign_entry,
    sign_with_new_key,
)
from lada_secure.privacy.ledger.lines import format_ledger_lines
from lada_secure.privacy.ledger.proposals import (
    propose_commit,
    propose_decision,
    propose_first,
    propose_key,
    propose_reserve,
)
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant
from lada_secure.privacy.ledger.times import LedgerClock, Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOutput:
    """A committed output and the salt of its commitment; both stay at the site."""

    payload: bytes
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DataNote:
    """The fingerprint of the data set (`units.population_fingerprint`) that a study began with."""

    study_id: str
    fingerprint: str


class LedgerSnapshot(ABC):
    """One consistent look at a ledger."""

    @property
    @abstractmethod
    def replay(self) -> LedgerReplay:
        """The state after every entry that is stored, whoever wrote it."""

    @abstractmethod
    def output(self, reserve_hash: str) -> KeptOutput | None:
        """The stored output of a reservation, or None."""

    @abstractmethod
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Everything that is stored, from the first entry on."""


class LedgerTransaction(LedgerSnapshot):
    """One exclusive look at a ledger and what is added to it, all or nothing.

    The last clock and the data notes are the site's own: they are in no entry and no export.
    """

    @abstractmethod
    def append(self, entry: LedgerEntry, output: KeptOutput | None) -> None:
        """Add a signed entry, and for a commit its output."""

    @abstractmethod
    def last_write(self) -> str | None:
        """The precise clock of the last write, or None where it is not known."""

    @abstractmethod
    def note_write(self, precise: str) -> None:
        """Keep the precise clock of this write."""

    @abstractmethod
    def data_notes(self) -> tuple[DataNote, ...]:
        """One note for each study, in the order in which they were made."""

    @abstractmethod
    def add_data_note(self, note: DataNote) -> None:
        """Keep the note of a study that has none yet."""


class ReadLedger(ABC):
    """What an opened ledger answers without changing anything, and without keeping writers out.

    Args: identity: whose ledger it is.
    """

    def __init__(self, *, identity: LedgerIdentity) -> None:
        self._identity = identity

    @abstractmethod
    def _reading(self) -> AbstractContextManager[LedgerSnapshot]:
        """One consistent state; nobody waits for it and it waits for nobody."""

    @property
    def identity(self) -> LedgerIdentity:
        """Whose ledger it is."""
        return self._identity

    @property
    def public_key(self) -> bytes:
        """The site's key that is in force, 32 raw bytes."""
        with self._reading() as snapshot:
            return bytes.fromhex(snapshot.replay.public_key)

    def stored_output(self, key: ReleaseKey) -> bytes | None:
        """See `LedgerBook.stored_output`."""
        with self._reading() as snapshot:
            commit = snapshot.replay.committed(key)
            return None if commit is None else _checked_output(snapshot, commit)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """See `LedgerBook.entries`."""
        with self._reading() as snapshot:
            return snapshot.entries()

    def decision(self, study_id: str) -> DecisionEntry | None:
        """The latest decision on a study, or None."""
        with self._reading() as snapshot:
            return snapshot.replay.decision(study_id)

    def epsilon_spent(self, target_delta: float, *, study_id: str | None = None) -> float:
        """See `LedgerBook.epsilon_spent`."""
        with self._reading() as snapshot:
            return snapshot.replay.accountant(study_id).epsilon(target_delta)

    def head(self) -> LedgerHead:
        """See `LedgerBook.head`."""
        with self._reading() as snapshot:
            return snapshot.replay.head()

    def export_lines(self) -> bytes:
        """The ledger as canonical JSON Lines, for the auditor."""
        return format_ledger_lines(self.entries())


class KeptLedger(ReadLedger, LedgerBook, ABC):
    """A `LedgerBook` on top of exclusive transactions: reserve before, commit after.

    Args:
        identity: whose ledger it is.
        signing_key: the site's Ed25519 key, the one that is in force in the ledger.
        caps: the site's own policy.
        clock: the current time with a zone. time_step_s: see `LedgerClock`.
    Attributes:
        started_now: whether this very object began the ledger, with the whole budget; tell the
            people at the site.
    """

    started_now: bool

    def __init__(
        self,
        *,
        identity: LedgerIdentity,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        clock: Callable[[], datetime],
        time_step_s: int,
    ) -> None:
        super().__init__(identity=identity)
        self._signing_key = signing_key
        self._caps = caps
        self._clock = LedgerClock(read=clock, time_step_s=time_step_s)

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[LedgerTransaction]:
        """Exclusive among all threads and processes; durable once it is left without an error."""

    @property
    def caps(self) -> BudgetCaps:
        """The budget that this site allows."""
        return self._caps

    def reserve(self, spec: ReleaseSpec) -> Reservation:
        """See `LedgerBook.reserve`."""
        with self._transaction() as transaction:
            now = self._now(transaction)
            proposed = propose_reserve(transaction.replay, spec, caps=self._caps, now=now)
            match proposed:
                case CommitEntry():
                    return Reservation(
                        entry=_paid(transaction, proposed.reserve_hash),
                        entry_hash=proposed.reserve_hash,
                        stored_output=_checked_output(transaction, proposed),
                    )
                case ResumeEntry():
                    self._write(transaction, proposed, now=now)
                    entry_hash = proposed.reserve_hash
                    entry = _paid(transaction, entry_hash)
                case ReserveEntry():
                    entry = self._write(transaction, proposed, now=now)
                    entry_hash = entry.entry_hash
        return Reservation(entry=entry, entry_hash=entry_hash, stored_output=None)

    def keep(self, paid: Reservation, output: bytes) -> CommitEntry:
        """See `LedgerBook.keep`."""
        with self._transaction() as transaction:
            earlier = transaction.replay.committed(paid.entry.key)
            if (
                earlier is not None
                and earlier.reserve_hash == paid.entry_hash
                and _checked_output(transaction, earlier) == output
            ):
                return earlier
            now = self._now(transaction)
            salt = secrets.token_bytes(SALT_BYTES)
            proposed = propose_commit(transaction.replay, paid, output, salt=salt, now=now)
            kept = KeptOutput(payload=output, salt=salt)
            return self._write(transaction, proposed, kept, now=now)

    def decide(
        self,
        decision: Decision,
        *,
        study_id: str,
        plan_hash: str,
        expires: datetime,
        decided_by: str,
        statement: str = "",
    ) -> DecisionEntry:
        """See `LedgerBook.decide`."""
        with self._transaction() as transaction:
            now = self._now(transaction)
            proposed = propose_decision(
                transaction.replay,
                decision,
                study_id=study_id,
                plan_hash=plan_hash,
                expires=expires,
                decided_by=decided_by,
                statement=statement,
                now=now,
            )
            return self._write(transaction, proposed, now=now)

    def renew_key(self, new_key: Ed25519PrivateKey, *, decided_by: str) -> KeyEntry:
        """Continue the ledger with another signing key; from here on it signs for this object.

        Args: decided_by: the person at the site.
        Raises: LedgerError: it is the key that is in force already.
        """
        with self._transaction() as transaction:
            now = self._now(transaction)
            proposed = propose_key(
                transaction.replay,
                new_public_key=_public(new_key),
                decided_by=decided_by,
                now=now,
            )
            entry = self._write(transaction, sign_with_new_key(proposed, new_key), now=now)
        self._signing_key = new_key
        return entry

    def note_data(self, study_id: str, fingerprint: str) -> DataNote | None:
        """Note the data set that a study begins with; a study's first note stays.

        Notes never leave the site.

        Args: fingerprint: `units.population_fingerprint`, 64 hex digits, always by the same key.
        Returns: the note of the newest study that began before this one; None for the first.
        """
        note = DataNote(
            study_id=check_name("study_id", study_id),
            fingerprint=check_hash("fingerprint", fingerprint),
        )
        with self._transaction() as transaction:
            notes = transaction.data_notes()
            here = next((n for n, one in enumerate(notes) if one.study_id == study_id), None)
            if here is None:
                transaction.add_data_note(note)
            before = notes[:here]
            return before[-1] if before else None

    def _now(self, transaction: LedgerTransaction) -> Moment:
        return self._clock.moment(
            last_entry=transaction.replay.last_time, last_write=transaction.last_write()
        )

    def _write(
        self,
        transaction: LedgerTransaction,
        proposed: Entry,
        output: KeptOutput | None = None,
        *,
        now: Moment,
    ) -> Entry:
        """Sign an entry and add it; with another key than the one in force, refuse."""
        check_key(transaction.replay, self._signing_key)
        entry = sign_entry(proposed, self._signing_key)
        transaction.append(entry, output)
        transaction.note_write(now.precise)
        return entry


def begin_ledger(
    transaction: LedgerTransaction,
    *,
    signing_key: Ed25519PrivateKey,
    clock: LedgerClock,
    grant: RestartGrant | None,
) -> None:
    """Write the first entry into an empty ledger: a start, or the restart that was granted.

    Raises: LedgerError: the grant is for another key.
    """
    now = clock.moment(last_entry=None, last_write=None)
    first = propose_first(transaction.replay, public_key=_public(signing_key), grant=grant, now=now)
    transaction.append(sign_entry(first, signing_key), None)
    transaction.note_write(now.precise)


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def check_key(replay: LedgerReplay, signing_key: Ed25519PrivateKey) -> None:
    """Raises: LedgerError: the ledger's key in force is not this one."""
    given = _public(signing_key)
    if replay.public_key != given:
        raise LedgerError(
            f"ledger of {replay.identity.site}, population {replay.identity.population}: its key "
            f"in force is {replay.public_key[:12]}..., the signing key given is {given[:12]}.... "
            "Renew the key with the old identity (`lada site renew-key`) or put the right "
            "identity back. Nothing was written"
        )


def granted_identity(grant: RestartGrant, *, auditor_key: bytes) -> LedgerIdentity:
    """The identity of the ledger that a grant lets begin.

    Args: auditor_key: the auditor's Ed25519 key, 32 raw bytes, from its certificate.
    Raises: LedgerError: not that auditor's, or changed.
    """
    check_grant(grant, where="restart", auditor_key=auditor_key)
    return LedgerIdentity(site=grant.site, population=grant.population, ledger_id=grant.ledger_id)


def _paid(snapshot: LedgerSnapshot, reserve_hash: str) -> ReserveEntry:
    paid = snapshot.replay.reserved(reserve_hash)
    if paid is None:
        raise LedgerError(f"reservation {reserve_hash[:12]}...: it is missing in the ledger")
    return paid


def _checked_output(snapshot: LedgerSnapshot, commit: CommitEntry) -> bytes:
    kept = snapshot.output(commit.reserve_hash)
    if kept is None:
        raise LedgerError(f"entry {commit.index}: its stored output is missing")
    found = len(kept.salt) == SALT_BYTES and commit_to_output(kept.payload, salt=kept.salt)
    if not found or not hmac.compare_digest(found, commit.output_commitment):
        raise LedgerError(
            f"entry {commit.index}: the stored output is not the one that was committed; it was "
            "changed on disk. Restore it from a backup; it is not sent"
        )
    return kept.payload
