"""A party's side of getting certificates: make keys and requests, take the answer in.

The private keys are made here and stay here; the CA sees two signing requests. The files that both
sides read and write are read and written here, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    PartyName,
    certificate_fingerprint,
    parse_certificate,
)
from lada_protocol.identity.credentials import (
    Credentials,
    IdentityFile,
    Passphrase,
    parse_credentials,
    private_key_pem,
)
from lada_protocol.identity.issuance import SIGNING_REQUEST, TLS_REQUEST, build_requests
from lada_secure.errors import ParameterError, PeerError, TransportError
from lada_secure.storage.identity_folder import IdentityFolder
from lada_secure.storage.whole_files import write_atomically

_ANSWER: Final = (IdentityFile.CA, IdentityFile.TLS, IdentityFile.SIGNING)


def new_keys(
    passphrase: Passphrase | None,
) -> tuple[ec.EllipticCurvePrivateKey, Ed25519PrivateKey, dict[str, bytes]]:
    """A fresh TLS and a fresh signing key, and the files that hold them."""
    tls_key, signing_key = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    files: dict[str, bytes] = {
        IdentityFile.TLS_KEY: private_key_pem(tls_key, passphrase),
        IdentityFile.SIGNING_KEY: private_key_pem(signing_key, passphrase),
    }
    return tls_key, signing_key, files


def enroll(identity: Path, *, party: PartyName, passphrase: Passphrase | None) -> tuple[Path, ...]:
    """Make a party's keys and its requests in a new identity folder.

    Returns: the two files to send to the CA.
    Raises: ParameterError: the folder has keys already. TransportError: the disk refuses.
    """
    tls_key, signing_key, secret = new_keys(passphrase)
    requests = build_requests(party, tls_key=tls_key, signing_key=signing_key)
    write_new_files(identity, public=requests, secret=secret)
    return tuple(identity / name for name in requests)


def install(
    answer: Path,
    *,
    identity: Path,
    ca_sha256: str | None,
    passphrase: Passphrase | None,
    now: datetime,
) -> Credentials:
    """Take certificates from the CA's answer into an identity folder, the first time or renewed.

    Every check comes before the first byte is written, and each file changes in one step, so a
    running process sees the old certificate or the new one.

    Args: answer: folder with ca.crt, tls.crt and sign.crt. ca_sha256: fingerprint of the CA,
      compared out of band; needed where the folder has no ca.crt yet.
    Raises: ParameterError: another CA, certificates that do not fit the keys or are out of date.
    """
    ca = read_certificate(answer / IdentityFile.CA)
    found = certificate_fingerprint(ca)
    if (identity / IdentityFile.CA).exists():
        expected = certificate_fingerprint(read_certificate(identity / IdentityFile.CA))
    elif ca_sha256 is None:
        raise ParameterError(
            f"{answer}: its CA has the fingerprint {found}; compare it with the CA over another "
            "channel and give it as --ca-sha256"
        )
    else:
        expected = ca_sha256.lower()
    if found != expected or (ca_sha256 is not None and found != ca_sha256.lower()):
        raise ParameterError(f"{answer}: its CA has the fingerprint {found}, expected {expected}")

    def read(name: str) -> bytes:
        return read_file((answer if name in _ANSWER else identity) / name, MAX_CERTIFICATE_BYTES)

    credentials = parse_credentials(read, at=now, passphrase=passphrase)
    for name in _ANSWER:
        write_atomically(identity / name, read(name))
    for request in (TLS_REQUEST, SIGNING_REQUEST):
        (identity / request).unlink(missing_ok=True)
    return credentials


def read_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate. Raises: ParameterError: missing, too long, or something else."""
    try:
        return parse_certificate(read_file(path, MAX_CERTIFICATE_BYTES))
    except PeerError as error:
        raise ParameterError(f"{path}: {error}") from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file, at most one byte more than allowed. Raises: ParameterError: it cannot be read."""
    return IdentityFolder(path.parent).read(path.name, max_bytes)


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
