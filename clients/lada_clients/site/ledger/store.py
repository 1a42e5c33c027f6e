"""A site's ledger in one SQLite file, shared by all its processes and surviving all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.site.ledger.database import (
    READ,
    WRITE,
    connect_to_write,
    create_private,
    readable,
)
from lada_clients.site.ledger.file import (
    DataNote,
    LedgerFile,
    SqliteTransaction,
    create_tables,
    has_tables,
    stored_identity,
)
from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.fields import check_hash, check_name, public_hex
from lada_secure.privacy.ledger.book import LedgerBook, ReadLedger, begin_ledger
from lada_secure.privacy.ledger.carried_budget import granted_identity
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.ledger.times import LedgerClock


def _check_last_epsilon(replay: LedgerReplay, path: Path) -> None:
    """The last recorded epsilon is what the releases cost.

    Raises: LedgerError: it says less.
    """
    last = next(reversed(replay.reserved.values()), None)
    if last is None:
        return
    recomputed = replay.spending.of().epsilon(last.target_delta)
    if last.epsilon_after < recomputed * (1 - 1e-3) - 1e-6:
        raise LedgerError(
            f"ledger {path}: the last reservation says epsilon {last.epsilon_after:.6g}, its "
            f"releases cost {recomputed:.6g}; it was written by other software or "
            "tampered with"
        )


def _found_or_begun(
    file: LedgerFile,
    new: LedgerIdentity,
    *,
    signing_key: Ed25519PrivateKey,
    clock: LedgerClock,
    grant: RestartGrant | None,
) -> LedgerIdentity | None:
    """Whose ledger is in the file; None where there was none and `new` was begun."""
    # Looked at again with the lock held: another process may have been quicker.
    for begin in (READ, WRITE):
        with file.transaction(begin) as connection:
            if has_tables(connection):
                return stored_identity(connection, file.path)
            if begin == WRITE:
                create_tables(connection, new, file.path)
                transaction = SqliteTransaction(connection, LedgerReplay(new))
                begin_ledger(transaction, signing_key=signing_key, clock=clock, grant=grant)
    return None


class SqliteLedger(LedgerBook):
    """A site's ledger in one SQLite file; several processes may have it open.

    Opening it checks every entry's place in the chain, signature and rules, and that the last
    recorded epsilon is what the releases cost. A file that is not there is created with the
    `start` entry of a ledger that has its whole budget; `started_now` tells. Use it as a context
    manager or call `close`. Whatever only reads neither takes the write lock nor waits for it.
    Not for use across a fork: open it again in the child.

    Args:
        path: the file; created with mode 0600 if missing, its folder must exist.
        site, population: whose ledger it is. `population` names the people who are protected;
            all studies over them share the file and the budget.
        signing_key: the site's Ed25519 key.
        caps: the site's own policy.
        clock: the current time with a zone. time_step_s: see `LedgerClock`.
    Raises: LedgerError: of another site, population, schema version or key in force (see
        `LedgerBook.renew_key`), or damaged. TransportError: cannot be opened, read-only, disk
        full.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        population: str,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        clock: Callable[[], datetime],
        time_step_s: int,
    ) -> None:
        new = LedgerIdentity.new(site=site, population=population)
        super().__init__(
            identity=new,
            signing_key=signing_key,
            caps=caps,
            clock=clock,
            time_step_s=time_step_s,
        )
        create_private(path)
        self._file = LedgerFile(path, partial(connect_to_write, path))
        try:
            found = _found_or_begun(
                self._file, new, signing_key=signing_key, clock=self._clock, grant=None
            )
            if found is not None:
                _check_own(found, new, path)
                self.identity = found
            self.started_now = found is None
            with self._reading() as ledger:
                ledger.replay.require_key(public_hex(signing_key))
                _check_last_epsilon(ledger.replay, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Every completed call is on disk already."""
        self._file.close()

    def note_data(self, study_id: str, fingerprint: str) -> DataNote | None:
        """Note the data set that a study begins with; a study's first note stays.

        Notes never leave the site: they stand in no entry and no export.

        Args: fingerprint: `units.population_fingerprint`, 64 hex digits, always by the same key.
        Returns: the note of the newest study that began before this one; None for the first.
        """
        check_name("study_id", study_id)
        check_hash("fingerprint", fingerprint)
        with self._transaction() as ledger:
            return ledger.note_data(DataNote(study_id, fingerprint))

    def _transaction(self) -> AbstractContextManager[SqliteTransaction]:
        return self._file.opened(WRITE, self.identity)

    def _reading(self) -> AbstractContextManager[SqliteTransaction]:
        return self._file.opened(READ, self.identity)


def _check_own(found: LedgerIdentity, expected: LedgerIdentity, path: Path) -> None:
    """Raises: LedgerError: the file is of another site or population."""
    for name in ("site", "population"):
        if getattr(found, name) != getattr(expected, name):
            raise LedgerError(
                f"ledger {path}: it is of another {name}: expected {getattr(expected, name)!r}, "
                f"it says {getattr(found, name)!r}. Nothing was written; open the right file"
            )


def restart_ledger(
    path: Path,
    *,
    grant: RestartGrant,
    auditor_key: bytes,
    signing_key: Ed25519PrivateKey,
    clock: Callable[[], datetime],
    time_step_s: int,
) -> None:
    """Create the ledger that an auditor's person granted in place of a lost one.

    Open it with `SqliteLedger` afterwards.

    Args:
        path: a new file; what is left of the lost ledger is moved away first, by a person.
        auditor_key: the auditor's Ed25519 key, 32 raw bytes, from its certificate.
        signing_key: the site's, for which the grant is.
    Raises: LedgerError: the file is a ledger already, or the grant is not the auditor's or for
        another key; nothing was written.
    """
    identity = granted_identity(grant, auditor_key=auditor_key)
    create_private(path)
    with closing(LedgerFile(path, partial(connect_to_write, path))) as file:
        ledger_clock = LedgerClock(read=clock, time_step_s=time_step_s)
        found = _found_or_begun(
            file, identity, signing_key=signing_key, clock=ledger_clock, grant=grant
        )
    if found is not None:
        raise LedgerError(
            f"ledger {path}: there is a ledger in this file already. Nothing was written; "
            "move the file away if it is the one that is lost"
        )


class SqliteLedgerReader(ReadLedger):
    """A ledger file that is only read: no key is needed, nothing is written, nobody waits.

    Works on a read-only file and disk, and while a site is using the ledger. Whose ledger it is
    comes from the file, and every entry is checked against that; compare `identity` with what
    you expect. Made by `open_ledger_reader`.
    """

    def __init__(self, file: LedgerFile) -> None:
        with file.transaction(READ) as connection:
            self.identity = stored_identity(connection, file.path)
        self._file = file
        with self._reading() as ledger:
            _check_last_epsilon(ledger.replay, file.path)

    def _reading(self) -> AbstractContextManager[SqliteTransaction]:
        return self._file.opened(READ, self.identity)


@contextmanager
def open_ledger_reader(path: Path) -> Iterator[SqliteLedgerReader]:
    """Open a ledger file for reading alone, after the checks that `SqliteLedger` makes.

    Raises: LedgerError: damaged, not a ledger, or of another schema version. TransportError: it
        is missing or cannot be read.
    """
    with readable(path) as connect, closing(LedgerFile(path, connect)) as file:
        yield SqliteLedgerReader(file)
