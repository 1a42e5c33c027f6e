"""The folder of a study CA on disk: its key, every certificate that it issued, what it revoked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATION_BYTES,
    PartyName,
    RevocationList,
    certificate_pem,
    parse_certificate,
    parse_revocations,
    party_name_of,
)
from lada_protocol.identity.credentials import IdentityFile, Passphrase, load_private_key
from lada_secure.errors import ParameterError, PeerError, TransportError

CA_KEY: Final = "ca.key"
ISSUED: Final = "issued"


class CaFolder:
    """A folder that `lada ca init` made, opened.

    Raises: ParameterError: there is no CA in it, or its key needs another passphrase.
    """

    def __init__(self, path: Path, passphrase: Passphrase | None) -> None:
        self.path = path
        self.certificate = read_certificate(path / IdentityFile.CA)
        file = path / CA_KEY
        key = load_private_key(str(file), read_file(file, MAX_CERTIFICATE_BYTES), passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ParameterError(f"{file}: expected an ECDSA key, as `lada ca init` writes it")
        self.key = key

    def record(self, *certificates: x509.Certificate) -> None:
        """Remember what was issued, before it is handed out: only that can be revoked by name."""
        public = {f"{made.serial_number:x}.crt": certificate_pem(made) for made in certificates}
        write_new_files(self.path / ISSUED, public=public, secret={})

    def issued_to(self, party_id: str) -> list[tuple[PartyName, x509.Certificate]]:
        """Certificates that were issued to a party, newest first."""
        issued = map(read_certificate, (self.path / ISSUED).glob("*.crt"))
        named = ((party_name_of(certificate), certificate) for certificate in issued)
        found = [(name, certificate) for name, certificate in named if name.id == party_id]
        return sorted(found, key=lambda pair: pair[1].not_valid_before_utc, reverse=True)

    def revocations(self) -> RevocationList | None:
        """The list as it stands; None where nothing was ever revoked."""
        path = self.path / IdentityFile.REVOCATIONS
        if not path.exists():
            return None
        try:
            return parse_revocations(read_file(path, MAX_REVOCATION_BYTES), ca=self.certificate)
        except PeerError as error:
            raise ParameterError(
                f"{path}: not a revocation list; restore it from a backup, or from the "
                "coordinator's identity folder"
            ) from error


def read_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate. Raises: ParameterError: missing, too long, or something else."""
    try:
        return parse_certificate(read_file(path, MAX_CERTIFICATE_BYTES))
    except PeerError as error:
        raise ParameterError(f"{path}: {error}") from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file, at most one byte more than allowed. Raises: ParameterError: it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ParameterError(
            f"{path}: cannot be read ({error.strerror}); expected a file that `lada ca` or "
            "`lada site enroll` wrote"
        ) from error


def check_absent(folder: Path, *names: str) -> None:
    """Raises: ParameterError: one of these files exists already."""
    taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise ParameterError(
            f"{folder}: {', '.join(sorted(taken))} exist already and are not overwritten; name "
            "another folder or move the old files away"
        )


def write_new_files(
    folder: Path, *, public: Mapping[str, bytes], secret: Mapping[str, bytes]
) -> None:
    """Write files that do not exist yet: all of them, or none.

    Secret files get mode 0600 from the moment they exist.

    Raises: ParameterError: one exists already. TransportError: the disk refuses.
    """
    check_absent(folder, *public, *secret)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for files, mode in ((public, 0o644), (secret, 0o600)):
            for name, content in files.items():
                path = folder / name
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                written.append(path)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise TransportError(
            f"{folder}: cannot write {error.filename}: {error.strerror}"
        ) from error
