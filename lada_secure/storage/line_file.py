"""A file of lines that a full disk can shorten but not spoil."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lada_secure.errors import DiskError

LOG = logging.getLogger(__name__)


def open_line_file(path: Path) -> Callable[[bytes], None]:
    """Open a file to append whole lines to, each with its line feed; folders are made.

    A line that does not fit on the disk is left out, and what fitted of it spoils no later one:
    telling is not worth a study, and the disk's state shows in what matters.

    Raises: TransportError: the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error
    torn = False

    def write(line: bytes) -> None:
        nonlocal torn
        if torn:
            line = b"\n" + line
        try:
            torn = file.write(line) < len(line)
        except OSError as error:
            LOG.warning("cannot write %s: %s", path, error.strerror)

    return write
