"""Any bytes parse or raise `PeerError`; what parses has one spelling; illegal messages change
nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_world import index_of_zeros

from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import parse_plan
from lada_protocol.rounds.transcript import parse_transcript
from lada_protocol.wire.envelope import (
    SIGNATURE_CONTEXT,
    envelope_from_line,
    envelope_to_line,
    parse_envelope,
)
from lada_protocol.wire.messages import check_body
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.encryption.masks import MaskKey, pairwise_mask
from lada_secure.errors import PeerError

# The fixture is the same study for every example: nothing in it changes.
STUDY = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def _parses(parse: Any, *args: Any, **more: Any) -> bool:
    try:
        parse(*args, **more)
    except PeerError:
        return False
    return True


@settings(deadline=None, max_examples=300)
@given(JSON)
def test_canonical_json_reads_back_and_is_its_only_spelling(value: Any) -> None:
    raw = canonical_json(value)
    assert canonical_json(parse_canonical_json(raw, max_bytes=len(raw))) == raw


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | JSON.map(canonical_json))
def test_any_bytes_parse_or_raise_a_peer_error(raw: bytes) -> None:
    _parses(parse_canonical_json, raw, max_bytes=200)
    assert not _parses(parse_plan, raw)
    assert not _parses(parse_roster, raw)
    assert not _parses(parse_transcript, raw)


@STUDY
@given(raw=st.binary(max_size=300) | JSON.map(canonical_json), signature=st.binary(max_size=70))
def test_any_header_and_signature_parse_or_raise_a_peer_error(
    study: Any, raw: bytes, signature: bytes
) -> None:
    assert not _parses(parse_envelope, raw, signature, roster=study.roster)
    assert not _parses(envelope_from_line, raw, roster=study.roster)


@STUDY
@given(kind=st.sampled_from(list(Kind)), body=st.dictionaries(st.text(), JSON, max_size=3))
def test_any_body_is_checked_without_any_other_error(study: Any, kind: Kind, body: Any) -> None:
    header = {
        "version": 1,
        "kind": kind.value,
        "study_id": "study",
        "plan_hash": "0" * 64,
        "roster_hash": study.roster.hash,
        "round_id": 0,
        "attempt": 0,
        "purpose": "",
        "sender": "bank",
        "to": "",
        "body": body,
        "payload_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "payload_bytes": 0,
    }
    raw = canonical_json(header)
    signature = study.credentials("bank").signing_key.sign(SIGNATURE_CONTEXT + raw)
    if _parses(parse_envelope, raw, signature, roster=study.roster):
        envelope = parse_envelope(raw, signature, roster=study.roster)
        _parses(check_body, envelope)
        line = envelope_to_line(envelope)
        assert envelope_to_line(envelope_from_line(line, roster=study.roster)) == line


@STUDY
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_signed_header_passes(study: Any, position: int, bit: int) -> None:
    message = study.envelope("mask_key", "bank", body={"public_key": "9" * 64})
    changed = bytearray(message.header_bytes)
    changed[position % len(changed)] ^= 1 << bit
    assert not _parses(parse_envelope, bytes(changed), message.signature, roster=study.roster)


@settings(STUDY, max_examples=40)
@given(
    places=st.lists(
        st.tuples(
            st.sampled_from(["acceptance", "mask_key", "trained"]),
            st.sampled_from(["bank", "hospital-a"]),
            st.integers(0, 1),
            st.integers(0, 1),
            st.integers(0, 2),
        ),
        max_size=12,
    )
)
def test_an_index_holds_the_first_message_of_each_place_whatever_comes(
    study: Any, places: list[tuple[str, str, int, int, int]]
) -> None:
    index = index_of_zeros(study.roster)
    first: dict[tuple[str, str, int, int], str] = {}
    for kind, sender, round_id, attempt, content in places:
        message = study.envelope(
            kind, sender, round_id=round_id, attempt=attempt, body={"content": content}
        )
        place = (kind, sender, round_id, attempt)
        fits = first.setdefault(place, message.message_hash) == message.message_hash
        before = len(index)
        assert _parses(index.add, message) == fits
        if not fits:
            assert len(index) == before
        assert index.by_hash(first[place]) is not None
    assert {one.message_hash for one in index} == set(first.values())


@settings(deadline=None, max_examples=25)
@given(
    sites=st.sets(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True), min_size=2, max_size=6),
    length=st.integers(1, 50),
    modulus=st.sampled_from([2, 3, 65537, 2**31 - 1, 4294967291, 2**40 + 15]),
    context=st.binary(min_size=1, max_size=40),
)
def test_masks_cancel_over_any_roster(
    sites: set[str], length: int, modulus: int, context: bytes
) -> None:
    keys = {site: MaskKey.generate() for site in sites}
    masks = [
        pairwise_mask(
            key,
            site,
            {other: one.public_bytes for other, one in keys.items() if other != site},
            context=context,
            length=length,
            modulus=modulus,
        )
        for site, key in keys.items()
    ]
    assert all(int(mask.max()) < modulus for mask in masks)
    total = np.sum([mask.astype(object) for mask in masks], axis=0)
    assert not any(int(entry) % modulus for entry in total)
