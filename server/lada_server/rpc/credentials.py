"""Reads the identity folder of the coordinator from disk."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from lada_protocol.identity.credentials import (
    MAX_PASSPHRASE_BYTES,
    UNLOCK_VARIABLE,
    Passphrase,
    parse_passphrase,
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


def live_identity(
    folder: Path, *, party_id: str, roster: Roster, passphrase: Passphrase | None = None
) -> LiveIdentity:
    """The identity folder, read again whenever its files change.

    Raises: ParameterError: a file is missing, too long, expired or does not fit the others, or the
        roster lists other keys.
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
