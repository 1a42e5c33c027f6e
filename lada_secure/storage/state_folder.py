"""Whose a state folder is, in which version, and that one process at a time works in it.

A settings file that names another party's folder would mix two parties' keys, messages and
budgets; two processes in one folder would send two different messages in one place. Both are
refused before anything is written. The lock dies with the process, however it ends.

Work that touches different files may go on side by side: such processes share the folder and hold
a lock of their own for their piece of work.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import DiskError, LadaError, ParameterError
from lada_secure.storage.whole_files import sweep_parts, write_atomically

STATE_VERSION: Final = 1
OWNER_FILE: Final = "owner.json"
LOCK_FILE: Final = "lock"
_MAX_OWNER_BYTES: Final = 4096
# Whoever looks whether a folder is held, or prepares a shared one, is done by then.
_SHORT_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.05


class FolderInUse(ParameterError):
    """Another process works in the folder."""


@contextmanager
def held_state_folder(folder: Path, *, party: str, role: str) -> Iterator[None]:
    """Work in a state folder as its owner, alone; it becomes ours where nobody's name is on it.

    Parts of files that a killed process had not finished to write go first.

    Raises: ParameterError: another party's, of another version, or another process works in it.
        DiskError: the folder cannot be written.
    """
    lock = _locked(folder)
    try:
        _prepare(folder, party=party, role=role)
        yield
    finally:
        lock.close()


@contextmanager
def shared_state_folder(folder: Path, *, party: str, role: str, work: str) -> Iterator[None]:
    """Work in a state folder as its owner, beside processes that do other work in it.

    Nobody holds the whole folder meanwhile (`held_state_folder`). Whoever comes first prepares it:
    in a container every process may have the same number, and a part that looks left behind may be
    another's.

    Args: work: names what no two processes may do at once, in letters, digits and `-`.
    Raises: as `held_state_folder`.
    """
    whole = _locked_together(folder, party=party, role=role)
    try:
        # Only then: another party's folder is left as it is.
        check_state_folder(folder, party=party, role=role)
        own = _locked(folder, _lock_of(work))
        try:
            yield
        finally:
            own.close()
    finally:
        whole.close()


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Work in one folder within a state folder alone; see `is_held`.

    Raises: ParameterError: another process works in it. DiskError: it cannot be written.
    """
    lock = _locked(folder)
    try:
        yield
    finally:
        lock.close()


def is_held(folder: Path, *, work: str | None = None) -> bool:
    """Whether a process works in a folder at the moment, alone. Nothing is made or written.

    Args: work: whether one does that work beside others (`shared_state_folder`).
    """
    try:
        with (folder / _lock_of(work)).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock_of(work: str | None) -> str:
    return LOCK_FILE if work is None else f"{LOCK_FILE}-{work}"


def _prepare(folder: Path, *, party: str, role: str) -> None:
    if not check_state_folder(folder, party=party, role=role):
        owner: Json = {"party": party, "role": role, "version": STATE_VERSION}
        write_atomically(folder / OWNER_FILE, canonical_json(owner))
    sweep_parts(folder)


def check_state_folder(folder: Path, *, party: str, role: str) -> bool:
    """Whether this party's name is on the folder; False where nobody's is.

    Raises: ParameterError: another party's, of another version, or the note is damaged.
    """
    path = folder / OWNER_FILE
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_OWNER_BYTES))
        owner, version = (found["party"], found["role"]), str(found["version"])
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{path} is damaged ({error!r}); restore the folder from its backup, or, if you are "
            f"sure that it is the one of {party}, delete this one file"
        ) from error
    check_schema_version(version, current=STATE_VERSION, where=str(path), refusal=ParameterError)
    if owner != (party, role):
        raise ParameterError(
            f"{folder} is the state of {owner[1]} {owner[0]}, the settings are those of {role} "
            f"{party}; name this party's own state_dir. Nothing was changed"
        )
    return True


def check_schema_version(
    stored: str | None, *, current: int, where: str, refusal: type[LadaError]
) -> None:
    """Refuse a file of another version.

    Args: stored: what the file says, None where it says nothing. current: of this software.
      where: the file, for messages. refusal: class of the error.
    Raises: refusal: another version than `current`, or not a version at all.
    """
    if stored is None or not stored.isascii() or not stored.isdecimal() or int(stored) < 1:
        raise refusal(
            f"{where}: expected a schema version from 1 to {current}, it says {stored!r}; it is "
            "damaged or not ours, restore it from its backup"
        )
    if int(stored) != current:
        reads = "up to" if int(stored) > current else "from"
        raise refusal(
            f"{where}: it has schema version {stored}, this software reads {reads} {current}; use "
            "the version of lada that wrote it, or a newer one. Nothing was changed"
        )


def _locked_together(folder: Path, *, party: str, role: str) -> BinaryIO:
    """The folder's lock, shared with others; whoever has it alone at first prepares the folder."""
    lock = _opened(folder, LOCK_FILE)
    try:
        deadline_s = time.monotonic() + _SHORT_S
        while not _takes(lock, fcntl.LOCK_EX):
            # Others work in it, or somebody only looks at this very moment.
            if check_state_folder(folder, party=party, role=role):
                break
            _check_soon(deadline_s, folder)
        else:
            _prepare(folder, party=party, role=role)
        _lock_soon(lock, fcntl.LOCK_SH, folder)
    except BaseException:
        lock.close()
        raise
    return lock


def _locked(folder: Path, name: str = LOCK_FILE) -> BinaryIO:
    lock = _opened(folder, name)
    try:
        _lock_soon(lock, fcntl.LOCK_EX, folder)
    except BaseException:
        lock.close()
        raise
    return lock


def _opened(folder: Path, name: str) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("ab")
    except OSError as error:
        raise DiskError(
            f"cannot write {folder / name}: {error.strerror}; state_dir must be a folder that this "
            "process may make and write"
        ) from error


def _lock_soon(lock: BinaryIO, how: int, folder: Path) -> None:
    """Take a lock that others hold for an instant only. Raises: FolderInUse: for longer."""
    deadline_s = time.monotonic() + _SHORT_S
    while not _takes(lock, how):
        _check_soon(deadline_s, folder)


def _check_soon(deadline_s: float, folder: Path) -> None:
    """Wait before another look. Raises: FolderInUse: there was time enough."""
    if time.monotonic() > deadline_s:
        raise FolderInUse(
            f"{folder} is in use by another process of this party; stop it first. Two at once "
            "would send two different messages in one place"
        )
    time.sleep(_LOOK_AGAIN_S)


def _takes(lock: BinaryIO, how: int) -> bool:
    """Whether the lock was free. Raises: DiskError: the file system has no locks."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Without a lock nobody could tell whether another process works here.
        raise DiskError(
            f"{lock.name} cannot be locked: {error.strerror}; put state_dir on a file system that "
            "has locks (a local disk, or a network share mounted with them)"
        ) from error
    return True
