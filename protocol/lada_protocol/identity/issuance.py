"""Asking a study CA for certificates, and what it signs: certificates and revocation lists.

A party keeps its private keys: it sends two signing requests (PKCS 10), one for each key. A request
proves that whoever made it holds the private key; who that is, the CA's operator must know by other
means. Keys, times and serial numbers are arguments: nothing here reads a clock, a disk or a random
source.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from lada_protocol.identity.certificates import (
    TLS_PURPOSES,
    PartyName,
    is_p256,
    parse_party_name,
    role_host,
)
from lada_secure.errors import ParameterError, PeerError

# Begin and end of a certificate, aware UTC times.
Period: TypeAlias = tuple[datetime, datetime]
MAX_REQUEST_BYTES: Final = 16_384
TLS_REQUEST: Final = "tls.csr"
SIGNING_REQUEST: Final = "sign.csr"
MAX_HOSTS: Final = 32
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Public keys of a party that asks for certificates; each was used to sign its request."""

    party: PartyName
    tls_key: ec.EllipticCurvePublicKey
    signing_key: Ed25519PublicKey


def build_requests(
    party: PartyName, *, tls_key: ec.EllipticCurvePrivateKey, signing_key: Ed25519PrivateKey
) -> dict[str, bytes]:
    """The two requests of a party in PEM, by file name."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(party.uri)])
    builder = x509.CertificateSigningRequestBuilder(subject_name=_common_name(party.id))
    builder = builder.add_extension(names, critical=False)
    made = {
        TLS_REQUEST: builder.sign(tls_key, hashes.SHA256()),
        SIGNING_REQUEST: builder.sign(signing_key, None),
    }
    return {name: one.public_bytes(serialization.Encoding.PEM) for name, one in made.items()}


def parse_requests(*, tls: bytes, signing: bytes) -> Enrolment:
    """Read both requests of one party.

    Raises: PeerError: too long, not a request, not signed by its own key, of two parties, or with
      keys of another type (reason "bad_request").
    """
    tls_request, tls_name = _parse_request(tls, TLS_REQUEST)
    signing_request, signing_name = _parse_request(signing, SIGNING_REQUEST)
    if tls_name != signing_name:
        both = f"{TLS_REQUEST} is of {tls_name.uri}, {SIGNING_REQUEST} of {signing_name.uri}"
        raise _bad_request(both)
    tls_key, signing_key = tls_request.public_key(), signing_request.public_key()
    if not is_p256(tls_key):
        raise _bad_request(f"{TLS_REQUEST} has no ECDSA key on P-256")
    if not isinstance(signing_key, Ed25519PublicKey):
        raise _bad_request(f"{SIGNING_REQUEST} has no Ed25519 key")
    return Enrolment(party=tls_name, tls_key=tls_key, signing_key=signing_key)


def _parse_request(pem: bytes, file: str) -> tuple[x509.CertificateSigningRequest, PartyName]:
    if len(pem) > MAX_REQUEST_BYTES:
        raise _bad_request(f"{file} has {len(pem)} bytes, at most {MAX_REQUEST_BYTES} allowed")
    try:
        request = x509.load_pem_x509_csr(pem)
        signed = request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_request(f"{file} cannot be read ({type(error).__name__})") from error
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _bad_request(f"{file} names no party") from error
    if not signed:
        raise _bad_request(f"{file} is not signed with the key that it shows")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(list(names)) != 1 or len(uris) != 1:
        raise _bad_request(f"{file} must ask for exactly one name of the form lada:<role>:<id>")
    return request, parse_party_name(uris[0])


def _bad_request(what: str) -> PeerError:
    return PeerError(
        f"request for certificates: {what}; use the two files that `lada site enroll` wrote",
        reason="bad_request",
    )


def build_ca_certificate(
    *, key: ec.EllipticCurvePrivateKey, name: str, serial: int, period: Period
) -> x509.Certificate:
    """Self-signed certificate of a study CA; it may sign party certificates and nothing below.

    Args: key: on P-256. name: common name, 1 to 64 characters. serial: positive, fresh, at most
      159 bits.
    Raises: ParameterError: another curve, an empty or long name, or a period that is empty.
    """
    if not is_p256(key.public_key()):
        raise ParameterError("the study CA's key: expected an ECDSA key on P-256")
    if not 1 <= len(name) <= 64:
        raise ParameterError(f"name of the study CA: expected 1 to 64 characters, got {len(name)}")
    builder = _builder(name, key.public_key(), serial, period, issuer=key.public_key())
    builder = builder.issuer_name(_common_name(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def issue_certificate(
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    party: PartyName,
    public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    hosts: Sequence[str] = (),
    serial: int,
    period: Period,
) -> x509.Certificate:
    """Certificate of a party: of an Ed25519 key to sign messages with, of another key for TLS.

    A TLS certificate is for both ends of a connection. Only public keys come here, so a party may
    keep its private keys to itself.

    Args: public_key: for TLS on P-256. hosts: DNS names or IP addresses under which TLS reaches
      the party (empty for one that only dials out). serial: as for `build_ca_certificate`.
    Raises: ParameterError: another curve, a host that is neither, too many hosts, an empty
      period or one that ends after the CA's own.
    """
    _check_key_of_ca(ca, ca_key)
    builder = _builder(party.id, public_key, serial, period, issuer=ca_key.public_key())
    if period[1] > ca.not_valid_after_utc:
        raise ParameterError(
            f"certificate would end at {period[1]:%Y-%m-%d}, after the study CA's own end at "
            f"{ca.not_valid_after_utc:%Y-%m-%d}; ask for fewer days"
        )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(party.uri)]
    if not isinstance(public_key, Ed25519PublicKey):
        if not is_p256(public_key):
            raise ParameterError(f"TLS key of {party.uri}: expected an ECDSA key on P-256")
        names += [x509.DNSName(role_host(party.role)), *_host_names(hosts)]
        builder = builder.add_extension(x509.ExtendedKeyUsage(TLS_PURPOSES), critical=False)
    return (
        builder.issuer_name(ca.subject)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .sign(ca_key, hashes.SHA256())
    )


def build_revocation_list(
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    number: int,
    revoked: Mapping[int, datetime],
    issued_at: datetime,
    next_at: datetime,
) -> bytes:
    """A signed revocation list, PEM.

    Args: number: larger than that of the list before. revoked: when, by serial number.
      issued_at, next_at: aware UTC times; when the next list is due at the latest.
    Raises: ParameterError: the CA's certificate and key do not belong together.
    """
    _check_key_of_ca(ca, ca_key)
    of_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder(issuer_name=ca.subject)
        .last_update(issued_at)
        .next_update(next_at)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(of_key, critical=False)
    )
    for serial, at in sorted(revoked.items()):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _check_key_of_ca(ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey) -> None:
    """Raises: ParameterError: the CA's certificate and key do not belong together."""
    if ca.public_key() != ca_key.public_key():
        raise ParameterError("the CA's certificate and key belong to different CAs")


def _common_name(name: str) -> x509.Name:
    """The one attribute that names the holder of a certificate, or its issuer."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


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


def _builder(
    subject: str,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    serial: int,
    period: Period,
    *,
    issuer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    begin, end = period
    if begin.tzinfo is None or end.tzinfo is None:
        raise ParameterError("period of a certificate: expected times with a time zone")
    if begin >= end:
        raise ParameterError(f"period of a certificate: it would end at {end}, not after {begin}")
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return (
        x509.CertificateBuilder(subject_name=_common_name(subject), public_key=key)
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issued_by, critical=False)
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
