"""Whose a state folder is, in which version, and that one process at a time works in it.

A settings file that names another party's folder would mix two parties' keys, messages and
budgets; two processes in one folder would send two different messages in one place. Both are
refused before anything is written. The lock dies with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import DiskError, LadaError, ParameterError, TransportError
from lada_secure.storage.whole_files import sweep_parts, write_atomically

STATE_VERSION: Final = 1
OWNER_FILE: Final = "owner.json"
LOCK_FILE: Final = "lock"
_MAX_OWNER_BYTES: Final = 4096


@contextmanager
def held_state_folder(folder: Path, *, party: str, role: str) -> Iterator[None]:
    """Work in a state folder as its owner, alone; it becomes ours where nobody's name is on it.

    Parts of files that a killed process had not finished to write go first.

    Raises: ParameterError: another party's, of another version, or another process works in it.
        TransportError: the folder cannot be written.
    """
    lock = _locked(folder)
    try:
        if not check_state_folder(folder, party=party, role=role):
            owner: Json = {"party": party, "role": role, "version": STATE_VERSION}
            write_atomically(folder / OWNER_FILE, canonical_json(owner))
        sweep_parts(folder)
        yield
    finally:
        lock.close()


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


def _locked(folder: Path) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("ab")
    except OSError as error:
        raise DiskError(f"cannot write {folder / LOCK_FILE}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ParameterError(
            f"{folder} is in use by another process of this party; stop it first. Two at once "
            "would send two different messages in one place"
        ) from error
    except OSError as error:
        lock.close()
        # Without a lock nobody could tell whether another process works here.
        raise TransportError(
            f"{folder / LOCK_FILE} cannot be locked: {error.strerror}; put state_dir on a file "
            "system that has locks (a local disk, or a network share mounted with them)"
        ) from error
    return lock
