"""A ledger with all rules and signatures that is gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.privacy.ledger.book import LedgerBook, begin_ledger
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger.promises import BudgetPromise
from lada_secure.privacy.ledger.reader import KeptOutput, LedgerTransaction
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import BudgetCaps


class _Kept:
    """All that is kept, as one `LedgerTransaction` for the ledger's whole life."""

    def __init__(self, identity: LedgerIdentity) -> None:
        self.replay = LedgerReplay(identity)
        self.last_write: str | None = None
        self._outputs: dict[str, KeptOutput] = {}
        self._promises: dict[str, BudgetPromise] = {}

    def append(self, entry: LedgerEntry, output: KeptOutput | None, *, written: str) -> None:
        self.replay.append(entry)
        if isinstance(entry, CommitEntry) and output is not None:
            self._outputs[entry.reserve_hash] = output
        self.last_write = written

    def output(self, reserve_hash: str) -> KeptOutput | None:
        return self._outputs.get(reserve_hash)

    def promises(self) -> Sequence[BudgetPromise]:
        return tuple(self._promises[plan_hash] for plan_hash in sorted(self._promises))

    def put_promise(self, promise: BudgetPromise) -> None:
        self._promises[promise.plan_hash] = promise

    def end_promise(self, plan_hash: str) -> None:
        self._promises.pop(plan_hash, None)


class MemoryLedger(LedgerBook):
    """A ledger for simulations on public or synthetic data, never for real records.

    A budget that does not survive a restart protects nobody.

    Args: grant: what the auditor granted, where it replaces another one. The rest as
        `LedgerBook`.
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
        self._kept = _Kept(identity)
        begin_ledger(self._kept, signing_key=signing_key, clock=self._clock, grant=grant)
        self.started_now = True

    @contextmanager
    def _transaction(self) -> Iterator[LedgerTransaction]:
        with self._lock:
            yield self._kept

    def _reading(self) -> AbstractContextManager[LedgerTransaction]:
        return self._transaction()
