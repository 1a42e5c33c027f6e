"""Restarts of lost ledgers that people at this auditor have granted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_secure.errors import TransportError
from lada_secure.privacy.ledger.restart import RestartGrant, parse_grant
from lada_secure.storage.whole_files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartGrants:
    """One file per grant, named by the ledger that it lets begin."""

    folder: Path

    def of(self, ledger_id: str) -> RestartGrant | None:
        """The grant for a ledger; None where this auditor has given none.

        Raises: LedgerError: the file is damaged. TransportError: it cannot be read.
        """
        path = self._path(ledger_id)
        try:
            return parse_grant(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}") from error

    def keep(self, grant: RestartGrant) -> None:
        """Note a grant before it is given away. Raises: TransportError: it cannot be written."""
        write_atomically(self._path(grant.ledger_id), grant.to_bytes())

    def _path(self, ledger_id: str) -> Path:
        return self.folder / f"{ledger_id}.json"
