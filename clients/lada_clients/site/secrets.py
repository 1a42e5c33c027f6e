"""Key files of a site: made once per purpose of use, readable by their owner only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lada_clients.net.outbox import write_atomically
from lada_secure.errors import TransportError


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFolder:
    """Keys that must outlive a crash between two messages, and nothing longer.

    Python cannot wipe memory and a file system may keep deleted blocks; SECURITY.md says so.
    """

    folder: Path

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The secret of that name, made and written (0600) at the first call."""
        path = self.folder / name
        try:
            if path.exists():
                return path.read_bytes()
        except OSError as error:
            raise TransportError(f"cannot read key file {path}: {error.strerror}") from error
        secret = make()
        write_atomically(path, secret, mode=0o600)
        return secret

    def forget(self, prefix: str) -> None:
        """Delete the secrets with this prefix, which no message needs any more."""
        for path in self.folder.glob(f"{prefix}*"):
            path.unlink(missing_ok=True)
