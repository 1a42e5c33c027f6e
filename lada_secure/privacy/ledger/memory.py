"""A ledger with all rules and signatures that is gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.privacy.ledger.book import BudgetCaps
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger.keeper import (
    DataNote,
    KeptLedger,
    KeptOutput,
    LedgerSnapshot,
    LedgerTransaction,
    begin_ledger,
)
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant


class _MemoryTransaction(LedgerTransaction):
    """All that is kept; one object for the ledger's whole life."""

    def __init__(self, identity: LedgerIdentity) -> None:
        self._replay = LedgerReplay(identity)
        self._entries: list[LedgerEntry] = []
        self._outputs: dict[str, KeptOutput] = {}
        self._last_write: str | None = None
        self._data_notes: list[DataNote] = []

    @property
    def replay(self) -> LedgerReplay:
        return self._replay

    def append(self, entry: LedgerEntry, output: KeptOutput | None) -> None:
        self._replay.append(entry)
        self._entries.append(entry)
        if isinstance(entry, CommitEntry) and output is not None:
            self._outputs[entry.reserve_hash] = output

    def output(self, reserve_hash: str) -> KeptOutput | None:
        return self._outputs.get(reserve_hash)

    def entries(self) -> tuple[LedgerEntry, ...]:
        return tuple(self._entries)

    def last_write(self) -> str | None:
        return self._last_write

    def note_write(self, precise: str) -> None:
        self._last_write = precise

    def data_notes(self) -> tuple[DataNote, ...]:
        return tuple(self._data_notes)

    def add_data_note(self, note: DataNote) -> None:
        self._data_notes.append(note)


class MemoryLedger(KeptLedger):
    """A ledger for simulations on public or synthetic data, never for real records.

    A budget that does not survive a restart protects nobody.

    Args: grant: what the auditor granted, where it replaces another one. The rest as
        `KeptLedger`.
    """

    def __init__(
        self,
        *,
        identity: LedgerIdentity,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        clock: Callable[[], datetime],
        time_step_s: int = 1,
        grant: RestartGrant | None = None,
    ) -> None:
        super().__init__(
            identity=identity,
            signing_key=signing_key,
            caps=caps,
            clock=clock,
            time_step_s=time_step_s,
        )
        self._lock = threading.RLock()
        self._kept = _MemoryTransaction(identity)
        begin_ledger(self._kept, signing_key=signing_key, clock=self._clock, grant=grant)
        self.started_now = True

    @contextmanager
    def _transaction(self) -> Iterator[LedgerTransaction]:
        with self._lock:
            yield self._kept

    def _reading(self) -> AbstractContextManager[LedgerSnapshot]:
        return self._transaction()
