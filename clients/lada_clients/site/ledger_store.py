"""A site's ledger in one SQLite file, shared by all its processes and surviving all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, insert, select

from lada_clients.site.ledger_file import (
    COUNTERSIGNATURES,
    ENTRIES,
    OUTPUTS,
    LedgerFile,
    check_identity,
    create_private,
    create_tables,
    has_tables,
    is_current,
    migrate,
    own_errors,
    reading_engine,
    stored_bytes,
    stored_entry,
    stored_identity,
    writing_engine,
)
from lada_secure.errors import LedgerError
from lada_secure.privacy.countersignature import (
    Countersignature,
    check_against_ledger,
    check_countersignature,
    parse_countersignature,
)
from lada_secure.privacy.entries import CommitEntry, LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger import BudgetCaps
from lada_secure.privacy.ledger_keeper import (
    KeptLedger,
    LedgerSnapshot,
    LedgerTransaction,
    ReadLedger,
)
from lada_secure.privacy.replay import LedgerReplay

READ = "BEGIN"
WRITE = "BEGIN IMMEDIATE"


class _SqliteSnapshot(LedgerSnapshot):
    def __init__(self, connection: Connection, replay: LedgerReplay) -> None:
        self._connection = connection
        self._replay = replay

    @property
    def replay(self) -> LedgerReplay:
        return self._replay

    def output(self, reserve_hash: str) -> bytes | None:
        payload = self._connection.scalar(
            select(OUTPUTS.c.payload).where(OUTPUTS.c.reserve_hash == reserve_hash)
        )
        if payload is None:
            return None
        return stored_bytes(payload, f"output of {reserve_hash[:12]}...")

    def entries(self) -> tuple[LedgerEntry, ...]:
        rows = self._connection.execute(
            select(ENTRIES.c.number, ENTRIES.c.line).order_by(ENTRIES.c.number)
        )
        return tuple(stored_entry(row.line, f"entry {row.number}") for row in rows)

    def countersignatures(self) -> tuple[bytes, ...]:
        """The kept countersignatures, oldest first."""
        rows = self._connection.scalars(
            select(COUNTERSIGNATURES.c.raw).order_by(COUNTERSIGNATURES.c.id)
        )
        return tuple(stored_bytes(raw, "countersignature") for raw in rows)


class _SqliteTransaction(_SqliteSnapshot, LedgerTransaction):
    def append(self, entry: LedgerEntry, output: bytes | None) -> None:
        self._replay.append(entry)
        self._connection.execute(
            insert(ENTRIES).values(
                number=entry.index, entry_hash=entry.entry_hash, line=entry.line()
            )
        )
        if isinstance(entry, CommitEntry) and output is not None:
            self._connection.execute(
                insert(OUTPUTS).values(reserve_hash=entry.reserve_hash, payload=output)
            )

    def keep_countersignature(self, raw: bytes) -> None:
        """Add one, unless it is kept already."""
        if raw not in self.countersignatures():
            self._connection.execute(insert(COUNTERSIGNATURES).values(raw=raw))


def _check_last_epsilon(replay: LedgerReplay, path: Path) -> None:
    """The last recorded epsilon is what the releases cost.

    Raises: LedgerError: it says less.
    """
    last = replay.last_reserve()
    if last is None:
        return
    recomputed = replay.accountant().epsilon(last.target_delta)
    if last.epsilon_after < recomputed * (1 - 1e-3) - 1e-6:
        raise LedgerError(
            f"ledger {path}: the last reservation says epsilon {last.epsilon_after:.6g}, its "
            f"releases cost {recomputed:.6g}; it was written by other software or "
            "tampered with"
        )


class SqliteLedger(KeptLedger):
    """A site's ledger in one SQLite file; several processes may have it open.

    Opening it checks every entry's place in the chain, signature and rules, and that the last
    recorded epsilon is what the releases cost. Use it as a context manager or call `close`.
    Whatever only reads neither takes the write lock nor waits for it. Not for use across a fork:
    open it again in the child.

    Args:
        path: the file; created with mode 0600 if missing, its folder must exist.
        site, population: whose ledger it is. `population` names the people who are protected;
            all studies over them share the file and the budget.
        signing_key: the site's Ed25519 key.
        caps: the site's own policy.
        data_fingerprint: of the data set in use (`units.population_fingerprint`).
        clock: the current time with a zone.
    Raises: LedgerError: of another site, population or key, damaged, or of a newer version.
        TransportError: cannot be opened, read-only, disk full.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        population: str,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        data_fingerprint: str,
        clock: Callable[[], datetime],
    ) -> None:
        public_key = signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        identity = LedgerIdentity(site=site, population=population, public_key=public_key)
        super().__init__(
            identity=identity,
            signing_key=signing_key,
            caps=caps,
            data_fingerprint=data_fingerprint,
            clock=clock,
        )
        create_private(path)
        self._engine = writing_engine(path)
        self._file = LedgerFile(path, self._engine, identity)
        try:
            self._set_up()
            with self._reading() as snapshot:
                _check_last_epsilon(snapshot.replay, path)
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Every completed call is on disk already."""
        self._engine.dispose()

    def _set_up(self) -> None:
        with self._file.connected(READ) as connection:
            found = has_tables(connection)
        if not found:
            with self._file.connected(WRITE) as connection:
                # Another process may have been quicker.
                if not has_tables(connection):
                    create_tables(connection, self._identity, self._file.path)
        with self._file.connected(READ) as connection:
            check_identity(connection, self._identity, self._file.path)
            current = is_current(connection, self._file.path)
        if not current:
            with self._file.connected(WRITE) as connection:
                migrate(connection, self._file.path)

    @contextmanager
    def _transaction(self) -> Iterator[_SqliteTransaction]:
        with self._file.synchronised(WRITE) as (connection, replay):
            yield _SqliteTransaction(connection, replay)

    @contextmanager
    def _reading(self) -> Iterator[_SqliteSnapshot]:
        with self._file.synchronised(READ) as (connection, replay):
            yield _SqliteSnapshot(connection, replay)

    def add_countersignature(
        self, countersignature: Countersignature, *, auditor_key: bytes
    ) -> None:
        """Keep the auditor's countersignature, after checking that it is about this ledger.

        Args: auditor_key: the auditor's Ed25519 key, 32 raw bytes.
        Raises: LedgerError: wrong signature, another ledger, or entries that are not here.
        """
        check_countersignature(countersignature, auditor_key=auditor_key)
        raw = countersignature.to_bytes()
        with self._transaction() as transaction:
            check_against_ledger(
                countersignature, identity=self._identity, entries=transaction.entries()
            )
            transaction.keep_countersignature(raw)

    def countersignatures(self) -> tuple[Countersignature, ...]:
        """All countersignatures that were kept, oldest first."""
        with self._reading() as snapshot:
            return tuple(parse_countersignature(raw) for raw in snapshot.countersignatures())


class SqliteLedgerReader(ReadLedger):
    """A ledger file that is only read: no key is needed, nothing is written, nobody waits.

    Works on a read-only file and disk, and while a site is using the ledger. Whose ledger it is
    comes from the file, and every entry is checked against that; compare `identity` with what
    you expect. Made by `open_ledger_reader`.
    """

    def __init__(self, file: LedgerFile, identity: LedgerIdentity) -> None:
        super().__init__(identity=identity)
        self._file = file

    @contextmanager
    def _reading(self) -> Iterator[_SqliteSnapshot]:
        with self._file.synchronised(READ) as (connection, replay):
            yield _SqliteSnapshot(connection, replay)

    def countersignatures(self) -> tuple[Countersignature, ...]:
        """All countersignatures that were kept, oldest first."""
        with self._reading() as snapshot:
            return tuple(parse_countersignature(raw) for raw in snapshot.countersignatures())


@contextmanager
def open_ledger_reader(path: Path) -> Iterator[SqliteLedgerReader]:
    """Open a ledger file for reading alone, after the checks that `SqliteLedger` makes.

    Raises: LedgerError: damaged, not a ledger, or of a newer version. TransportError: it is
        missing or cannot be read.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(reading_engine(path))
        with own_errors(path), engine.execution_options(begin=READ).begin() as connection:
            identity = stored_identity(connection, path)
        reader = SqliteLedgerReader(LedgerFile(path, engine, identity), identity)
        with reader._reading() as snapshot:
            _check_last_epsilon(snapshot.replay, path)
        yield reader
