"""What a study CA issues: its own certificate, those of parties, and lists of revoked ones.

Parties keep their private keys: only public keys come here. Keys, times and serial numbers are
arguments: nothing here reads a clock, a disk or a random source.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lada_protocol.identity.certificates import PartyName, role_host
from lada_secure.errors import ParameterError

MAX_HOSTS: Final = 32
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


def build_ca_certificate(
    *,
    key: ec.EllipticCurvePrivateKey,
    name: str,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """Self-signed certificate of a study CA; it may sign party certificates and nothing below.

    Args: key: on P-256. name: common name, 1 to 64 characters. serial: positive, fresh, at most
      159 bits. not_before, not_after: aware UTC times.
    Raises: ParameterError: another curve, an empty or long name, or a period that is empty.
    """
    _check_p256(key.public_key(), "the study CA's key")
    if not 1 <= len(name) <= 64:
        raise ParameterError(f"name of the study CA: expected 1 to 64 characters, got {len(name)}")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(
            key.public_key(), subject, subject, key.public_key(), serial, not_before, not_after
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def issue_tls_certificate(
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    party: PartyName,
    public_key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """TLS certificate of a party, for both ends of a connection.

    Takes the public key only, so a party may keep its private key to itself.

    Args: public_key: on P-256. hosts: DNS names or IP addresses under which the party is reached
      (empty for one that only dials out). Others as for `build_ca_certificate`.
    Raises: ParameterError: another curve, a host that is neither, too many hosts, an empty
      period or one that ends after the CA's own.
    """
    _check_p256(public_key, f"TLS key of {party.uri}")
    _check_issuer(ca, ca_key, not_before, not_after)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(party.uri),
        x509.DNSName(role_host(party.role)),
        *_host_names(hosts),
    ]
    builder = (
        _party_builder(ca, ca_key, party, public_key, serial, not_before, not_after)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_key_usage(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
    )
    return builder.sign(ca_key, hashes.SHA256())


def issue_signing_certificate(
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    party: PartyName,
    public_key: Ed25519PublicKey,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """Certificate of the Ed25519 key with which a party signs its messages.

    Arguments and errors as for `issue_tls_certificate`.
    """
    _check_issuer(ca, ca_key, not_before, not_after)
    builder = (
        _party_builder(ca, ca_key, party, public_key, serial, not_before, not_after)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(party.uri)]),
            critical=False,
        )
        .add_extension(_key_usage(), critical=True)
    )
    return builder.sign(ca_key, hashes.SHA256())


def _check_p256(key: ec.EllipticCurvePublicKey, what: str) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ParameterError(f"{what}: expected an ECDSA key on P-256")


def _check_period(not_before: datetime, not_after: datetime) -> None:
    if not_before.tzinfo is None or not_after.tzinfo is None:
        raise ParameterError("period of a certificate: expected times with a time zone")
    if not_before >= not_after:
        raise ParameterError(
            f"period of a certificate: it would end at {not_after}, not after {not_before}"
        )


def _check_issuer(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> None:
    _check_period(not_before, not_after)
    if ca.public_key() != ca_key.public_key():
        raise ParameterError("the CA's certificate and key belong to different CAs")
    if not_after > ca.not_valid_after_utc:
        raise ParameterError(
            f"certificate would end at {not_after:%Y-%m-%d}, after the study CA's own end at "
            f"{ca.not_valid_after_utc:%Y-%m-%d}; ask for fewer days"
        )


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if len(hosts) > MAX_HOSTS:
        raise ParameterError(f"hosts of a certificate: at most {MAX_HOSTS}, got {len(hosts)}")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not _HOST.fullmatch(host):
                raise ParameterError(
                    f"host of a certificate: expected a DNS name or an IP address, got {host!r}"
                ) from None
            names.append(x509.DNSName(host.lower()))
    return names


def _party_builder(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    party: PartyName,
    public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, party.id)])
    builder = _builder(
        public_key, subject, ca.subject, ca_key.public_key(), serial, not_before, not_after
    )
    return builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


def _builder(
    public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    _check_period(not_before, not_after)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _key_usage(*, certificates: bool = False) -> x509.KeyUsage:
    """A CA signs certificates and nothing else; a party signs anything but certificates."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
