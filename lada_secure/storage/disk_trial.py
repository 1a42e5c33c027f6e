"""Whether a folder's disk takes what a run will write, tried without leaving anything on it.

A file without a name (`O_TMPFILE`) is written, locked and gone when it is closed, however the
process ends. Where a file system cannot make one, as NFS, only what can be asked is asked.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_secure.errors import ParameterError
from lada_secure.storage.state_folder import is_held

# What the trial writes; a quota or a full disk shows at the first bytes.
_TRIAL_BYTES: Final = 1 << 20
_NOT_OFFERED: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTrial:
    """What a disk let us do.

    free_bytes: for this user. tried: whether a file could be made to try with. in_use: another
    process of the party works in the folder now.
    """

    free_bytes: int
    tried: bool
    in_use: bool


def try_disk(folder: Path, *, key: str, work: str | None = None) -> DiskTrial:
    """Try the disk of a folder that is there or will be made.

    Args: key: the setting that names it, for messages. work: see `is_held`.
    Raises: ParameterError: full, read-only, without locks, or it cannot be used at all.
    """
    there = folder
    try:
        there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        found = os.statvfs(there)
        tried = _wrote_nameless(there)
        in_use = is_held(folder) or is_held(folder, work=work)
    except OSError as error:
        raise ParameterError(f"{key}: {there}: {_meaning(error)}") from error
    return DiskTrial(free_bytes=found.f_bavail * found.f_frsize, tried=tried, in_use=in_use)


def _wrote_nameless(folder: Path) -> bool:
    """Write and lock a file without a name; False where the file system has none."""
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is None:
        return False
    try:
        file = os.open(folder, nameless | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise
    try:
        os.pwrite(file, bytes(_TRIAL_BYTES), 0)
        os.fsync(file)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(file)
    return True


def _meaning(error: OSError) -> str:
    said = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return f"no room is left ({said}); free some, or name another place"
    if error.errno == errno.EROFS:
        return f"it is read-only ({said}); mount it for writing, or name another place"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"it cannot be written to by this user ({said}); name another place, or let it"
    if error.errno == errno.ENOLCK:
        return (
            f"files there cannot be locked ({said}); name a folder on a file system that has locks "
            "(a local disk, or a network share mounted with them)"
        )
    return f"it cannot be used ({said}); look at the disk, or name another place"
