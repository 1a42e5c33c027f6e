"""Who a party is: X.509 certificates of the study CA, their verification and revocation.

A party has two certificates from the study CA: one for TLS (ECDSA P-256) and one whose Ed25519
key signs its messages. Role and id stand in both as the URI name `lada:<role>:<id>`, so that a
certificate cannot be used for another role. Times are arguments: nothing here reads a clock, a disk
or a random source.

What the CA has taken back stands in a revocation list (CRL, RFC 5280), which whoever runs the
coordinator puts beside the certificates; nothing is fetched from the network. A list names serial
numbers, so it stands for certificates and not for keys: a party whose key was stolen needs a new
key, and with it a new roster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias, TypeGuard

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from lada_protocol.kinds import Role
from lada_secure.canonical import sha256_hex
from lada_secure.errors import ParameterError, PeerError

Usage: TypeAlias = Literal["tls", "signing"]

MAX_CERTIFICATE_BYTES: Final = 16_384
MAX_REVOCATION_BYTES: Final = 4 << 20
TLS_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_PARTY_ID: Final = re.compile(r"[a-z0-9-]{1,32}")


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


def parse_party_name(uri: str) -> PartyName:
    """Read `lada:<role>:<id>`. Raises: PeerError: any other form (reason "bad_certificate")."""
    scheme, _, rest = uri.partition(":")
    role, _, party_id = rest.partition(":")
    if scheme != "lada" or role not in list(Role):
        known = ", ".join(Role)
        raise _bad(f"certificate name {uri!r}: expected lada:<role>:<id>, role one of {known}")
    try:
        return PartyName(role=Role(role), id=party_id)
    except ParameterError as error:
        raise _bad(f"certificate name {uri!r}: {error}") from error


def role_host(role: Role) -> str:
    """DNS name that every TLS certificate of this role carries, whatever host it runs on.

    Clients expect `coordinator.lada.internal` of the server, so a site's certificate cannot
    stand in for the coordinator's even before its fingerprint is compared.
    """
    return f"{role}.lada.internal"


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, 64 hexadecimal digits."""
    return sha256_hex(certificate.public_bytes(serialization.Encoding.DER))


def key_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key's DER form (SubjectPublicKeyInfo), 64 hexadecimal digits.

    Rosters pin keys and not certificates, so that a certificate can be renewed without asking
    everybody, and a new key cannot come in without asking them.
    """
    return public_key_fingerprint(certificate.public_key())


def public_key_fingerprint(key: CertificatePublicKeyTypes) -> str:
    """`key_fingerprint` of a certificate that holds this key."""
    return sha256_hex(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """PEM form of one certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def parse_certificate(pem: bytes) -> x509.Certificate:
    """Read exactly one PEM certificate.

    Raises: PeerError: too long, not PEM, not X.509, or more than one (reason "bad_certificate").
    """
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise _bad(f"certificate of {len(pem)} bytes, at most {MAX_CERTIFICATE_BYTES} allowed")
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad(f"certificate cannot be read: {error}") from error
    if len(found) != 1:
        raise _bad(f"expected one certificate in the PEM text, got {len(found)}")
    return found[0]


def verify_party(
    certificate: x509.Certificate,
    *,
    ca: x509.Certificate,
    at: datetime,
    usage: Usage,
    expected: PartyName | None = None,
) -> PartyName:
    """Check a party certificate against the study CA and return the name it proves.

    Checked: issued by this very CA key, `at` inside its period and the CA's, not a CA itself,
    the key type of its usage, TLS purpose present for "tls" and absent for "signing", exactly
    one `lada:` name, and that it is the `expected` one. Whoever expects none compares role and id
    itself.

    Raises: PeerError: reason "expired" outside the period, else "bad_certificate".
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _bad(
            f"certificate {certificate_fingerprint(certificate)[:16]}... was not issued by the "
            f"study CA {certificate_fingerprint(ca)[:16]}...; use certificates of one "
            "`lada ca init` folder"
        ) from error
    name = party_name_of(certificate)
    for what, one in ((name.uri, certificate), ("the study CA", ca)):
        begin, end = one.not_valid_before_utc, one.not_valid_after_utc
        if not begin <= at <= end:
            raise PeerError(
                f"certificate of {what} is valid from {begin:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M} UTC, not at {at:%Y-%m-%d %H:%M}; issue "
                "a new one or set this machine's clock",
                reason="expired",
                peer=name.id,
            )
    _check_usage(certificate, name, usage)
    if expected is not None and name != expected:
        raise _bad(
            f"certificate names {name.uri}, expected {expected.uri}; use the folder that "
            f"`lada ca issue` wrote for {expected.id}",
            name,
        )
    return name


def party_name_of(certificate: x509.Certificate) -> PartyName:
    """The party that a certificate names. Nothing else about it is checked.

    Raises: PeerError: not exactly one `lada:` name (reason "bad_certificate").
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise _bad(
            "certificate has no readable subject alternative name; expected lada:<role>:<id>"
        ) from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ours = [uri for uri in uris if uri.startswith("lada:")]
    if len(ours) != 1:
        raise _bad(f"certificate has {len(ours)} names of the form lada:<role>:<id>, expected one")
    return parse_party_name(ours[0])


def is_p256(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether it is the public half of an ECDSA key on P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def _check_usage(certificate: x509.Certificate, name: PartyName, usage: Usage) -> None:
    try:
        extensions = certificate.extensions
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        may = extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        unsaid = f"certificate of {name.uri} does not state what it may be used for"
        raise _bad(unsaid, name) from error
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        purposes = set()
    key = certificate.public_key()
    fits = {
        "tls": is_p256(key) and purposes.issuperset(TLS_PURPOSES),
        "signing": isinstance(key, Ed25519PublicKey) and not purposes,
    }[usage]
    if is_ca or not may.digital_signature or may.key_cert_sign or not fits:
        raise _bad(
            f"certificate of {name.uri} is not a {usage} certificate; tls.crt and sign.crt are "
            "not interchangeable",
            name,
        )


def _bad(message: str, name: PartyName | None = None) -> PeerError:
    return PeerError(message, reason="bad_certificate", peer=name.id if name else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """What a CA has revoked; build with `parse_revocations`.

    number: grows with every list of this CA. revoked: when, by serial number. Aware UTC times.
    """

    number: int
    issued_at: datetime
    revoked: Mapping[int, datetime]

    def check(self, certificate: x509.Certificate, *, holder: str) -> None:
        """Refuse a revoked certificate.

        Args: holder: the party's id, for the message.
        Raises: PeerError: it is on the list (reason "revoked").
        """
        if certificate.serial_number in self.revoked:
            raise PeerError(
                f"certificate {certificate_fingerprint(certificate)[:16]}... of {holder} was "
                f"revoked by the study CA (list {self.number} of {self.issued_at:%Y-%m-%d %H:%M} "
                "UTC); ask whoever runs the CA",
                reason="revoked",
                peer=holder,
            )


def parse_revocations(pem: bytes, *, ca: x509.Certificate) -> RevocationList:
    """Read a revocation list and check that this very CA signed it.

    A list past the date of its successor counts all the same: what was revoked stays revoked.

    Raises: PeerError: too long, not a list, without a number, or of another CA (reason
      "bad_revocations").
    """
    if len(pem) > MAX_REVOCATION_BYTES:
        raise _bad_list(f"{len(pem)} bytes, at most {MAX_REVOCATION_BYTES} allowed")
    key = ca.public_key()
    try:
        found = x509.load_pem_x509_crl(pem)
        signed = isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        revoked = {one.serial_number: one.revocation_date_utc for one in found}
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_list(f"cannot be read ({type(error).__name__})") from error
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _bad_list("has no readable number") from error
    if not signed or found.issuer != ca.subject:
        raise _bad_list(f"was not signed by the study CA {certificate_fingerprint(ca)[:16]}...")
    return RevocationList(number=number, issued_at=found.last_update_utc, revoked=revoked)


def _bad_list(what: str) -> PeerError:
    return PeerError(
        f"revocation list {what}; use the file ca.crl that `lada ca revoke` wrote",
        reason="bad_revocations",
    )
