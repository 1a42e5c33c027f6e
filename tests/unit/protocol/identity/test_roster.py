"""The roster: its guarantees, its one byte form, and signatures against it."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.roster import Party, Roster, parse_roster
from lada_protocol.kinds import Role
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError, PeerError


def party(number, role=Role.SITE, **change):
    fields = {
        "id": f"party-{number}",
        "role": role,
        "tls_fingerprint": f"{number:064x}",
        "signing_fingerprint": f"{number + 1000:064x}",
        "signing_key": f"{number + 2000:064x}",
    }
    return Party(**{**fields, **change})


COORDINATOR, AUDITOR = party(1, Role.COORDINATOR), party(2, Role.AUDITOR)
SITES = (party(4), party(3))


def roster(*parties):
    return Roster(study_ca="c" * 64, parties=parties or (COORDINATOR, AUDITOR, *SITES))


def test_parties_are_found_by_role_id_and_certificate():
    made = roster()
    assert made.coordinator == COORDINATOR
    assert made.auditor == AUDITOR
    assert [one.id for one in made.sites] == ["party-3", "party-4"]
    assert made.party("party-3") == SITES[1]
    assert made.party_with_tls_key(f"{4:064x}") == SITES[0]


def test_a_roster_reads_back_to_the_same_value_and_its_hash_is_that_of_its_bytes():
    made = roster()
    again = parse_roster(made.to_bytes())
    assert again == made
    assert again.hash == sha256_hex(made.to_bytes())
    assert hash(again) == hash(made)


def test_the_order_in_which_parties_are_given_does_not_matter():
    assert roster(*SITES, AUDITOR, COORDINATOR).hash == roster().hash


@pytest.mark.parametrize(
    "change",
    ["tls_fingerprint", "signing_fingerprint", "signing_key"],
)
def test_every_field_of_a_party_enters_the_hash(change):
    other = dataclasses.replace(SITES[0], **{change: "f" * 64})
    assert roster(COORDINATOR, AUDITOR, other, SITES[1]).hash != roster().hash


@pytest.mark.parametrize(
    ("parties", "text"),
    [
        pytest.param((AUDITOR, *SITES), "one coordinator, got 0", id="no coordinator"),
        pytest.param(
            (COORDINATOR, AUDITOR, party(9, Role.COORDINATOR), *SITES), "got 2", id="two of them"
        ),
        pytest.param((COORDINATOR, *SITES), "one auditor, got 0", id="no auditor"),
        pytest.param((COORDINATOR, AUDITOR), "at least one site", id="no site"),
        pytest.param((COORDINATOR, AUDITOR, party(3), party(4, id="party-3")), "one id", id="id"),
        pytest.param(
            (COORDINATOR, AUDITOR, party(3), party(4, tls_fingerprint=f"{3:064x}")),
            "one tls_fingerprint",
            id="one TLS certificate twice",
        ),
        pytest.param(
            (COORDINATOR, AUDITOR, party(3, signing_key=AUDITOR.signing_key)),
            "one signing_key",
            id="a site with the auditor's key",
        ),
    ],
)
def test_a_roster_that_is_none_is_refused(parties, text):
    with pytest.raises(ParameterError, match=text):
        roster(*parties)


def altered(change):
    value = json.loads(roster().to_bytes())
    change(value)
    return canonical_json(value)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="a list"),
        pytest.param(roster().to_bytes() + b"\n", id="a line feed after it"),
        pytest.param(altered(lambda it: it.update(extra=1)), id="an unknown field"),
        pytest.param(altered(lambda it: it.pop("study_ca")), id="no CA"),
        pytest.param(altered(lambda it: it.update(study_ca=None)), id="a CA that is no text"),
        pytest.param(altered(lambda it: it.update(parties={})), id="parties that are no list"),
        pytest.param(altered(lambda it: it["parties"].reverse()), id="parties out of order"),
        pytest.param(altered(lambda it: it["parties"][0].update(x="")), id="a field too many"),
        pytest.param(altered(lambda it: it["parties"][0].pop("role")), id="no role"),
        pytest.param(altered(lambda it: it["parties"][0].update(role="x")), id="unknown role"),
        pytest.param(altered(lambda it: it["parties"][0].update(role=1)), id="role as a number"),
        pytest.param(
            altered(lambda it: it["parties"][0].update(signing_key="F" * 64)), id="capitals"
        ),
        pytest.param(altered(lambda it: it["parties"].clear()), id="no parties"),
    ],
)
def test_anything_else_is_refused_as_malformed(raw):
    with pytest.raises(PeerError) as refused:
        parse_roster(raw)
    assert refused.value.reason == "malformed"


def test_a_roster_longer_than_allowed_is_refused_before_it_is_parsed():
    with pytest.raises(PeerError) as refused:
        parse_roster(roster().to_bytes(), max_bytes=100)
    assert refused.value.reason == "too_large"


@pytest.mark.parametrize("find", ["party", "party_with_tls_key"])
def test_an_unlisted_party_is_not_found(find):
    with pytest.raises(PeerError) as refused:
        getattr(roster(), find)("nobody")
    assert refused.value.reason == "unknown_party"


def test_signatures_are_checked_against_the_listed_key():
    key = Ed25519PrivateKey.generate()
    signer = party(5, signing_key=key.public_key().public_bytes_raw().hex())
    signer.verify_signature(key.sign(b"message"), b"message")
    for signature, message in ((key.sign(b"message"), b"Message"), (b"short", b"message")):
        with pytest.raises(PeerError) as refused:
            signer.verify_signature(signature, message)
        assert refused.value.reason == "bad_signature"
