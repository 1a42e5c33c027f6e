"""Requests and revocation lists as bytes from elsewhere: read exactly, or refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from lada_protocol.identity.certificates import PartyName, parse_revocations
from lada_protocol.identity.issuance import (
    build_ca_certificate,
    build_requests,
    build_revocation_list,
    parse_requests,
)
from lada_protocol.kinds import Role
from lada_secure.errors import ParameterError, PeerError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SITE = PartyName(role=Role.SITE, id="hospital-a")
TLS, SIGNING = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()


def requests(party=SITE, tls=TLS, signing=SIGNING):
    made = build_requests(party, tls_key=tls, signing_key=signing)
    return {"tls": made["tls.csr"], "signing": made["sign.csr"]}


def own_request(*names, key=TLS):
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def uri(text):
    return x509.UniformResourceIdentifier(text)


def test_requests_come_back_with_name_and_public_keys():
    read = parse_requests(**requests())
    assert read.party == SITE
    assert read.tls_key == TLS.public_key()
    assert read.signing_key == SIGNING.public_key()


def test_a_request_that_was_changed_is_refused():
    raw = x509.load_pem_x509_csr(requests()["tls"]).public_bytes(serialization.Encoding.DER)
    changed = raw.replace(b"lada:site:hospital-a", b"lada:site:hospital-b")
    pem = serialization.Encoding.PEM
    forged = x509.load_der_x509_csr(changed).public_bytes(pem)
    with pytest.raises(PeerError, match="not signed with the key") as refused:
        parse_requests(tls=forged, signing=requests()["signing"])
    assert refused.value.reason == "bad_request"


@pytest.mark.parametrize(
    "tls",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"x" * 20_000, id="too long"),
        pytest.param(own_request(), id="no name"),
        pytest.param(own_request(uri("lada:site:a"), uri("lada:site:b")), id="two names"),
        pytest.param(own_request(uri("lada:site:hospital-a"), x509.DNSName("a.b")), id="a host"),
        pytest.param(own_request(uri("lada:king:a")), id="an unknown role"),
        pytest.param(
            requests(tls=ec.generate_private_key(ec.SECP384R1()))["tls"], id="another curve"
        ),
        pytest.param(requests()["signing"], id="the other request"),
        pytest.param(requests(PartyName(role=Role.SITE, id="bank"))["tls"], id="of another party"),
    ],
)
def test_another_request_is_refused(tls):
    with pytest.raises(PeerError):
        parse_requests(tls=tls, signing=requests()["signing"])


def authority(name="CA"):
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_ca_certificate(
        key=key, name=name, serial=1, period=(NOW, NOW + timedelta(days=9))
    )
    return certificate, key


def listed(ca, key, *, number=3):
    return build_revocation_list(
        ca=ca,
        ca_key=key,
        number=number,
        revoked={7: NOW, 9: NOW},
        issued_at=NOW,
        next_at=NOW + timedelta(days=1),
    )


def test_a_revocation_list_comes_back_with_number_and_serials():
    ca, key = authority()
    read = parse_revocations(listed(ca, key), ca=ca)
    assert (read.number, read.issued_at, read.revoked) == (3, NOW, {7: NOW, 9: NOW})
    read.check(ca, holder="ca")


def test_a_list_of_another_ca_of_the_same_name_is_refused():
    (ca, _), (other, key) = authority(), authority()
    with pytest.raises(PeerError, match="was not signed by the study CA") as refused:
        parse_revocations(listed(other, key), ca=ca)
    assert refused.value.reason == "bad_revocations"


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"x" * (5 << 20)])
def test_rubbish_is_not_a_revocation_list(pem):
    with pytest.raises(PeerError):
        parse_revocations(pem, ca=authority()[0])


def test_a_list_without_a_number_is_refused():
    ca, key = authority()
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(PeerError, match="no readable number"):
        parse_revocations(made.public_bytes(serialization.Encoding.PEM), ca=ca)


def test_a_list_needs_the_key_of_its_ca():
    with pytest.raises(ParameterError, match="different CAs"):
        listed(authority()[0], authority()[1])
