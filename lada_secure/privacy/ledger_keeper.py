"""What every kept ledger does the same way, and one that is kept in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.canonical import sha256_hex
from lada_secure.errors import LedgerError
from lada_secure.privacy.entries import (
    CommitEntry,
    Decision,
    DecisionEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    format_ledger_lines,
    sign_entry,
)
from lada_secure.privacy.fields import check_hash
from lada_secure.privacy.ledger import (
    BudgetCaps,
    LedgerBook,
    LedgerHead,
    ReleaseSpec,
    Reservation,
)
from lada_secure.privacy.replay import LedgerReplay


class LedgerSnapshot(ABC):
    """One consistent look at a ledger."""

    @property
    @abstractmethod
    def replay(self) -> LedgerReplay:
        """The state after every entry that is stored, whoever wrote it."""

    @abstractmethod
    def output(self, reserve_hash: str) -> bytes | None:
        """The stored output of a reservation, or None."""

    @abstractmethod
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Everything that is stored, from the first entry on."""


class LedgerTransaction(LedgerSnapshot):
    """One exclusive look at a ledger and what is added to it, all or nothing."""

    @abstractmethod
    def append(self, entry: LedgerEntry, output: bytes | None) -> None:
        """Add a signed entry, and for a commit its output."""


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
        identity: whose ledger it is; its key belongs to `signing_key`.
        caps: the site's own policy. data_fingerprint: of the data set in use, 64 hex digits
            (`units.population_fingerprint`); recorded, but budgets do not start over with it.
        clock: the current time with a zone.
    """

    def __init__(
        self,
        *,
        identity: LedgerIdentity,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        data_fingerprint: str,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__(identity=identity)
        self._signing_key = signing_key
        self._caps = caps
        self._data_fingerprint = check_hash("data_fingerprint", data_fingerprint)
        self._clock = clock

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
            replay = transaction.replay
            proposed = replay.propose_reserve(
                spec, caps=self._caps, data_fingerprint=self._data_fingerprint, now=self._clock()
            )
            if isinstance(proposed, CommitEntry):
                paid = replay.reserved(proposed.reserve_hash)
                if paid is None:
                    raise LedgerError(f"entry {proposed.index}: its reservation is missing")
                return Reservation(
                    entry=paid,
                    entry_hash=proposed.reserve_hash,
                    stored_output=_checked_output(transaction, proposed),
                )
            entry = sign_entry(proposed, self._signing_key)
            transaction.append(entry, None)
        return Reservation(entry=entry, entry_hash=entry.entry_hash, stored_output=None)

    def commit(self, reservation: Reservation, output: bytes) -> CommitEntry:
        """See `LedgerBook.commit`."""
        with self._transaction() as transaction:
            proposed = transaction.replay.propose_commit(reservation, output, now=self._clock())
            if proposed.signature:
                return proposed
            entry = sign_entry(proposed, self._signing_key)
            transaction.append(entry, output)
        return entry

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
            proposed = transaction.replay.propose_decision(
                decision,
                study_id=study_id,
                plan_hash=plan_hash,
                expires=expires,
                decided_by=decided_by,
                statement=statement,
                now=self._clock(),
            )
            entry = sign_entry(proposed, self._signing_key)
            transaction.append(entry, None)
        return entry


def _checked_output(snapshot: LedgerSnapshot, commit: CommitEntry) -> bytes:
    output = snapshot.output(commit.reserve_hash)
    if output is None:
        raise LedgerError(f"entry {commit.index}: its stored output is missing")
    if len(output) != commit.output_bytes or sha256_hex(output) != commit.output_sha256:
        raise LedgerError(
            f"entry {commit.index}: the stored output is not the one that was committed; it was "
            "changed on disk. Restore it from a backup; it is not sent"
        )
    return output


class _MemoryTransaction(LedgerTransaction):
    def __init__(
        self, replay: LedgerReplay, entries: list[LedgerEntry], outputs: dict[str, bytes]
    ) -> None:
        self._replay = replay
        self._entries = entries
        self._outputs = outputs

    @property
    def replay(self) -> LedgerReplay:
        return self._replay

    def append(self, entry: LedgerEntry, output: bytes | None) -> None:
        self._replay.append(entry)
        self._entries.append(entry)
        if isinstance(entry, CommitEntry) and output is not None:
            self._outputs[entry.reserve_hash] = bytes(output)

    def output(self, reserve_hash: str) -> bytes | None:
        return self._outputs.get(reserve_hash)

    def entries(self) -> tuple[LedgerEntry, ...]:
        return tuple(self._entries)


class MemoryLedger(KeptLedger):
    """A ledger with all rules and signatures that is gone when the process ends.

    For simulations on public or synthetic data, never for real records: a budget that does not
    survive a restart protects nobody. Args: see `KeptLedger`.
    """

    def __init__(
        self,
        *,
        identity: LedgerIdentity,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        data_fingerprint: str,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__(
            identity=identity,
            signing_key=signing_key,
            caps=caps,
            data_fingerprint=data_fingerprint,
            clock=clock,
        )
        self._lock = threading.RLock()
        self._replay = LedgerReplay(identity)
        self._entries: list[LedgerEntry] = []
        self._outputs: dict[str, bytes] = {}

    @contextmanager
    def _transaction(self) -> Iterator[LedgerTransaction]:
        with self._lock:
            yield _MemoryTransaction(self._replay, self._entries, self._outputs)

    def _reading(self) -> AbstractContextManager[LedgerSnapshot]:
        return self._transaction()
