"""`lada ca invite` and `admit`: who is admitted, once and in time, and when the bundle is made."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from lada_clients.ca.authority import init_ca, renew_party, revoke
from lada_clients.ca.commands import app
from lada_clients.ca.invitations import admit, invite
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.enrolment import build_enrolment, parse_bundle, roster_fingerprint
from lada_protocol.kinds import Role
from lada_secure.errors import ParameterError

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PARTIES = (
    PartyName(role=Role.COORDINATOR, id="hub"),
    PartyName(role=Role.AUDITOR, id="auditor"),
    *(PartyName(role=Role.SITE, id=one) for one in ("a", "b", "c")),
)


class Enrolling:
    """A CA, its invitations, and a request of each party in a file."""

    def __init__(self, root):
        self.root = root
        self.ca = root / "ca"
        init_ca(self.ca, name="study", days=900, now=NOW)
        self.invitations = self.invite(*PARTIES)
        self.requests = {one.id: self.request(one.id) for one in PARTIES}

    def invite(self, *parties, now=NOW, coordinator="hub.example.org:7443"):
        return invite(self.ca, parties, coordinator=coordinator, days=14, now=now, passphrase=None)

    def request(self, party, invitation=None, name="request"):
        path = self.root / f"{name}-{party}.json"
        raw = build_enrolment(
            invitation or self.invitations[party],
            tls_key=ec.generate_private_key(ec.SECP256R1()),
            signing_key=Ed25519PrivateKey.generate(),
        )
        path.write_bytes(raw)
        return path

    def admit(self, *paths, now=NOW, **more):
        return admit(self.ca, paths, days=365, now=now, passphrase=None, **more)

    @property
    def issued(self):
        return sorted(self.ca.glob("issued/*"))


@pytest.fixture
def enrolling(tmp_path):
    return Enrolling(tmp_path)


def test_the_bundle_comes_with_the_last_request_and_only_then(enrolling):
    *first, last = enrolling.requests.values()
    found = enrolling.admit(*first)
    assert [one.id for one in found.admitted] == ["hub", "auditor", "a", "b"]
    assert (found.bundle, list(found.missing)) == (None, ["c"])
    found = enrolling.admit(last)
    assert found.missing == {}
    found.bundle.check(at=NOW)
    assert {one.name for one in found.bundle.roster.parties} == set(PARTIES)
    assert len(enrolling.issued) == 2 * len(PARTIES)


def test_the_same_request_twice_is_one_admission(enrolling):
    paths = list(enrolling.requests.values())
    before = enrolling.admit(*paths).bundle.to_bytes()
    again = enrolling.admit(*paths, paths[0])
    assert again.admitted == ()
    assert again.bundle.to_bytes() == before
    assert len(enrolling.issued) == 2 * len(PARTIES)


def test_an_invitation_is_good_for_one_request(enrolling):
    enrolling.admit(enrolling.requests["a"])
    second = enrolling.request("a", name="second")
    with pytest.raises(ParameterError, match=r"used already, with other keys.*Nothing was issued"):
        enrolling.admit(second)
    third, fourth = enrolling.request("b", name="third"), enrolling.request("b", name="fourth")
    with pytest.raises(ParameterError, match="a second request of b"):
        enrolling.admit(third, fourth)
    assert len(enrolling.issued) == 2


def test_one_request_at_fault_keeps_the_others_from_being_issued(enrolling):
    late = NOW + timedelta(days=15)
    with pytest.raises(ParameterError, match="its invitation ended at 2026-06-15 00:00 UTC"):
        enrolling.admit(*enrolling.requests.values(), now=late)
    broken = enrolling.root / "broken.json"
    broken.write_text("{")
    with pytest.raises(ParameterError, match=r"broken\.json: not canonical JSON"):
        enrolling.admit(enrolling.requests["a"], broken)
    assert enrolling.issued == []
    assert enrolling.admit().missing.keys() == {one.id for one in PARTIES}


def test_a_request_of_a_party_or_role_that_was_not_invited_is_refused(enrolling, tmp_path):
    invited = enrolling.invitations["a"]

    def asked_as(role, party):
        other = replace(invited, party=PartyName(role=role, id=party))
        return enrolling.request(party, other, name=f"as-{role}")

    with pytest.raises(ParameterError, match="a was invited as site, not as auditor"):
        enrolling.admit(asked_as(Role.AUDITOR, "a"))
    with pytest.raises(ParameterError, match="d was not invited"):
        enrolling.admit(asked_as(Role.SITE, "d"))
    with pytest.raises(ParameterError, match="b: it was not made with the invitation"):
        enrolling.admit(asked_as(Role.SITE, "b"))
    (tmp_path / "other").mkdir()
    other = Enrolling(tmp_path / "other")
    with pytest.raises(ParameterError, match="for another study's CA"):
        enrolling.admit(other.requests["a"])
    assert enrolling.issued == []


def test_a_new_invitation_takes_the_place_of_an_unused_one(enrolling):
    before = enrolling.requests["a"]
    newest = enrolling.invite(PARTIES[2], coordinator=None)["a"]
    assert newest.coordinator == "hub.example.org:7443"
    with pytest.raises(ParameterError, match="stands for a now"):
        enrolling.admit(before)
    enrolling.admit(enrolling.request("a", newest, name="newest"))


def test_who_has_certificates_is_invited_again_only_after_they_were_revoked(enrolling):
    enrolling.admit(*enrolling.requests.values())
    with pytest.raises(ParameterError, match="has its certificates already"):
        enrolling.invite(PARTIES[2])
    revoke(enrolling.ca, now=NOW, party_id="a")
    found = enrolling.admit()
    assert found.bundle is None
    assert "was revoked" in found.missing["a"]
    again = enrolling.invite(PARTIES[2])["a"]
    found = enrolling.admit(enrolling.request("a", again, name="again"))
    found.bundle.check(at=NOW)
    assert len(found.bundle.roster.parties) == len(PARTIES)


def test_a_renewed_certificate_is_in_the_next_bundle_and_the_roster_stays(enrolling, tmp_path):
    before = enrolling.admit(*enrolling.requests.values()).bundle
    later = NOW + timedelta(days=300)
    renew_party(enrolling.ca, party_id="a", days=365, out=tmp_path / "new", now=later)
    after = enrolling.admit(now=later).bundle
    assert after.roster.hash == before.roster.hash
    assert after.certificates["a"] != before.certificates["a"]


def test_an_invited_party_can_be_left_out(enrolling):
    enrolling.invite(PartyName(role=Role.SITE, id="d"))
    found = enrolling.admit(*enrolling.requests.values())
    assert list(found.missing) == ["d"]
    found = enrolling.admit(without=["d"])
    assert len(found.bundle.roster.parties) == len(PARTIES)
    with pytest.raises(ParameterError, match="--without: e is not invited"):
        enrolling.admit(without=["e"])


@pytest.mark.parametrize(
    ("parties", "told"),
    [
        ([PartyName(role=Role.SITE, id="x")] * 2, "named twice"),
        ([PartyName(role=Role.COORDINATOR, id="other")], "one coordinator, .* hub and other"),
        ([PartyName(role=Role.AUDITOR, id="other")], "one auditor"),
    ],
)
def test_a_study_that_could_not_be_is_refused_at_the_invitation(enrolling, parties, told):
    before = sorted(enrolling.ca.rglob("*"))
    with pytest.raises(ParameterError, match=told):
        enrolling.invite(*parties)
    for address in ("hub", "hub:0", "hub:x"):
        with pytest.raises(ParameterError, match="address"):
            enrolling.invite(PARTIES[2], coordinator=address)
    assert sorted(enrolling.ca.rglob("*")) == before


def test_what_the_ca_keeps_of_an_invitation_admits_nobody(enrolling):
    kept = json.loads((enrolling.ca / "invitations" / "a.json").read_text())
    key = enrolling.invitations["a"].key.hex()
    assert key not in json.dumps(kept)
    assert kept["public_key"] == enrolling.invitations["a"].public_key


def test_the_commands_say_what_is_next(tmp_path):
    def run(*words, status=0):
        done = CliRunner().invoke(app, [str(word) for word in words])
        if status == 0 and done.exception is not None:
            raise done.exception
        return done

    ca = tmp_path / "ca"
    run("init", ca)
    words = ("invite", ca, "--coordinator", "hub", "--auditor", "eye")
    sites = [word for one in "abc" for word in ("--site", one)]
    assert isinstance(run(*words, *sites, status=2).exception, ParameterError)
    said = run(*words, *sites, "--address", "hub.example.org:7443")
    assert said.output.count("lada-invitation-1.") == 5
    made = json.loads(run(*words, "--json").output)["invitations"]
    assert sorted(made) == ["eye", "hub"]
    assert isinstance(run("invite", ca, status=2).exception, ParameterError)
    found = json.loads(run("admit", ca, "--json").output)
    assert found["missing"].keys() == {"hub", "eye", "a", "b", "c"}


def test_admit_writes_the_bundle_and_its_fingerprint(tmp_path):
    enrolling = Enrolling(tmp_path)
    now = datetime.now(UTC)
    fresh = enrolling.invite(*PARTIES, now=now)
    requests = [str(enrolling.request(one.id, fresh[one.id], name="now")) for one in PARTIES]
    done = CliRunner().invoke(app, ["admit", str(enrolling.ca), *requests])
    assert done.exit_code == 0, done.output
    bundle = parse_bundle((enrolling.ca / "bundle.json").read_bytes())
    assert roster_fingerprint(bundle.roster.hash) in done.output
