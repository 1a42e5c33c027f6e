"""How much of each site's ledger the auditor knew before a study: a note that outlives a crash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEntries:
    """One small file per site in the auditor's folder of the study.

    The copy itself grows with what a site shows on joining, and would no longer tell.
    """

    folder: Path

    def note(self, site: str, entries: int) -> None:
        """Note it before the copy grows; the first note of a study stays."""
        path = self._path(site)
        if not path.exists():
            write_atomically(path, str(entries).encode("ascii"))

    def before(self, site: str) -> int:
        """What was noted. Raises: ParameterError: damaged. TransportError: cannot be read."""
        path = self._path(site)
        try:
            return int(path.read_bytes())
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ParameterError(f"{path} is damaged; restore the folder from a backup") from error

    def _path(self, site: str) -> Path:
        return self.folder / f"known-entries-{site}"
