"""A site's ledger in one SQLite file, shared by all its processes and surviving all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from lada_clients.site.ledger.file import (
    DATA_NOTES,
    ENTRIES,
    NOTES,
    OUTPUTS,
    LedgerFile,
    connected,
    create_private,
    create_tables,
    has_tables,
    reading_engine,
    stored_bytes,
    stored_entry,
    stored_identity,
    writing_engine,
)
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.fields import parse_time
from lada_secure.privacy.ledger.book import BudgetCaps
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerEntry, LedgerIdentity
from lada_secure.privacy.ledger.keeper import (
    DataNote,
    KeptLedger,
    KeptOutput,
    LedgerSnapshot,
    LedgerTransaction,
    ReadLedger,
    begin_ledger,
    check_key,
    granted_identity,
)
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.times import LedgerClock

READ = "BEGIN"
WRITE = "BEGIN IMMEDIATE"
_LAST_WRITE = "last_write"


class _SqliteSnapshot(LedgerSnapshot):
    def __init__(self, connection: Connection, replay: LedgerReplay) -> None:
        self._connection = connection
        self._replay = replay

    @property
    def replay(self) -> LedgerReplay:
        return self._replay

    def output(self, reserve_hash: str) -> KeptOutput | None:
        row = self._connection.execute(
            select(OUTPUTS.c.payload, OUTPUTS.c.salt).where(OUTPUTS.c.reserve_hash == reserve_hash)
        ).first()
        if row is None:
            return None
        where = f"output of {reserve_hash[:12]}..."
        return KeptOutput(
            payload=stored_bytes(row.payload, where), salt=stored_bytes(row.salt, where)
        )

    def entries(self) -> tuple[LedgerEntry, ...]:
        rows = self._connection.execute(
            select(ENTRIES.c.number, ENTRIES.c.line).order_by(ENTRIES.c.number)
        )
        return tuple(stored_entry(row.line, f"entry {row.number}") for row in rows)


class _SqliteTransaction(_SqliteSnapshot, LedgerTransaction):
    def append(self, entry: LedgerEntry, output: KeptOutput | None) -> None:
        self._replay.append(entry)
        self._connection.execute(
            insert(ENTRIES).values(
                number=entry.index, entry_hash=entry.entry_hash, line=entry.line()
            )
        )
        if isinstance(entry, CommitEntry) and output is not None:
            self._connection.execute(
                insert(OUTPUTS).values(
                    reserve_hash=entry.reserve_hash, payload=output.payload, salt=output.salt
                )
            )

    def last_write(self) -> str | None:
        text = self._connection.scalar(select(NOTES.c.value).where(NOTES.c.name == _LAST_WRITE))
        if text is None:
            return None
        try:
            parse_time(str(text))
        except ParameterError as error:
            raise LedgerError(f"{_LAST_WRITE}: {error}; it was changed on disk") from error
        return str(text)

    def note_write(self, precise: str) -> None:
        statement = upsert(NOTES).values(name=_LAST_WRITE, value=precise)
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=["name"], set_={"value": precise})
        )

    def data_notes(self) -> tuple[DataNote, ...]:
        rows = self._connection.execute(
            select(DATA_NOTES.c.study_id, DATA_NOTES.c.fingerprint).order_by(DATA_NOTES.c.number)
        )
        return tuple(DataNote(study_id=row.study_id, fingerprint=row.fingerprint) for row in rows)

    def add_data_note(self, note: DataNote) -> None:
        self._connection.execute(
            insert(DATA_NOTES).values(study_id=note.study_id, fingerprint=note.fingerprint)
        )


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


def _begin_file(
    connection: Connection,
    path: Path,
    *,
    identity: LedgerIdentity,
    signing_key: Ed25519PrivateKey,
    clock: LedgerClock,
    grant: RestartGrant | None,
) -> None:
    create_tables(connection, identity, path)
    transaction = _SqliteTransaction(connection, LedgerReplay(identity))
    begin_ledger(transaction, signing_key=signing_key, clock=clock, grant=grant)


class SqliteLedger(KeptLedger):
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
        `KeptLedger.renew_key`), or damaged. TransportError: cannot be opened, read-only, disk
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
        self._engine = writing_engine(path)
        try:
            self._identity = self._found_or_begun(path, new)
            self.started_now = self._identity == new
            self._file = LedgerFile(path, self._engine, self._identity)
            with self._reading() as snapshot:
                check_key(snapshot.replay, signing_key)
                _check_last_epsilon(snapshot.replay, path)
        except BaseException:
            self._engine.dispose()
            raise

    def _found_or_begun(self, path: Path, new: LedgerIdentity) -> LedgerIdentity:
        """The identity of the ledger in the file, which is `new` where there was none."""
        with connected(self._engine, path, READ) as connection:
            if has_tables(connection):
                return _own_identity(connection, path, new)
        with connected(self._engine, path, WRITE) as connection:
            # Another process may have been quicker.
            if has_tables(connection):
                return _own_identity(connection, path, new)
            _begin_file(
                connection,
                path,
                identity=new,
                signing_key=self._signing_key,
                clock=self._clock,
                grant=None,
            )
        return new

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

    @contextmanager
    def _transaction(self) -> Iterator[_SqliteTransaction]:
        with self._file.synchronised(WRITE) as (connection, replay):
            yield _SqliteTransaction(connection, replay)

    @contextmanager
    def _reading(self) -> Iterator[_SqliteSnapshot]:
        with self._file.synchronised(READ) as (connection, replay):
            yield _SqliteSnapshot(connection, replay)


def _own_identity(connection: Connection, path: Path, expected: LedgerIdentity) -> LedgerIdentity:
    """Raises: LedgerError: the file is of another site or population."""
    found = stored_identity(connection, path)
    for name in ("site", "population"):
        if getattr(found, name) != getattr(expected, name):
            raise LedgerError(
                f"ledger {path}: it is of another {name}: expected {getattr(expected, name)!r}, "
                f"it says {getattr(found, name)!r}. Nothing was written; open the right file"
            )
    return found


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
    engine = writing_engine(path)
    try:
        with connected(engine, path, WRITE) as connection:
            if has_tables(connection):
                raise LedgerError(
                    f"ledger {path}: there is a ledger in this file already. Nothing was written; "
                    "move the file away if it is the one that is lost"
                )
            _begin_file(
                connection,
                path,
                identity=identity,
                signing_key=signing_key,
                clock=LedgerClock(read=clock, time_step_s=time_step_s),
                grant=grant,
            )
    finally:
        engine.dispose()


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


@contextmanager
def open_ledger_reader(path: Path) -> Iterator[SqliteLedgerReader]:
    """Open a ledger file for reading alone, after the checks that `SqliteLedger` makes.

    Raises: LedgerError: damaged, not a ledger, or of another schema version. TransportError: it
        is missing or cannot be read.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(reading_engine(path))
        with connected(engine, path, READ) as connection:
            identity = stored_identity(connection, path)
        reader = SqliteLedgerReader(LedgerFile(path, engine, identity), identity)
        with reader._reading() as snapshot:
            _check_last_epsilon(snapshot.replay, path)
        yield reader
