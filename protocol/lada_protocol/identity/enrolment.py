"""Asking the study CA for certificates: two signing requests (PKCS 10), one for each key.

Only requests leave the party, its private keys never do. A request proves that whoever made it
holds the private key; who that is, the CA's operator must know by other means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from lada_protocol.identity.certificates import PartyName, parse_party_name
from lada_secure.errors import PeerError

MAX_REQUEST_BYTES: Final = 16_384
TLS_REQUEST: Final = "tls.csr"
SIGNING_REQUEST: Final = "sign.csr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Public keys of a party that asks for certificates; each was used to sign its request."""

    party: PartyName
    tls_key: ec.EllipticCurvePublicKey
    signing_key: Ed25519PublicKey


def build_requests(
    party: PartyName,
    *,
    tls_key: ec.EllipticCurvePrivateKey,
    signing_key: Ed25519PrivateKey,
) -> dict[str, bytes]:
    """The two requests of a party in PEM, by file name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, party.id)])
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(party.uri)]),
            critical=False,
        )
    )
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
    tls_request, tls_name = _parse(tls, TLS_REQUEST)
    signing_request, signing_name = _parse(signing, SIGNING_REQUEST)
    if tls_name != signing_name:
        raise _bad(f"{TLS_REQUEST} is of {tls_name.uri}, {SIGNING_REQUEST} of {signing_name.uri}")
    tls_key, signing_key = tls_request.public_key(), signing_request.public_key()
    if not isinstance(tls_key, ec.EllipticCurvePublicKey) or not isinstance(
        tls_key.curve, ec.SECP256R1
    ):
        raise _bad(f"{TLS_REQUEST} has no ECDSA key on P-256")
    if not isinstance(signing_key, Ed25519PublicKey):
        raise _bad(f"{SIGNING_REQUEST} has no Ed25519 key")
    return Enrolment(party=tls_name, tls_key=tls_key, signing_key=signing_key)


def _parse(pem: bytes, file: str) -> tuple[x509.CertificateSigningRequest, PartyName]:
    if len(pem) > MAX_REQUEST_BYTES:
        raise _bad(f"{file} has {len(pem)} bytes, at most {MAX_REQUEST_BYTES} allowed")
    try:
        request = x509.load_pem_x509_csr(pem)
        signed = request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad(f"{file} cannot be read ({type(error).__name__})") from error
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _bad(f"{file} names no party") from error
    if not signed:
        raise _bad(f"{file} is not signed with the key that it shows")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(list(names)) != 1 or len(uris) != 1:
        raise _bad(f"{file} must ask for exactly one name of the form lada:<role>:<id>")
    return request, parse_party_name(uris[0])


def _bad(what: str) -> PeerError:
    return PeerError(
        f"request for certificates: {what}; use the two files that `lada site enroll` wrote",
        reason="bad_request",
    )
