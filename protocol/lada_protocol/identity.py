"""Who a party is: X.509 certificates of the study CA, their names and their verification.

A party has two certificates from the study CA: one for TLS (ECDSA P-256) and one whose Ed25519
key signs its messages. Role and id stand in both as the URI name `lada:<role>:<id>`, so that a
certificate cannot be used for another role. Keys, times and serial numbers are arguments:
nothing here reads a clock, a disk or a random source.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lada_protocol.kinds import Role
from lada_secure.canonical import sha256_hex
from lada_secure.errors import ParameterError, PeerError

Usage: TypeAlias = Literal["tls", "signing"]

MAX_CERTIFICATE_BYTES: Final = 16_384
MAX_HOSTS: Final = 32
_PARTY_ID: Final = re.compile(r"[a-z0-9-]{1,32}")
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyName:
    """Role and id of a party as its certificates state them.

    Raises: ParameterError: an id that is not 1 to 32 of `a-z`, `0-9`, `-`.
    """

    role: Role
    id: str

    def __post_init__(self) -> None:
        if not _PARTY_ID.fullmatch(self.id):
            raise ParameterError(
                f"id of a party: expected 1 to 32 characters of a-z, 0-9 and -, got {self.id!r}"
            )

    @property
    def uri(self) -> str:
        """The name in a certificate: `lada:<role>:<id>`."""
        return f"lada:{self.role}:{self.id}"


def parse_role(text: str) -> Role:
    """The role of that name.

    Raises: ParameterError: there is none.
    """
    try:
        return Role(text)
    except ValueError:
        raise ParameterError(
            f"role of a party: expected one of {', '.join(Role)}, got {text[:40]!r}"
        ) from None


def parse_party_name(uri: str) -> PartyName:
    """Read `lada:<role>:<id>`.

    Raises: PeerError: any other form (reason "bad_certificate").
    """
    scheme, _, rest = uri.partition(":")
    role, _, party_id = rest.partition(":")
    if scheme != "lada":
        raise PeerError(
            f"certificate name {uri!r}: expected lada:<role>:<id>", reason="bad_certificate"
        )
    try:
        return PartyName(role=parse_role(role), id=party_id)
    except ParameterError as error:
        raise PeerError(f"certificate name {uri!r}: {error}", reason="bad_certificate") from error


def role_host(role: Role) -> str:
    """DNS name that every TLS certificate of this role carries, whatever host it runs on.

    Clients expect `coordinator.lada.internal` of the server, so a site's certificate cannot
    stand in for the coordinator's even before its fingerprint is compared.
    """
    return f"{role}.lada.internal"


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, 64 hexadecimal digits."""
    return sha256_hex(certificate.public_bytes(serialization.Encoding.DER))


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """PEM form of one certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def parse_certificate(pem: bytes) -> x509.Certificate:
    """Read exactly one PEM certificate.

    Raises: PeerError: too long, not PEM, not X.509, or more than one (reason "bad_certificate").
    """
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise PeerError(
            f"certificate of {len(pem)} bytes, at most {MAX_CERTIFICATE_BYTES} allowed",
            reason="bad_certificate",
        )
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerError(f"certificate cannot be read: {error}", reason="bad_certificate") from error
    if len(found) != 1:
        raise PeerError(
            f"expected one certificate in the PEM text, got {len(found)}", reason="bad_certificate"
        )
    return found[0]


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


def verify_certificate(
    certificate: x509.Certificate, *, ca: x509.Certificate, at: datetime, usage: Usage
) -> PartyName:
    """Check a party certificate against the study CA and return the name it proves.

    Checked: issued by this very CA key, `at` inside its period and the CA's, not a CA itself,
    the key type of its usage, TLS purpose present for "tls" and absent for "signing", exactly
    one `lada:` name. The caller compares role and id with whom it expects, or uses
    `verify_party`.

    Raises: PeerError: reason "expired" outside the period, else "bad_certificate".
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise PeerError(
            f"certificate {certificate_fingerprint(certificate)[:16]}... was not issued by the "
            f"study CA {certificate_fingerprint(ca)[:16]}...; use certificates of one "
            "`lada ca init` folder",
            reason="bad_certificate",
        ) from error
    name = _name_of(certificate)
    for what, one in ((name.uri, certificate), ("the study CA", ca)):
        if not one.not_valid_before_utc <= at <= one.not_valid_after_utc:
            raise PeerError(
                f"certificate of {what} is valid from {one.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not at {at:%Y-%m-%d %H:%M}; issue "
                "a new one or set this machine's clock",
                reason="expired",
                peer=name.id,
            )
    _check_usage(certificate, name, usage)
    return name


def verify_party(
    certificate: x509.Certificate,
    *,
    ca: x509.Certificate,
    at: datetime,
    usage: Usage,
    expected: PartyName,
) -> None:
    """Like `verify_certificate`, and the certificate must name exactly the `expected` party.

    Raises: PeerError: also where it names another party (reason "bad_certificate").
    """
    name = verify_certificate(certificate, ca=ca, at=at, usage=usage)
    if name != expected:
        raise PeerError(
            f"certificate names {name.uri}, expected {expected.uri}; use the folder that "
            f"`lada ca issue` wrote for {expected.id}",
            reason="bad_certificate",
            peer=name.id,
        )


def signing_key_of(certificate: x509.Certificate) -> Ed25519PublicKey:
    """The Ed25519 key of a signing certificate.

    Raises: PeerError: the certificate holds another type of key (reason "bad_certificate").
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError(
            f"signing certificate holds a {type(key).__name__}, expected an Ed25519 key",
            reason="bad_certificate",
        )
    return key


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


def _name_of(certificate: x509.Certificate) -> PartyName:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise PeerError(
            "certificate has no readable subject alternative name; expected lada:<role>:<id>",
            reason="bad_certificate",
        ) from error
    uris = [
        uri
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith("lada:")
    ]
    if len(uris) != 1:
        raise PeerError(
            f"certificate has {len(uris)} names of the form lada:<role>:<id>, expected one",
            reason="bad_certificate",
        )
    return parse_party_name(uris[0])


def _check_usage(certificate: x509.Certificate, name: PartyName, usage: Usage) -> None:
    try:
        extensions = certificate.extensions
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        key_usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise PeerError(
            f"certificate of {name.uri} does not state what it may be used for",
            reason="bad_certificate",
            peer=name.id,
        ) from error
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        purposes = set()
    key = certificate.public_key()
    if usage == "tls":
        fits = (
            isinstance(key, ec.EllipticCurvePublicKey)
            and isinstance(key.curve, ec.SECP256R1)
            and ExtendedKeyUsageOID.CLIENT_AUTH in purposes
            and ExtendedKeyUsageOID.SERVER_AUTH in purposes
        )
    else:
        fits = isinstance(key, Ed25519PublicKey) and not purposes
    if is_ca or not key_usage.digital_signature or key_usage.key_cert_sign or not fits:
        raise PeerError(
            f"certificate of {name.uri} is not a {usage} certificate; tls.crt and sign.crt are "
            "not interchangeable",
            reason="bad_certificate",
            peer=name.id,
        )
