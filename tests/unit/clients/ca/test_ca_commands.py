"""`lada ca` as operators use it: enrol with a key that never leaves, renew, revoke, encrypt."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from lada_clients.ca import authority, enrolment
from lada_clients.ca.commands import app
from lada_clients.site.commands import app as site_app
from lada_protocol.identity.certificates import (
    PartyName,
    certificate_fingerprint,
    parse_revocations,
)
from lada_protocol.identity.credentials import Passphrase, parse_passphrase
from lada_protocol.kinds import Role
from lada_protocol.party_files import load_credentials, read_passphrase
from lada_secure.errors import ParameterError

SITE = PartyName(role=Role.SITE, id="new")
PASSPHRASE = Passphrase(b"correct horse battery staple")


def run(*words, group=app):
    done = CliRunner().invoke(group, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def ca(tmp_path):
    run("init", tmp_path / "ca")
    return tmp_path / "ca"


def fingerprint(ca):
    return certificate_fingerprint(x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes()))


def enrolled(ca, tmp_path):
    """A site that made its keys itself."""
    identity, answer = tmp_path / "identity", tmp_path / "answer"
    run("enroll", "--id", "new", "--out", identity, group=site_app)
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in ("tls.csr", "sign.csr"):
        (sent / name).write_bytes((identity / name).read_bytes())
    run("issue", ca, "--role", "site", "--id", "new", "--csr", sent, "--out", answer)
    run("install", answer, "--identity", identity, "--ca-sha256", fingerprint(ca))
    return identity


def test_a_site_enrols_with_keys_that_never_leave_it(ca, tmp_path):
    identity = enrolled(ca, tmp_path)
    assert sorted(one.name for one in identity.iterdir()) == [
        *("ca.crt", "sign.crt", "sign.key", "tls.crt", "tls.key"),
    ]
    for key in ("tls.key", "sign.key"):
        assert stat.S_IMODE((identity / key).stat().st_mode) == 0o600
    assert load_credentials(identity, expected_id="new").name == SITE
    private = b"PRIVATE KEY"
    handed_over = [*(tmp_path / "sent").iterdir(), *(tmp_path / "answer").iterdir()]
    assert len(handed_over) == 5
    assert not any(private in one.read_bytes() for one in handed_over)


def test_renewed_certificates_keep_keys_role_hosts_and_roster_entry(ca, tmp_path):
    out = tmp_path / "hub"
    run("issue", ca, "--role", "coordinator", "--id", "hub", "--host", "hub.example", "--out", out)
    before = load_credentials(out)
    run("renew", ca, "--id", "hub", "--days", 30, "--out", tmp_path / "renewed")
    run("install", tmp_path / "renewed", "--identity", out)
    after = load_credentials(out)
    assert after.party() == before.party()
    assert after.tls_certificate.serial_number != before.tls_certificate.serial_number
    hosts = [
        one.tls_certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for one in (before, after)
    ]
    assert hosts[0] == hosts[1]
    end = after.tls_certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < end <= timedelta(days=30)


def test_revocation_names_all_certificates_of_a_party_and_grows(ca, tmp_path):
    enrolled(ca, tmp_path)
    run("renew", ca, "--id", "new", "--out", tmp_path / "renewed")
    run("issue", ca, "--role", "site", "--id", "other", "--out", tmp_path / "other")
    certificate = x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes())
    one = tmp_path / "other" / "tls.crt"
    assert json.loads(run("revoke", ca, "--certificate", one, "--json"))["revoked"] == 1
    assert parse_revocations((ca / "ca.crl").read_bytes(), ca=certificate).number == 1
    assert json.loads(run("revoke", ca, "--id", "new", "--json"))["revoked"] == 4
    assert json.loads(run("revoke", ca, "--id", "new", "--json"))["revoked"] == 0
    listed = parse_revocations((ca / "ca.crl").read_bytes(), ca=certificate)
    assert (listed.number, len(listed.revoked)) == (3, 5)


def test_revoked_keys_get_no_new_certificates(ca, tmp_path):
    enrolled(ca, tmp_path)
    run("revoke", ca, "--id", "new")
    with pytest.raises(ParameterError, match="are revoked; make new keys"):
        run("renew", ca, "--id", "new", "--out", tmp_path / "renewed")
    assert not (tmp_path / "renewed").exists()


def test_requests_of_another_party_than_the_operator_means_are_refused(ca, tmp_path):
    identity = tmp_path / "identity"
    run("enroll", "--role", "site", "--id", "new", "--out", identity)
    for role, party in (("site", "other"), ("auditor", "new")):
        with pytest.raises(ParameterError, match="nothing was issued"):
            run(
                "issue",
                ca,
                "--role",
                role,
                "--id",
                party,
                "--csr",
                identity,
                "--out",
                tmp_path / "x",
            )
    assert not (ca / "issued").exists()


def test_an_answer_of_another_ca_or_for_other_keys_changes_nothing(ca, tmp_path):
    identity = enrolled(ca, tmp_path)
    before = {one: one.read_bytes() for one in identity.iterdir()}
    run("init", tmp_path / "ca2")
    for folder, text in (("ca2", "fingerprint"), ("ca", "does not belong")):
        out = tmp_path / f"foreign-{folder}"
        run("issue", tmp_path / folder, "--role", "site", "--id", "new", "--out", out)
        with pytest.raises(ParameterError, match=text):
            run("install", out, "--identity", identity)
    assert {one: one.read_bytes() for one in identity.iterdir()} == before


def test_the_first_answer_needs_the_fingerprint_of_the_ca(ca, tmp_path):
    identity, answer = tmp_path / "identity", tmp_path / "answer"
    run("enroll", "--role", "site", "--id", "new", "--out", identity)
    run("issue", ca, "--role", "site", "--id", "new", "--csr", identity, "--out", answer)
    with pytest.raises(ParameterError, match="give it as --ca-sha256"):
        run("install", answer, "--identity", identity)
    with pytest.raises(ParameterError, match=f"expected {'0' * 64}"):
        run("install", answer, "--identity", identity, "--ca-sha256", "0" * 64)
    assert not (identity / "tls.crt").exists()


def test_keys_are_encrypted_where_there_is_a_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv("LADA_KEY_PASSPHRASE", PASSPHRASE.value.decode())
    run("init", tmp_path / "ca")
    identity = enrolled(tmp_path / "ca", tmp_path)
    for path in (tmp_path / "ca" / "ca.key", identity / "tls.key", identity / "sign.key"):
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        serialization.load_pem_private_key(path.read_bytes(), PASSPHRASE.value)
    assert load_credentials(identity).name == SITE
    monkeypatch.setenv("LADA_KEY_PASSPHRASE", "another passphrase of length")
    with pytest.raises(ParameterError, match="under another passphrase"):
        load_credentials(identity)
    monkeypatch.delenv("LADA_KEY_PASSPHRASE")
    with pytest.raises(ParameterError, match="encrypted and no passphrase was given") as refused:
        load_credentials(identity)
    # As compose files set it where nobody has given one.
    monkeypatch.setenv("LADA_KEY_PASSPHRASE", "")
    assert read_passphrase(None) is None
    assert PASSPHRASE.value.decode() not in str(refused.value)
    with pytest.raises(ParameterError, match="encrypted and no passphrase was given"):
        run("renew", tmp_path / "ca", "--id", "new", "--out", tmp_path / "renewed")
    file = tmp_path / "pass"
    file.write_bytes(PASSPHRASE.value + b"\n")
    assert load_credentials(identity, passphrase=read_passphrase(file)).name == SITE
    # As a service manager hands it over; an empty name is none.
    monkeypatch.setenv("LADA_KEY_PASSPHRASE_FILE", str(file))
    assert load_credentials(identity).name == SITE
    monkeypatch.setenv("LADA_KEY_PASSPHRASE_FILE", "")
    assert read_passphrase(None) is None
    monkeypatch.setenv("LADA_KEY_PASSPHRASE_FILE", str(tmp_path / "away"))
    with pytest.raises(ParameterError, match="away: No such file"):
        load_credentials(identity)


def test_a_byte_order_mark_is_no_part_of_a_passphrase():
    with pytest.raises(ParameterError, match="byte-order mark"):
        parse_passphrase(b"\xef\xbb\xbfexample-passphrase-of-32-letters", where="test")


@pytest.mark.parametrize("raw", [b"", b"short", b" " * 40, b"x" * 2000])
def test_a_passphrase_that_is_short_is_refused_without_showing_it(raw):
    with pytest.raises(ParameterError, match="expected 16 to 1024 bytes") as refused:
        parse_passphrase(raw, where="test")
    assert b"short" not in str(refused.value).encode()


def test_a_passphrase_shows_itself_nowhere():
    assert "horse" not in repr(PASSPHRASE)
    with pytest.raises(TypeError):
        PASSPHRASE.__reduce__()


def test_keys_of_an_enrolled_party_are_never_overwritten(tmp_path):
    enrolment.enroll(tmp_path, party=SITE, passphrase=None)
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(ParameterError, match="exist already"):
        enrolment.enroll(tmp_path, party=SITE, passphrase=None)
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_nothing_is_issued_into_a_folder_that_is_taken(ca, tmp_path):
    out = tmp_path / "taken"
    out.mkdir()
    (out / "tls.crt").write_bytes(b"mine")
    with pytest.raises(ParameterError, match="exist already"):
        authority.issue_party(ca, party=SITE, hosts=(), days=1, out=out, now=datetime.now(UTC))
    assert not (ca / "issued").exists()
