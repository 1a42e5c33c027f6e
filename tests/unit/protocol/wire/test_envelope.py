"""Envelopes: what is signed, and every reason for which a foreign one is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed

from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import (
    MAX_HEADER_BYTES,
    SIGNATURE_CONTEXT,
    Header,
    envelope_from_line,
    envelope_to_line,
    parse_envelope,
    sign_envelope,
)
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import ParameterError, PeerError

CAST, PLAN = make_cast(), make_plan()


def _header(**changes: Any) -> bytes:
    """Header bytes of a mask key message with some fields changed, removed (None) or added."""
    value: dict[str, Any] = {
        "version": 2,
        "kind": "mask_key",
        "study_id": PLAN.study_id,
        "plan_hash": PLAN.hash,
        "roster_hash": CAST.roster.hash,
        "round_id": 0,
        "attempt": 0,
        "purpose": "statistics",
        "sender": "site-a",
        "to": "",
        "body": {"public_key": "9" * 64},
        "payload_sha256": hashlib.sha256(b"").hexdigest(),
        "payload_bytes": 0,
    }
    value.update(changes)
    return canonical_json({name: one for name, one in value.items() if one is not None})


def _reason(header_bytes: bytes, *, signer: str = "site-a") -> str:
    signature = CAST.keys[signer].sign(SIGNATURE_CONTEXT + header_bytes)
    with pytest.raises(PeerError) as caught:
        parse_envelope(header_bytes, signature, roster=CAST.roster)
    return caught.value.reason


def test_a_signed_message_reads_back_with_its_hash() -> None:
    header_bytes = _header()
    signature = CAST.keys["site-a"].sign(SIGNATURE_CONTEXT + header_bytes)

    envelope = parse_envelope(header_bytes, signature, roster=CAST.roster)

    assert envelope.kind is Kind.MASK_KEY
    assert envelope.header_bytes == header_bytes
    assert envelope.message_hash == hashlib.sha256(header_bytes).hexdigest()
    assert envelope.signature == signature
    assert "9" * 64 not in repr(envelope)


def test_signing_and_parsing_are_inverse() -> None:
    message = signed(
        CAST.roster, CAST.keys["auditor"], PLAN, Kind.OPENED, "auditor", {"largest": 1}, b"[1]"
    )

    again = parse_envelope(message.header_bytes, message.signature, roster=CAST.roster)

    assert again.header == message.header


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another wire version": ({"version": 1}, "malformed"),
    "no version": ({"version": None}, "malformed"),
    "version true": ({"version": True}, "malformed"),
    "an unknown field": ({"extra": 1}, "malformed"),
    "a missing field": ({"attempt": None}, "malformed"),
    "a round as text": ({"round_id": "0"}, "malformed"),
    "a round as a float": ({"round_id": 0.0}, "malformed"),
    "a negative round": ({"round_id": -1}, "malformed"),
    "a round beyond the limit": ({"round_id": 100_001}, "malformed"),
    "an attempt beyond the limit": ({"attempt": 1_001}, "malformed"),
    "a study id that leaves the folder": ({"study_id": "../elsewhere"}, "malformed"),
    "a study id of dots": ({"study_id": ".."}, "malformed"),
    "an empty study id": ({"study_id": ""}, "malformed"),
    "a plan hash in capitals": ({"plan_hash": "A" * 64}, "malformed"),
    "a plan hash with a line feed": ({"plan_hash": "a" * 64 + "\n"}, "malformed"),
    "a short payload hash": ({"payload_sha256": "00"}, "malformed"),
    "a purpose in capitals": ({"purpose": "STATISTICS"}, "malformed"),
    "a sender with a slash": ({"sender": "../site"}, "malformed"),
    "a body that is a list": ({"body": []}, "malformed"),
    "an unknown kind": ({"kind": "gossip"}, "unknown_kind"),
    "a sender that nobody knows": ({"sender": "site-z"}, "unknown_party"),
    "a kind that sites may not send": ({"kind": "cohort"}, "wrong_role"),
    "another roster": ({"roster_hash": "0" * 64}, "wrong_roster"),
    "a payload where none is allowed": ({"payload_bytes": 1}, "too_large"),
    "an empty payload with another hash": ({"payload_sha256": "0" * 64}, "malformed"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_message_is_refused_for(changes: dict[str, Any], reason: str) -> None:
    assert _reason(_header(**changes)) == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "malformed"),
        (b"{}", "malformed"),
        (b"[]", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "too_large"),
        (b"[" * 60_000, "malformed"),
        (b'{"a":1,"a":1}', "malformed"),
        (b'{"version":NaN}', "malformed"),
        (b'{"version":1e999}', "malformed"),
        (b" " + _header(), "malformed"),
        (_header().replace(b'"attempt":0', b'"attempt": 0'), "malformed"),
        (_header() + b"\n", "malformed"),
    ],
)
def test_bytes_that_are_no_canonical_header_are_refused(raw: bytes, reason: str) -> None:
    assert _reason(raw) == reason


def test_a_header_of_the_largest_size_passes_and_one_byte_more_is_too_large() -> None:
    spare = MAX_HEADER_BYTES - len(_header(body={"a": ""}))
    largest = _header(body={"a": "x" * spare})
    assert len(largest) == MAX_HEADER_BYTES
    signature = CAST.keys["site-a"].sign(SIGNATURE_CONTEXT + largest)
    assert parse_envelope(largest, signature, roster=CAST.roster).kind is Kind.MASK_KEY

    assert _reason(_header(body={"a": "x" * (spare + 1)})) == "too_large"


def test_a_header_too_large_to_send_is_refused_at_the_sender() -> None:
    header = Header.model_validate(parse_canonical_json(_header(), max_bytes=MAX_HEADER_BYTES))
    large = header.model_copy(update={"body": {"a": "x" * MAX_HEADER_BYTES}})

    with pytest.raises(ParameterError, match="large parts are payload"):
        sign_envelope(large, CAST.keys["site-a"])


def test_the_signature_of_another_party_is_refused() -> None:
    assert _reason(_header(), signer="site-b") == "bad_signature"


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_a_signature_of_zeros_or_another_length_is_refused(signature: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        parse_envelope(_header(), signature, roster=CAST.roster)
    assert caught.value.reason == "bad_signature"


def test_a_signature_without_the_context_is_refused() -> None:
    header_bytes = _header()
    with pytest.raises(PeerError) as caught:
        parse_envelope(header_bytes, CAST.keys["site-a"].sign(header_bytes), roster=CAST.roster)
    assert caught.value.reason == "bad_signature"


def test_an_export_line_reads_back_and_any_flipped_byte_is_refused() -> None:
    message = signed(
        CAST.roster, CAST.keys["site-b"], PLAN, Kind.MASK_KEY, "site-b", {"public_key": "9" * 64}
    )
    line = envelope_to_line(message)
    assert envelope_from_line(line, roster=CAST.roster).message_hash == message.message_hash

    for position in range(0, len(line), 7):
        changed = bytearray(line)
        changed[position] ^= 1
        with pytest.raises(PeerError):
            envelope_from_line(bytes(changed), roster=CAST.roster)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"header": "{}"},
        {"header": 1, "signature": ""},
        {"header": "{}", "signature": "0"},
        {"header": "{}", "signature": "AB"},
        {"header": "{}", "signature": "zz"},
        {"header": "gr\u00fc\u00dfe", "signature": "00"},
        {"header": "\ud800", "signature": "00"},
        {"header": "{}", "signature": "\u0660\u0661"},
    ],
)
def test_an_export_line_of_another_form_is_refused(value: Any) -> None:
    with pytest.raises(PeerError) as caught:
        envelope_from_line(canonical_json(value), roster=CAST.roster)
    assert caught.value.reason == "malformed"
