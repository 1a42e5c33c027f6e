"""Certificates that the study CA has taken back: an X.509 revocation list (CRL, RFC 5280).

The CA signs the list and whoever runs the coordinator puts it beside the certificates; nothing
is fetched from the network. A list names serial numbers, so it stands for certificates and not
for keys: a party whose key was stolen needs a new key, and with it a new roster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lada_protocol.identity.certificates import certificate_fingerprint
from lada_protocol.identity.issuance import check_key_of_ca
from lada_secure.errors import PeerError

MAX_REVOCATION_BYTES: Final = 4 << 20


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
    check_key_of_ca(ca, ca_key)
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


def parse_revocations(pem: bytes, *, ca: x509.Certificate) -> RevocationList:
    """Read a revocation list and check that this very CA signed it.

    A list past the date of its successor counts all the same: what was revoked stays revoked.

    Raises: PeerError: too long, not a list, without a number, or of another CA (reason
      "bad_revocations").
    """
    if len(pem) > MAX_REVOCATION_BYTES:
        raise _bad(f"{len(pem)} bytes, at most {MAX_REVOCATION_BYTES} allowed")
    key = ca.public_key()
    try:
        found = x509.load_pem_x509_crl(pem)
        signed = isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        revoked = {one.serial_number: one.revocation_date_utc for one in found}
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad(f"cannot be read ({type(error).__name__})") from error
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _bad("has no readable number") from error
    if not signed or found.issuer != ca.subject:
        raise _bad(f"was not signed by the study CA {certificate_fingerprint(ca)[:16]}...")
    return RevocationList(number=number, issued_at=found.last_update_utc, revoked=revoked)


def _bad(what: str) -> PeerError:
    return PeerError(
        f"revocation list {what}; use the file ca.crl that `lada ca revoke` wrote",
        reason="bad_revocations",
    )
