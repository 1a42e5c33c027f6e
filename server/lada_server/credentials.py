"""Reads the coordinator's identity folder from disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from lada_protocol.credentials import Credentials, parse_credentials
from lada_protocol.identity import MAX_CERTIFICATE_BYTES
from lada_secure.errors import ParameterError


def load_credentials(folder: Path, *, expected_id: str | None = None) -> Credentials:
    """Read and check the five files that `lada ca issue` writes.

    Raises: ParameterError: a file is missing, too long, expired or does not fit the others.
    """

    def read(name: str) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                return file.read(MAX_CERTIFICATE_BYTES + 1)
        except OSError as error:
            raise ParameterError(
                f"{folder / name}: cannot be read ({error.strerror}); expected the identity "
                "folder that `lada ca issue` writes"
            ) from error

    return parse_credentials(read, at=datetime.now(UTC), expected_id=expected_id)
