"""Certificates of the study CA: what is issued, what is accepted, what is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from lada_protocol.identity import certificates as identity
from lada_protocol.identity import issuance
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role
from lada_secure.errors import ParameterError, PeerError

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=100)
NOON = START + timedelta(days=50)
SITE = PartyName(role=Role.SITE, id="hospital-a")


class Authority:
    """A study CA with fixed times."""

    def __init__(self, name="CA"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = issuance.build_ca_certificate(
            key=self.key, name=name, serial=1, period=(START, END)
        )

    def tls(self, party=SITE, *, key=None, hosts=("localhost",), end=END):
        key = key or ec.generate_private_key(ec.SECP256R1())
        return issuance.issue_certificate(
            ca=self.certificate,
            ca_key=self.key,
            party=party,
            public_key=key.public_key(),
            hosts=hosts,
            serial=2,
            period=(START, end),
        )

    def signing(self, party=SITE):
        return issuance.issue_certificate(
            ca=self.certificate,
            ca_key=self.key,
            party=party,
            public_key=Ed25519PrivateKey.generate().public_key(),
            serial=3,
            period=(START, END),
        )

    def own_form(self, uris, *, ca=False):
        """A certificate that the CA signed but `issue_*` would never write."""
        key = Ed25519PrivateKey.generate()
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(4)
            .not_valid_before(START)
            .not_valid_after(END)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(issuance._key_usage(), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority():
    return Authority()


def verify(authority, certificate, *, usage="tls", at=NOON):
    return identity.verify_party(certificate, ca=authority.certificate, at=at, usage=usage)


def test_issued_certificates_prove_role_and_id(authority):
    assert verify(authority, authority.tls()) == SITE
    assert verify(authority, authority.signing(), usage="signing") == SITE


def test_a_tls_certificate_names_its_hosts_and_its_role(authority):
    names = (
        authority.tls(hosts=("Lada.Example", "127.0.0.1", "::1"))
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert names.get_values_for_type(x509.DNSName) == ["site.lada.internal", "lada.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["lada:site:hospital-a"]


def test_a_certificate_survives_its_pem_form(authority):
    certificate = authority.tls()
    again = identity.parse_certificate(identity.certificate_pem(certificate))
    assert identity.certificate_fingerprint(again) == certificate.fingerprint(hashes.SHA256()).hex()


def test_a_certificate_of_another_ca_is_refused_even_if_the_ca_has_the_same_name(authority):
    with pytest.raises(PeerError, match="not issued by the study CA") as refused:
        verify(authority, Authority().tls())
    assert refused.value.reason == "bad_certificate"


@pytest.mark.parametrize("at", [START - timedelta(seconds=1), END + timedelta(seconds=1)])
def test_a_certificate_outside_its_period_is_refused(authority, at):
    with pytest.raises(PeerError, match="valid from") as refused:
        verify(authority, authority.tls(), at=at)
    assert refused.value.reason == "expired"


@pytest.mark.parametrize(("usage", "kind"), [("tls", "signing"), ("signing", "tls")])
def test_a_certificate_serves_one_usage_only(authority, usage, kind):
    with pytest.raises(PeerError, match=f"not a {usage} certificate"):
        verify(authority, getattr(authority, kind)(), usage=usage)


def test_the_ca_certificate_is_no_party(authority):
    with pytest.raises(PeerError, match="subject alternative name"):
        verify(authority, authority.certificate)


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param([], id="no name"),
        pytest.param(["https://example.org"], id="a name of another scheme only"),
        pytest.param(["lada:site:a", "lada:auditor:a"], id="two names"),
        pytest.param(["lada:king:a"], id="an unknown role"),
        pytest.param(["lada:site:"], id="no id"),
        pytest.param(["lada:site:A"], id="capitals in the id"),
        pytest.param(["lada:site:a\n"], id="a line feed after the id"),
    ],
)
def test_a_certificate_without_exactly_one_readable_party_name_is_refused(authority, uris):
    with pytest.raises(PeerError) as refused:
        verify(authority, authority.own_form(uris), usage="signing")
    assert refused.value.reason == "bad_certificate"


def test_a_party_certificate_that_could_issue_others_is_refused(authority):
    with pytest.raises(PeerError, match="not a signing certificate"):
        verify(authority, authority.own_form([SITE.uri], ca=True), usage="signing")


def test_another_party_than_expected_is_refused(authority):
    with pytest.raises(PeerError, match="expected lada:auditor:hospital-a"):
        identity.verify_party(
            authority.tls(),
            ca=authority.certificate,
            at=NOON,
            usage="tls",
            expected=PartyName(role=Role.AUDITOR, id="hospital-a"),
        )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"key": ec.generate_private_key(ec.SECP384R1())}, id="another curve"),
        pytest.param({"hosts": ("not a host",)}, id="a host with spaces"),
        pytest.param({"hosts": ("*.example",)}, id="a wildcard host"),
        pytest.param({"hosts": ("",)}, id="an empty host"),
        pytest.param({"hosts": ("a",) * 33}, id="too many hosts"),
        pytest.param({"end": END + timedelta(days=1)}, id="an end after the CA's own"),
        pytest.param({"end": START}, id="an empty period"),
        pytest.param({"end": datetime(2026, 2, 1)}, id="a time without a zone"),
    ],
)
def test_the_ca_refuses_to_issue(authority, change):
    with pytest.raises(ParameterError):
        authority.tls(**change)


@pytest.mark.parametrize("party_id", ["", "a" * 33, "A", "a_b", "a/b", "é", "a\n"])
def test_ids_have_one_alphabet(party_id):
    with pytest.raises(ParameterError, match="id of a party"):
        PartyName(role=Role.SITE, id=party_id)


@pytest.mark.parametrize(
    "pem", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_rubbish_is_not_a_certificate(pem):
    with pytest.raises(PeerError) as refused:
        identity.parse_certificate(pem)
    assert refused.value.reason == "bad_certificate"


def test_a_chain_or_a_huge_text_is_not_one_certificate(authority):
    pem = identity.certificate_pem(authority.tls())
    for text in (pem + pem, pem + b"\n" * identity.MAX_CERTIFICATE_BYTES):
        with pytest.raises(PeerError):
            identity.parse_certificate(text)
