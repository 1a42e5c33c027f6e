"""Certificates and revocation lists that change while a process runs.

Disk and clock are the caller's part, so both ends of a connection keep one rule: what cannot be
used never replaces what can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from lada_protocol.identity.certificates import (
    MAX_REVOCATION_BYTES,
    RevocationList,
    parse_revocations,
)
from lada_protocol.identity.credentials import Credentials, IdentityFile, Passphrase
from lada_secure.errors import LadaError, ParameterError, PeerError
from lada_secure.storage.identity_folder import IdentityFolder

T = TypeVar("T")


class Renewed(Generic[T]):
    """The newest usable value of some files. Thread-safe.

    Args: stamp: changes when the files do; asked on every look, so it must be cheap. load: reads
      the files, given the value so far (None at first). refused: told once of every change that
      could not be used.
    Raises: LadaError: the first value cannot be read.
    """

    def __init__(
        self,
        stamp: Callable[[], Hashable],
        load: Callable[[T | None], T],
        refused: Callable[[LadaError], None],
    ) -> None:
        self._stamp = stamp
        self._load = load
        self._refused = refused
        self._lock = threading.Lock()
        self._seen = stamp()
        self._value = load(None)

    def current(self) -> T:
        """The value, read again if the files changed since the last look."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._value = self._load(self._value)
                except LadaError as error:
                    self._refused(error)
            return self._value


class LiveIdentity:
    """A party's certificates and keys, and what the CA has revoked, as they stand now.

    Args: files: the identity folder. load: reads and checks the certificates and keys in it.
      refused: told of a changed file that cannot be used; the old content stays in force.
    Raises: ParameterError: the folder cannot be used.
    """

    def __init__(
        self,
        files: IdentityFolder,
        *,
        load: Callable[[], Credentials],
        refused: Callable[[LadaError], None],
        passphrase: Passphrase | None,
    ) -> None:
        self.passphrase = passphrase
        revoked = IdentityFile.REVOCATIONS
        others = [file for file in IdentityFile if file is not revoked]

        def load_revocations(known: RevocationList | None) -> RevocationList | None:
            stays = "" if known is None else f"list {known.number}"
            if files.stamp(revoked) is None:
                if known is None:
                    return None
                raise ParameterError(f"{revoked} is gone; {stays} stays in force until a newer one")
            try:
                found = parse_revocations(files.read(revoked, MAX_REVOCATION_BYTES), ca=ca)
            except PeerError as error:
                raise ParameterError(f"{revoked}: {error}") from error
            if known is not None and found.number < known.number:
                raise ParameterError(
                    f"{revoked}: list {found.number} is older than {stays}, which stays in force"
                )
            return found

        # The newest usable certificates and keys.
        self.credentials = Renewed(
            lambda: tuple(files.stamp(file) for file in others), lambda _: load(), refused
        ).current
        ca = self.credentials().ca
        # The newest list of revoked certificates; None where there never was one.
        self.revocations = Renewed(lambda: files.stamp(revoked), load_revocations, refused).current
