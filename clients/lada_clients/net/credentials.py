"""Reads the identity folder of a site or of the auditor from disk."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.certificates import MAX_CERTIFICATE_BYTES
from lada_protocol.identity.credentials import (
    MAX_PASSPHRASE_BYTES,
    UNLOCK_VARIABLE,
    Credentials,
    Passphrase,
    parse_credentials,
    parse_passphrase,
    parse_signing_key,
)
from lada_protocol.identity.renewal import LiveIdentity
from lada_protocol.identity.roster import Roster
from lada_secure.errors import LadaError, ParameterError
from lada_secure.storage.identity_folder import IdentityFolder

LOG = logging.getLogger(__name__)


def read_passphrase(file: Path | None) -> Passphrase | None:
    """The passphrase of private keys: from `file`, else from LADA_KEY_PASSPHRASE, else none.

    Raises: ParameterError: the file cannot be read, or the passphrase is too short.
    """
    if file is None:
        value = os.environ.get(UNLOCK_VARIABLE)
        return None if value is None else parse_passphrase(os.fsencode(value), where="environment")
    try:
        with file.open("rb") as opened:
            return parse_passphrase(opened.read(MAX_PASSPHRASE_BYTES + 64), where=str(file))
    except OSError as error:
        raise ParameterError(f"passphrase file {file}: {error.strerror}") from error


def load_credentials(
    folder: Path, *, expected_id: str | None = None, passphrase: Passphrase | None = None
) -> Credentials:
    """Read and check the files that `lada ca issue` writes.

    Args: passphrase: of encrypted keys; by default what LADA_KEY_PASSPHRASE holds, if anything.
    Raises: ParameterError: a file is missing, too long, expired or does not fit the others.
    """
    files = IdentityFolder(folder)
    return parse_credentials(
        lambda name: files.read(name, MAX_CERTIFICATE_BYTES),
        at=datetime.now(UTC),
        expected_id=expected_id,
        passphrase=passphrase or read_passphrase(None),
    )


def load_signing_key(folder: Path, *, passphrase: Passphrase | None = None) -> Ed25519PrivateKey:
    """The signing key of an identity folder, whose certificates may have expired.

    Raises: ParameterError: missing, encrypted under another passphrase, or no such key.
    """
    files = IdentityFolder(folder)
    return parse_signing_key(
        lambda name: files.read(name, MAX_CERTIFICATE_BYTES),
        passphrase=passphrase or read_passphrase(None),
    )


def live_identity(
    folder: Path, *, party_id: str, roster: Roster, passphrase: Passphrase | None = None
) -> LiveIdentity:
    """The identity folder, read again whenever its files change.

    Raises: ParameterError: as `load_credentials`, or the roster lists other keys.
    """

    def refused(error: LadaError) -> None:
        LOG.error("%s: a changed file is not used: %s", folder, error)

    return LiveIdentity(
        IdentityFolder(folder),
        roster=roster,
        clock=lambda: datetime.now(UTC),
        refused=refused,
        party_id=party_id,
        passphrase=passphrase or read_passphrase(None),
    )
