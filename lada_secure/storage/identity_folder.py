"""The files of a party's identity folder, certificates and keys, as bytes; parsing is elsewhere."""

from __future__ import annotations

import stat
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from lada_secure.errors import ParameterError


@dataclass(frozen=True, slots=True)
class IdentityFolder:
    """The folder that `lada ca issue` or `lada ca install` writes."""

    path: Path

    def read(self, name: str, max_bytes: int) -> bytes:
        """A file, at most one byte more than allowed. Raises: ParameterError: it cannot be read."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read(max_bytes + 1)
        except OSError as error:
            raise ParameterError(
                f"{self.path / name}: cannot be read ({error.strerror}); `lada init join` puts "
                "certificates beside the keys, and `lada ca issue` writes a whole identity folder"
            ) from error

    def open_to_others(self, name: str) -> bool:
        """Whether every user of this machine may read or change a file; False if there is none."""
        try:
            return bool((self.path / name).stat().st_mode & stat.S_IRWXO)
        except OSError:
            return False

    def stamp(self, name: str) -> Hashable:
        """Time, size and inode of a file; None where there is none."""
        try:
            found = (self.path / name).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
