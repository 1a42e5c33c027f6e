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
from lada_secure.privacy.ledger.book import LedgerBook, begin_ledger
from lada_secure.privacy.ledger.entries import LedgerIdentity, new_ledger_id
from lada_secure.privacy.ledger.reader import ReadLedger
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import BudgetCaps


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
        grant: begins the ledger that the auditor granted in place of a lost one, in a new file;
            what is left of the lost one is moved away first, by a person. The caller has checked
            that it is the auditor's, see `check_grant`.
    Raises: LedgerError: of another site, population, schema version or key in force (see
        `LedgerBook.renew_key`), or damaged; with a grant, a file that is a ledger already, or
        a grant for another key. TransportError: cannot be opened, read-only, disk full.
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
        grant: RestartGrant | None = None,
    ) -> None:
        ledger_id = new_ledger_id() if grant is None else grant.ledger_id
        super().__init__(
            identity=LedgerIdentity(site=site, population=population, ledger_id=ledger_id),
            signing_key=signing_key,
            caps=caps,
            clock=clock,
            time_step_s=time_step_s,
        )
        create_private(path)
        self._file = LedgerFile(path, partial(connect_to_write, path))
        try:
            found = self._found_or_begun(grant)
            self.started_now = found is None
            if found is not None:
                if grant is not None:
                    raise LedgerError(
                        f"ledger {path}: there is a ledger in this file already. Nothing was "
                        "written; move the file away if it is the one that is lost"
                    )
                _check_own(found, self.identity, path)
                self.identity = found
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

    def _found_or_begun(self, grant: RestartGrant | None) -> LedgerIdentity | None:
        """Whose ledger is in the file; None where there was none and this one was begun."""
        # Looked at again with the lock held: another process may have been quicker.
        for begin in (READ, WRITE):
            with self._file.transaction(begin) as connection:
                if has_tables(connection):
                    return stored_identity(connection, self._file.path)
                if begin == WRITE:
                    create_tables(connection, self.identity, self._file.path)
                    begin_ledger(
                        SqliteTransaction(connection, LedgerReplay(self.identity)),
                        signing_key=self._signing_key,
                        clock=self._clock,
                        grant=grant,
                    )
        return None

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
