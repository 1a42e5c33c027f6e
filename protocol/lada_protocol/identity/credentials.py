"""The files of a party's identity folder, checked against each other.

Reading the files is the caller's part (`read`), so the same checks serve sites, auditor and
coordinator, whatever holds their keys.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from lada_protocol.identity.certificates import (
    PartyName,
    certificate_pem,
    parse_certificate,
    verify_party,
)
from lada_protocol.identity.roster import Party, Roster, party_of_certificates
from lada_secure.errors import ParameterError, PeerError

# Where an operator may put the passphrase instead of into a file.
UNLOCK_VARIABLE: Final = "LADA_KEY_PASSPHRASE"
# Or the file that it is in, where a service manager hands one over.
UNLOCK_FILE_VARIABLE: Final = "LADA_KEY_PASSPHRASE_FILE"
# PKCS 8 as OpenSSL writes it stretches a passphrase only a little, so it must be long itself.
MIN_PASSPHRASE_BYTES: Final = 16
MAX_PASSPHRASE_BYTES: Final = 1024


class IdentityFile(StrEnum):
    """The files of an identity folder; a list of what was revoked is there once the CA has one."""

    CA = "ca.crt"
    TLS = "tls.crt"
    TLS_KEY = "tls.key"
    SIGNING = "sign.crt"
    SIGNING_KEY = "sign.key"
    REVOCATIONS = "ca.crl"


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What private keys at rest are encrypted with. Not printable and not picklable.

    where: the file or variable that it was read from, for messages.
    """

    value: bytes = field(repr=False)
    where: str = "the passphrase given"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase is not pickled")


def parse_passphrase(raw: bytes, *, where: str) -> Passphrase:
    """The passphrase in a file or variable; white space around it does not count.

    Raises: ParameterError: shorter than 16 or longer than 1,024 bytes.
    """
    if raw.startswith(codecs.BOM_UTF8):
        raise ParameterError(
            f"passphrase in {where}: it starts with a byte-order mark, which would be taken for "
            "a part of it; save the file as UTF-8 without one"
        )
    value = raw.strip()
    if not MIN_PASSPHRASE_BYTES <= len(value) <= MAX_PASSPHRASE_BYTES:
        raise ParameterError(
            f"passphrase in {where}: expected {MIN_PASSPHRASE_BYTES} to {MAX_PASSPHRASE_BYTES} "
            f"bytes, got {len(value)}; `openssl rand -base64 24` makes a good one"
        )
    return Passphrase(value, where)


def private_key_pem(
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey, passphrase: Passphrase | None
) -> bytes:
    """PKCS 8 in PEM, encrypted (PBES2, AES-256) where there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.value)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def load_private_key(file: str, pem: bytes, passphrase: Passphrase | None) -> PrivateKeyTypes:
    """Read a private key in PKCS 8; a passphrase is used where the key is encrypted.

    Raises: ParameterError: not a key, encrypted and no passphrase given, or another passphrase.
    """
    encrypted = b"ENCRYPTED PRIVATE KEY" in pem[:64]
    if encrypted and passphrase is None:
        raise ParameterError(
            f"{file} is encrypted and no passphrase was given; set {UNLOCK_VARIABLE} or "
            f"{UNLOCK_FILE_VARIABLE}, or name a file that holds it as passphrase_file"
        )
    try:
        return serialization.load_pem_private_key(
            pem, password=passphrase.value if passphrase is not None and encrypted else None
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The reason of the library is dropped: it may quote the key's text.
        what = "something else"
        if passphrase is not None and encrypted:
            what = f"a key under another passphrase than {passphrase.where}"
        raise ParameterError(
            f"{file}: expected a PEM private key, found {what}; put the file or its passphrase "
            "back from a backup, or enrol anew"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Certificates and private keys of one party; build with `parse_credentials`.

    Not printable and not picklable as far as the keys go: they stay in this process.
    `tls_key_pem` is the key without encryption, whatever lies on disk.
    """

    name: PartyName
    ca: x509.Certificate
    tls_certificate: x509.Certificate
    signing_certificate: x509.Certificate
    tls_key_pem: bytes = field(repr=False)
    signing_key: Ed25519PrivateKey = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials hold private keys and are not pickled")

    @property
    def ca_pem(self) -> bytes:
        """The study CA's certificate."""
        return certificate_pem(self.ca)

    @property
    def tls_certificate_pem(self) -> bytes:
        """This party's TLS certificate."""
        return certificate_pem(self.tls_certificate)

    def party(self) -> Party:
        """The roster entry that belongs to these credentials."""
        return party_of_certificates(
            self.name, tls=self.tls_certificate, signing=self.signing_certificate
        )

    def check_roster(self, roster: Roster) -> None:
        """Check that the roster lists exactly these credentials.

        Raises: ParameterError: the party is missing, or listed with another key or role.
        """
        own = self.party()
        listed = next((party for party in roster.parties if party.id == own.id), None)
        if listed is None:
            raise ParameterError(
                f"{own.id} is not in the roster {roster.hash[:16]}..., which lists "
                f"{', '.join(party.id for party in roster.parties)}; use the study's roster file"
            )
        if listed != own:
            tls, signing = own.tls_fingerprint[:16], own.signing_fingerprint[:16]
            raise ParameterError(
                f"roster {roster.hash[:16]}... lists {listed.uri} with TLS key "
                f"{listed.tls_fingerprint[:16]}... and signing key "
                f"{listed.signing_fingerprint[:16]}..., this folder holds {own.uri} with {tls}... "
                f"and {signing}...; use the identity folder that the roster was made from"
            )


def parse_credentials(
    read: Callable[[str], bytes],
    *,
    at: datetime,
    expected_id: str | None = None,
    passphrase: Passphrase | None = None,
) -> Credentials:
    """Read and check an identity folder: one CA, one name, keys that fit their certificates.

    Args: read: returns the content of an `IdentityFile`. at: now, with time zone.
      expected_id: the id that the settings name, if they do. passphrase: of encrypted keys.
    Raises: ParameterError: any check fails; says which file.
    """
    file = IdentityFile.CA
    try:
        ca = parse_certificate(read(file))
        file = IdentityFile.TLS
        tls = parse_certificate(read(file))
        name = verify_party(tls, ca=ca, at=at, usage="tls")
        file = IdentityFile.SIGNING
        signing = parse_certificate(read(file))
        verify_party(signing, ca=ca, at=at, usage="signing", expected=name)
    except PeerError as error:
        raise ParameterError(f"{file}: {error}") from error
    if expected_id is not None and name.id != expected_id:
        raise ParameterError(
            f"settings say party {expected_id!r}, the certificates name {name.uri}; use the "
            f"identity folder of {expected_id}"
        )
    keys = []
    for file, certificate in ((IdentityFile.TLS_KEY, tls), (IdentityFile.SIGNING_KEY, signing)):
        keys.append(load_private_key(file, read(file), passphrase))
        if keys[-1].public_key() != certificate.public_key():
            raise ParameterError(
                f"{file} does not belong to the certificate beside it; put back the key that was "
                "made with it, or enrol anew"
            )
    tls_key, signing_key = keys
    if not isinstance(tls_key, ec.EllipticCurvePrivateKey):
        raise ParameterError(f"{IdentityFile.TLS_KEY}: expected an ECDSA key")
    return Credentials(
        name=name,
        ca=ca,
        tls_certificate=tls,
        signing_certificate=signing,
        tls_key_pem=private_key_pem(tls_key, None),
        signing_key=check_signing_key(signing_key),
    )


def check_signing_key(key: PrivateKeyTypes) -> Ed25519PrivateKey:
    """The key in its type. Raises: ParameterError: another type than Ed25519."""
    if not isinstance(key, Ed25519PrivateKey):
        raise ParameterError(f"{IdentityFile.SIGNING_KEY}: expected an Ed25519 key")
    return key
