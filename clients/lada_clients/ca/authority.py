"""The study CA's folder: its key, what it issued, and the roster made from that.

Only whoever runs a study's CA uses this; parties get the folder that `issue_party` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.credentials import (
    CA_CERTIFICATE,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
)
from lada_protocol.identity import (
    MAX_CERTIFICATE_BYTES,
    PartyName,
    build_ca_certificate,
    certificate_pem,
    issue_signing_certificate,
    issue_tls_certificate,
    parse_certificate,
    verify_certificate,
    verify_party,
)
from lada_protocol.roster import Party, Roster, build_roster, party_of_certificates
from lada_secure.errors import ParameterError, PeerError, TransportError

CA_KEY: Final = "ca.key"
# Clocks of two machines differ; a certificate must not be refused in its first minutes.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_DAYS: Final = 36_500


def init_ca(folder: Path, *, name: str, days: int, now: datetime) -> x509.Certificate:
    """Make a new study CA in `folder`: ca.crt and ca.key (readable by its owner only).

    Raises: ParameterError: the folder holds a CA already, or `days` is not 1 to 36,500.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_ca_certificate(
        key=key,
        name=name,
        serial=x509.random_serial_number(),
        not_before=now - CLOCK_SKEW,
        not_after=now + _period(days),
    )
    write_new_files(
        folder, public={CA_CERTIFICATE: certificate_pem(certificate)}, secret={CA_KEY: _pem(key)}
    )
    return certificate


def issue_party(
    folder: Path, *, party: PartyName, hosts: Sequence[str], days: int, out: Path, now: datetime
) -> Party:
    """Issue TLS and signing certificates of a party with fresh keys into `out`.

    Writes ca.crt, tls.crt, tls.key, sign.crt, sign.key; keys are readable by their owner only.

    Raises: ParameterError: no CA in `folder`, `out` holds one of the files already, a wrong host,
      or a period that passes the CA's own.
    """
    ca, ca_key = _load_ca(folder)
    tls_key = ec.generate_private_key(ec.SECP256R1())
    signing_key = Ed25519PrivateKey.generate()
    not_before, not_after = now - CLOCK_SKEW, now + _period(days)
    tls = issue_tls_certificate(
        ca=ca,
        ca_key=ca_key,
        party=party,
        public_key=tls_key.public_key(),
        hosts=hosts,
        serial=x509.random_serial_number(),
        not_before=not_before,
        not_after=not_after,
    )
    signing = issue_signing_certificate(
        ca=ca,
        ca_key=ca_key,
        party=party,
        public_key=signing_key.public_key(),
        serial=x509.random_serial_number(),
        not_before=not_before,
        not_after=not_after,
    )
    write_new_files(
        out,
        public={
            CA_CERTIFICATE: certificate_pem(ca),
            TLS_CERTIFICATE: certificate_pem(tls),
            SIGNING_CERTIFICATE: certificate_pem(signing),
        },
        secret={TLS_KEY: _pem(tls_key), SIGNING_KEY: _pem(signing_key)},
    )
    return party_of_certificates(party, tls=tls, signing=signing)


def make_roster(folder: Path, *, parties: Sequence[Path], out: Path, now: datetime) -> Roster:
    """Write the roster of the parties whose folders hold tls.crt and sign.crt of this CA.

    Private keys are not needed, so parties may hand over their certificates alone.

    Raises: ParameterError: a certificate is missing, of another CA, expired or of another party,
      the parties do not make a roster, or `out` exists already.
    """
    ca = _read_certificate(folder / CA_CERTIFICATE)
    entries = []
    for one in parties:
        tls = _read_certificate(one / TLS_CERTIFICATE)
        signing = _read_certificate(one / SIGNING_CERTIFICATE)
        try:
            name = verify_certificate(tls, ca=ca, at=now, usage="tls")
            verify_party(signing, ca=ca, at=now, usage="signing", expected=name)
        except PeerError as error:
            raise ParameterError(f"{one}: {error}") from error
        entries.append(party_of_certificates(name, tls=tls, signing=signing))
    roster = build_roster(ca=ca, parties=entries)
    write_new_files(out.parent, public={out.name: roster.to_bytes()}, secret={})
    return roster


def write_new_files(
    folder: Path, *, public: Mapping[str, bytes], secret: Mapping[str, bytes]
) -> None:
    """Write files that do not exist yet: all of them, or none.

    Secret files get mode 0600 from the moment they exist.

    Raises: ParameterError: one exists already. TransportError: the disk refuses.
    """
    taken = [name for name in (*public, *secret) if (folder / name).exists()]
    if taken:
        raise ParameterError(
            f"{folder}: {', '.join(sorted(taken))} exist already and are not overwritten; name "
            "another folder or move the old files away"
        )
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


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _read_certificate(folder / CA_CERTIFICATE)
    path = folder / CA_KEY
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ParameterError(f"{path}: expected an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ParameterError(f"{path}: expected an ECDSA key, as `lada ca init` writes it")
    return certificate, key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return parse_certificate(_read(path))
    except PeerError as error:
        raise ParameterError(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CERTIFICATE_BYTES + 1)
    except OSError as error:
        raise ParameterError(
            f"{path}: cannot be read ({error.strerror}); expected a file that `lada ca` wrote"
        ) from error


def _period(days: int) -> timedelta:
    if not 1 <= days <= MAX_DAYS:
        raise ParameterError(f"days of validity: expected 1 to {MAX_DAYS}, got {days}")
    return timedelta(days=days)


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
