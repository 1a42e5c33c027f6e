"""The folder of a study CA on disk: its key, every certificate that it issued, what it revoked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    PartyName,
    certificate_pem,
    parse_certificate,
    party_name_of,
)
from lada_protocol.identity.credentials import (
    CA_CERTIFICATE,
    REVOCATIONS,
    Passphrase,
    load_private_key,
)
from lada_protocol.identity.revocation import MAX_REVOCATION_BYTES
from lada_secure.errors import ParameterError, PeerError, TransportError

CA_KEY: Final = "ca.key"
ISSUED: Final = "issued"


@dataclass(frozen=True, slots=True)
class CaFolder:
    """A folder that `lada ca init` made."""

    path: Path

    def certificate(self) -> x509.Certificate:
        """The CA's own certificate. Raises: ParameterError: there is none."""
        return read_certificate(self.path / CA_CERTIFICATE)

    def key(self, passphrase: Passphrase | None) -> ec.EllipticCurvePrivateKey:
        """The CA's private key.

        Raises: ParameterError: there is none, or it is encrypted under another passphrase.
        """
        path = self.path / CA_KEY
        key = load_private_key(str(path), read_file(path, MAX_CERTIFICATE_BYTES), passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ParameterError(f"{path}: expected an ECDSA key, as `lada ca init` writes it")
        return key

    def record(self, *certificates: x509.Certificate) -> None:
        """Remember what was issued, before it is handed out: only that can be revoked by name."""
        write_new_files(
            self.path / ISSUED,
            public={f"{one.serial_number:x}.crt": certificate_pem(one) for one in certificates},
            secret={},
        )

    def issued_to(self, party_id: str) -> Iterator[tuple[PartyName, x509.Certificate]]:
        """Certificates that were issued to a party, newest first."""
        found = []
        for path in (self.path / ISSUED).glob("*.crt"):
            certificate = read_certificate(path)
            name = party_name_of(certificate)
            if name.id == party_id:
                found.append((name, certificate))
        return iter(sorted(found, key=lambda one: one[1].not_valid_before_utc, reverse=True))

    def revocations(self) -> x509.CertificateRevocationList | None:
        """The list as it stands; None where nothing was ever revoked."""
        path = self.path / REVOCATIONS
        if not path.exists():
            return None
        try:
            return x509.load_pem_x509_crl(read_file(path, MAX_REVOCATION_BYTES))
        except ValueError as error:
            raise ParameterError(
                f"{path}: not a revocation list; restore it from a backup, or from the "
                "coordinator's identity folder"
            ) from error


def read_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate.

    Raises: ParameterError: missing, too long, or something else.
    """
    try:
        return parse_certificate(read_file(path, MAX_CERTIFICATE_BYTES))
    except PeerError as error:
        raise ParameterError(f"{path}: {error}") from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file, at most one byte more than allowed.

    Raises: ParameterError: it cannot be read.
    """
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
