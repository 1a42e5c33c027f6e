"""Reading a ledger: nobody waits for a reader, and neither file nor disk need be writable."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from ledger_store_world import CAPS, PUBLIC, approve, open_ledger, spec

from lada_clients.site.ledger.store import SqliteLedger, open_ledger_reader
from lada_secure.errors import LedgerError, TransportError
from lada_secure.privacy.ledger.entries import parse_ledger_lines
from lada_secure.privacy.ledger.verification import verify_ledger

NOBODY = 65534
FORK = multiprocessing.get_context("fork")


def filled(path: Path, *, releases: int = 3) -> bytes:
    """A ledger with some releases; returns its export."""
    with open_ledger(path) as ledger:
        approve(ledger)
        for round_id in range(releases):
            ledger.commit(ledger.reserve(spec(round_id)), b"noised %d" % round_id)
        return ledger.export_lines()


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the file's write lock, as a site in the middle of a reservation does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_a_reader_says_what_the_ledger_says(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    exported = filled(path)
    with open_ledger(path) as ledger, open_ledger_reader(path) as reader:
        assert reader.identity == ledger.identity
        assert reader.entries() == ledger.entries()
        assert reader.entries()[-1] == ledger.entries()[-1]
        assert reader.export_lines() == exported
        assert reader.epsilon_spent(1e-6) == ledger.epsilon_spent(1e-6) > 0
        assert reader.stored_output(spec(1).key) == b"noised 1"
        assert reader.public_key == PUBLIC
        ledger.reserve(spec(7))
        assert reader.entries()[-1] == ledger.entries()[-1], "a reader sees what is added later"
        verify_ledger(parse_ledger_lines(reader.export_lines()), public_key=PUBLIC, caps=CAPS)


def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    exported = filled(path)
    with open_ledger(path) as ledger, write_lock(path):
        # With the write lock taken by somebody else, these would wait a minute and fail.
        assert ledger.export_lines() == exported
        assert ledger.epsilon_spent(1e-6) > 0
        assert ledger.stored_output(spec(0).key) == b"noised 0"
        assert ledger.entries()[-1].index == 7
        with open_ledger_reader(path) as reader:
            assert reader.export_lines() == exported
        with open_ledger(path) as another:
            assert another.entries()[-1] == ledger.entries()[-1], "opening a ledger only reads"


def test_a_writer_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    filled(path)
    with open_ledger(path) as ledger, open_ledger_reader(path) as reader:
        paid = ledger.reserve(spec(9))
        with reader._reading() as snapshot:
            ledger.commit(paid, b"noised later")
            assert snapshot.output(paid.entry_hash) is None, "one look is one consistent state"
        assert reader.stored_output(spec(9).key) == b"noised later"


def read_as_nobody(path: Path) -> bytes:
    """The export, read by a process for which file modes count: root's pass everything."""
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with open_ledger_reader(path) as reader:
                os.write(target, reader.export_lines())
        except BaseException as error:
            os.write(target, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(target)
    with os.fdopen(source, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return content


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Not pytest's folder: another user may not even look into that one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_read_only_file_in_a_read_only_folder_is_read(open_folder: Path) -> None:
    path = open_folder / "ledger.db"
    exported = filled(path, releases=2)
    path.chmod(0o444)
    open_folder.chmod(0o555)
    before = sorted(one.name for one in open_folder.iterdir())
    assert read_as_nobody(path) == exported
    assert sorted(one.name for one in open_folder.iterdir()) == before
    open_folder.chmod(0o755)


def test_entries_that_still_wait_in_the_log_are_read_too(open_folder: Path) -> None:
    path, backup = open_folder / "ledger.db", open_folder / "backup"
    backup.mkdir()
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.commit(ledger.reserve(spec()), b"noised")
        # What a copy of a running site's folder holds: the log, but no index beside it.
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copyfile(open_folder / name, backup / name)
            (backup / name).chmod(0o444)
        exported = ledger.export_lines()
    assert (backup / "ledger.db-wal").stat().st_size > 0
    backup.chmod(0o555)
    assert read_as_nobody(backup / "ledger.db") == exported
    backup.chmod(0o755)


def test_a_file_that_may_not_be_read_is_a_clear_error(open_folder: Path) -> None:
    path = open_folder / "ledger.db"
    filled(path, releases=1)
    path.chmod(stat.S_IWUSR)
    assert b"DiskError: ledger" in read_as_nobody(path)


@pytest.mark.parametrize("content", [b"", b"this is not a database" * 100])
def test_what_is_no_ledger_is_not_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="not a ledger at all"), open_ledger_reader(path):
        pass
    assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["ledger.db"]


def test_a_missing_ledger_is_not_made_by_reading(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(TransportError, match="cannot be opened"), open_ledger_reader(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_edited_ledger_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_no_delete")
        connection.execute("DELETE FROM entries WHERE number = 3")
    connection.close()
    with pytest.raises(LedgerError, match="entry 3: its index says 4"), open_ledger_reader(path):
        pass


CLONE_NEWNS = 0x20000


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def _in_a_namespace(folder: Path, program: Callable[[Path], list[str]], answer: Connection) -> None:
    """What the child of `on_a_small_disk` does."""
    try:
        # Mounts made from here on are this process's own, and go with it.
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", "size=256k", "none", folder)
    except (OSError, subprocess.CalledProcessError):
        answer.send(None)
        return
    try:
        answer.send(program(folder))
    except BaseException:
        answer.send(traceback.format_exc())


def on_a_small_disk(folder: Path, program: Callable[[Path], list[str]]) -> list[str]:
    """Run a function on a real file system of 256 kB; skips where mounting is not permitted."""
    folder.mkdir()
    here, there = FORK.Pipe()
    child = FORK.Process(target=_in_a_namespace, args=(folder, program, there))
    child.start()
    answer = here.recv() if here.poll(60) else "no answer in a minute"
    child.join(timeout=60)
    if answer is None:
        pytest.skip("mounting a file system is not permitted here")
    assert isinstance(answer, list), answer
    return answer


def reserve_on(ledger: SqliteLedger) -> None:
    """Far more reservations than a small disk holds."""
    for round_id in range(1, 400):
        ledger.reserve(spec(round_id, noise=2000.0))


def resume_on(ledger: SqliteLedger) -> None:
    """Far more tries of one release than a small disk holds."""
    for _ in range(400):
        ledger.reserve(spec())


def fill_the_disk(folder: Path) -> list[str]:
    """Reserve and commit while somebody else's file takes up all the room."""
    path, filler = folder / "ledger.db", folder / "filler"
    messages: list[str] = []
    with open_ledger(path) as ledger:
        approve(ledger)
        paid = ledger.reserve(spec())
        before = ledger.export_lines()
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(TransportError) as full:
            reserve_on(ledger)
        messages.append(str(full.value))
        held, spent = ledger.export_lines(), ledger.epsilon_spent(1e-6)
        assert held.startswith(before)
        with pytest.raises(TransportError) as full:
            ledger.commit(paid, bytes(200_000))
        messages.append(str(full.value))
        with pytest.raises(TransportError) as full:
            resume_on(ledger)
        messages.append(str(full.value))
        held = ledger.export_lines()
        assert (ledger.export_lines(), ledger.epsilon_spent(1e-6)) == (held, spent)
        filler.unlink()
        ledger.commit(paid, b"noised")
    with open_ledger(path) as ledger:
        assert ledger.stored_output(spec().key) == b"noised"
        assert ledger.export_lines().startswith(held)
        verify_ledger(ledger.entries(), public_key=PUBLIC, caps=CAPS)
    return messages


def turn_the_disk_read_only(folder: Path) -> list[str]:
    """Read a ledger on a disk that cannot be written, then try to open it for writing."""
    path = folder / "ledger.db"
    exported = filled(path, releases=1)
    _mount("-o", "remount,ro", folder)
    with open_ledger_reader(path) as reader:
        assert reader.export_lines() == exported
    with pytest.raises(TransportError) as refused:
        open_ledger(path)
    assert [one.name for one in folder.iterdir()] == ["ledger.db"]
    return [str(refused.value)]


def test_on_a_disk_that_is_really_full_nothing_is_spent_silently_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    for message in on_a_small_disk(tmp_path / "disk", fill_the_disk):
        assert "ledger.db: the disk" in message
        assert "full" in message
        assert "This step wrote nothing" in message


def test_on_a_disk_that_is_really_read_only_a_ledger_is_read_and_not_opened(
    tmp_path: Path,
) -> None:
    (message,) = on_a_small_disk(tmp_path / "disk", turn_the_disk_read_only)
    assert "cannot be opened or created: Read-only file system" in message
    assert "nothing was spent" in message
