"""Invitations, requests and bundles as values: what is read back, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.enrolment import (
    MAX_BUNDLE_BYTES,
    MAX_ENROLMENT_BYTES,
    Bundle,
    Invitation,
    build_enrolment,
    check_fingerprint,
    parse_bundle,
    parse_enrolment,
    parse_invitation,
    roster_fingerprint,
)
from lada_protocol.kinds import Role
from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError, PeerError

INVITATION = Invitation(
    party=PartyName(role=Role.SITE, id="hospital-a"),
    coordinator="hub.example.org:7443",
    ca="ab" * 32,
    until=datetime(2026, 12, 14, 10, tzinfo=UTC),
    key=bytes(range(16)),
)


def request(invitation=INVITATION):
    return build_enrolment(
        invitation,
        tls_key=ec.generate_private_key(ec.SECP256R1()),
        signing_key=Ed25519PrivateKey.generate(),
    )


def changed(raw, **values):
    return canonical_json({**json.loads(raw), **values})


@pytest.mark.parametrize(
    "changes", [{"until": 1 << 39}, {"coordinator": 'evil.example\n"x":443'}], ids=["late", "line"]
)
def test_a_crafted_invitation_is_refused_by_what_is_wrong_with_it(changes):
    values = json.loads(_body(INVITATION.to_text())[:-4])
    raw = canonical_json(values | changes)
    line = base64.urlsafe_b64encode(raw + hashlib.sha256(raw).digest()[:4]).decode().rstrip("=")
    with pytest.raises(ParameterError, match=f"invitation, {next(iter(changes))}: "):
        parse_invitation(f"lada-invitation-1.{line}")


def _body(text):
    line = text.removeprefix("lada-invitation-1.")
    return base64.urlsafe_b64decode(line + "=" * (-len(line) % 4))


def test_an_invitation_is_read_back_however_a_mail_has_broken_it():
    text = INVITATION.to_text()
    assert parse_invitation(text) == INVITATION
    folded = "\n > ".join(text[start : start + 60] for start in range(0, len(text), 60))
    assert parse_invitation(folded.replace(">", "")) == INVITATION
    assert INVITATION.key.hex() not in repr(INVITATION)


@pytest.mark.parametrize("place", [20, 60, 150, -1])
def test_a_mistyped_invitation_is_told_from_a_wrong_one(place):
    text = INVITATION.to_text()
    other = "A" if text[place] != "A" else "B"
    spoilt = text[:place] + other + (text[place + 1 :] if place != -1 else "")
    with pytest.raises(ParameterError, match="missing or mistyped"):
        parse_invitation(spoilt)
    with pytest.raises(ParameterError, match="missing or mistyped"):
        parse_invitation(text[:place])
    with pytest.raises(ParameterError, match="begins with lada-invitation-1"):
        parse_invitation(text[3:])


@given(st.text(max_size=300))
def test_any_text_is_an_invitation_or_is_refused(text):
    for line in (text, f"lada-invitation-1.{text}"):
        with pytest.raises(ParameterError):
            parse_invitation(line)


def test_a_request_proves_the_invitation_that_it_was_made_with():
    found = parse_enrolment(request())
    assert (found.party, found.ca) == (INVITATION.party, INVITATION.ca)
    found.check_invited(INVITATION.public_key)
    another = replace(INVITATION, key=bytes(16))
    with pytest.raises(PeerError, match="was not made with the invitation"):
        found.check_invited(another.public_key)


@pytest.mark.parametrize("what", ["tls_csr", "sign_csr", "ca"])
def test_nothing_of_a_request_can_be_swapped_on_its_way(what):
    raw, other = request(), request(replace(INVITATION, ca="cd" * 32))
    swapped = parse_enrolment(changed(raw, **{what: json.loads(other)[what]}))
    with pytest.raises(PeerError, match="was not made with the invitation"):
        swapped.check_invited(INVITATION.public_key)


def test_a_request_of_two_parties_is_refused():
    raw = request()
    with pytest.raises(PeerError, match="its requests are of lada:site:hospital-a"):
        parse_enrolment(changed(raw, party="lada:auditor:hospital-a"))
    other = request(replace(INVITATION, party=PartyName(role=Role.SITE, id="bank")))
    with pytest.raises(PeerError, match=r"sign\.csr of lada:site:bank"):
        parse_enrolment(changed(raw, sign_csr=json.loads(other)["sign_csr"]))


@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=9), st.text(max_size=9)))
def test_any_bytes_are_a_request_and_a_bundle_or_are_refused(content):
    raw = content if isinstance(content, bytes) else canonical_json(content)
    for parse in (parse_enrolment, parse_bundle):
        with pytest.raises(PeerError):
            parse(raw)


def test_sizes_are_looked_at_before_anything_is_parsed():
    with pytest.raises(PeerError, match="at most"):
        parse_enrolment(b"[" * (MAX_ENROLMENT_BYTES + 1))
    with pytest.raises(PeerError, match="at most"):
        parse_bundle(b"[" * (MAX_BUNDLE_BYTES + 1))


@pytest.fixture
def bundle(study):
    credentials = {one.id: study.credentials(one.id) for one in study.roster.parties}
    return Bundle(
        ca=credentials["bank"].ca,
        roster=study.roster,
        certificates={
            party: (one.tls_certificate, one.signing_certificate)
            for party, one in credentials.items()
        },
    )


def test_a_bundle_is_read_back_and_holds_together(study, bundle):
    found = parse_bundle(bundle.to_bytes())
    assert found.to_bytes() == bundle.to_bytes()
    found.check(at=study.now)
    with pytest.raises(PeerError, match="is valid from"):
        found.check(at=study.now + timedelta(days=400))


def test_a_bundle_with_anybodys_certificate_in_anothers_place_is_refused(study, bundle, make_study):
    certificates = dict(bundle.certificates)
    certificates["bank"] = certificates["hospital-a"]
    with pytest.raises(PeerError, match="certificate names lada:site:hospital-a"):
        replace(bundle, certificates=certificates).check(at=study.now)
    del certificates["bank"]
    with pytest.raises(PeerError, match="not of the same parties"):
        replace(bundle, certificates=certificates).check(at=study.now)
    other = make_study()
    with pytest.raises(PeerError, match="of another CA"):
        replace(bundle, ca=other.credentials("bank").ca).check(at=study.now)
    with pytest.raises(PeerError):
        replace(bundle, roster=other.roster).check(at=study.now)


def test_a_fingerprint_is_the_same_everywhere_and_another_for_another_roster():
    own = roster_fingerprint("ab" * 32)
    # As every version must compute it: parties of two versions read it to each other.
    assert own == "46643 34748 74415 75499 15828 84013"
    assert roster_fingerprint("ab" * 31 + "aa") != own
    check_fingerprint(own, own)
    check_fingerprint(own, "46643-34748.74415 75499\n1582884013")


@pytest.mark.parametrize(
    ("read_out", "told"),
    [
        ("46643 34748 74415 75498 15828 84013", "group 4 differs"),
        ("46643 34748 74414 75498 15828 84013", "groups 3, 4 differ"),
        ("46643 34748", "expected 6 groups of 5 digits"),
        ("", "expected 6 groups of 5 digits"),
        ("yes", "expected 6 groups of 5 digits"),
        ("٤6643 34748 74415 75499 15828 84013", "expected 6 groups of 5 digits"),
    ],
)
def test_what_was_read_out_wrongly_is_told_by_its_group(read_out, told):
    with pytest.raises(ParameterError, match=told):
        check_fingerprint("46643 34748 74415 75499 15828 84013", read_out)
