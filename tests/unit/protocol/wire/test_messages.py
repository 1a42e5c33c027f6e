"""Bodies: parsed once into frozen types, everything else refused with the field named."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import SLM, make_cast, make_plan, signed

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import (
    CohortBody,
    MaskKeyBody,
    check_body,
    check_told,
    fault_of,
    parse_body,
)
from lada_secure.encryption.masks import MaskKey
from lada_secure.errors import PeerError

CAST, PLAN = make_cast(), make_plan()
D = "d" * 64


def _message(kind: Kind, body: dict[str, Any], sender: str = "site-a", **place: Any) -> Envelope:
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, **place)


GOOD: dict[Kind, dict[str, Any]] = {
    Kind.PLAN: {"certificate": "PEM"},
    Kind.POOL: {},
    Kind.OPENING_KEY: {"parameters_digest": D, "certificate": "PEM"},
    Kind.ACCEPTANCE: {
        "certificate": "PEM",
        "population": "patients",
        "ledger_id": D,
        "head_index": 1,
        "head_hash": D,
        "new_ledger": True,
        "slm": SLM.model_dump(),
    },
    Kind.ADMISSION: {"acceptance": D, "known_entries": 0},
    Kind.REFUSAL: {"code": "policy", "message": "no"},
    Kind.COHORT: {"sites": ["site-a"]},
    Kind.LEDGER: {"first_index": 0, "head_index": 0, "head_hash": D},
    Kind.RECEIPT: {"head_index": 0, "head_hash": D},
    Kind.CONTRIBUTION: {
        "keys_digest": D,
        "opening_key": D,
        "paid_by": D,
        "parameters_digest": D,
        "rests_on": D,
    },
    Kind.SUM: {"contributions": {"site-a": D}},
    Kind.OPENED: {"contributions": {"site-a": D}, "sum_message": D, "largest": 1},
    Kind.QUERY: {"cells": 1},
    Kind.MATRIX: {"parameters_digest": D},
    Kind.SCORES: {"matrix": D, "query": D, "pool_size": 1},
    Kind.PATHS: {"demanded": 1, "written": 1, "wrong": 0, "dropped": 0},
    Kind.TRAINED: {"paid_by": D},
    Kind.TRANSCRIPT: {"messages": 1},
    Kind.CLOSE: {"transcript_sha256": D},
    Kind.FINISHED: {"rounds": 1},
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_body_of_its_kind_passes_and_none_other_does(kind: Kind) -> None:
    check_body(_message(kind, GOOD[kind]))
    with pytest.raises(PeerError) as caught:
        check_body(_message(kind, {**GOOD[kind], "surprise": 1}))
    assert caught.value.reason == "malformed"
    for name in GOOD[kind]:
        less = {key: one for key, one in GOOD[kind].items() if key != name}
        with pytest.raises(PeerError, match=name):
            check_body(_message(kind, less))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.COHORT, {"sites": []}),
        (Kind.COHORT, {"sites": ["Site A"]}),
        (Kind.COHORT, {"sites": "site-a"}),
        (Kind.LEDGER, {"first_index": -1, "head_index": 0, "head_hash": D}),
        (Kind.LEDGER, {"first_index": True, "head_index": 0, "head_hash": D}),
        (Kind.RECEIPT, {"head_index": 0, "head_hash": "D" * 64}),
        (Kind.SUM, {"contributions": {"site-a": "short"}}),
        (Kind.SUM, {"contributions": {"../x": D}}),
        (Kind.QUERY, {"cells": 100_001}),
        (Kind.SCORES, {"matrix": D, "query": D, "pool_size": 0}),
        (Kind.REFUSAL, {"code": "Policy!", "message": "no"}),
        (Kind.REFUSAL, {"code": "policy", "message": "x" * 1001}),
        (Kind.ACCEPTANCE, {"certificate": "x" * 8193, "population": "p"}),
        (Kind.ACCEPTANCE, {"certificate": "PEM", "population": "a b"}),
        (Kind.MASK_KEY, {"public_key": "00"}),
        (Kind.MASK_KEY, {"public_key": "ZZ" * 32}),
    ],
)
def test_values_out_of_range_are_refused(kind: Kind, body: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        check_body(_message(kind, body))
    assert caught.value.reason == "malformed"
    assert caught.value.peer == "site-a"


@pytest.mark.parametrize(
    "point",
    [
        # The points of small order of curve25519, little endian (RFC 7748, section 6.1).
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_a_mask_key_of_small_order_is_refused(point: str) -> None:
    with pytest.raises(PeerError, match="small order"):
        parse_body(_message(Kind.MASK_KEY, {"public_key": point}), MaskKeyBody)


def test_an_honest_mask_key_passes() -> None:
    for _ in range(50):
        public = MaskKey.generate().public_bytes.hex()
        body = parse_body(_message(Kind.MASK_KEY, {"public_key": public}), MaskKeyBody)
        assert body.public_key == public


def test_a_body_is_frozen() -> None:
    body = parse_body(_message(Kind.COHORT, {"sites": ["site-a"]}), CohortBody)
    with pytest.raises(ValueError, match="frozen"):
        body.sites = []  # type: ignore[misc]


def test_a_refusal_that_cannot_be_read_is_a_refusal_all_the_same() -> None:
    assert fault_of(_message(Kind.REFUSAL, {"code": "policy", "message": "too costly"})) == (
        "too costly"
    )
    assert fault_of(_message(Kind.REFUSAL, {"reason": 1})) == (
        "site-a gave no reason that can be read"
    )
    assert "no reason" in fault_of(_message(Kind.REFUSAL, {"code": "a", "message": "\ud800"}))


@pytest.mark.parametrize(("kind", "code"), [(Kind.FAILED, "disk"), (Kind.REFUSAL, "policy")])
def test_a_dialling_party_ends_by_a_known_code_and_without_a_word(kind: Kind, code: str) -> None:
    check_told(_message(kind, {"code": code, "message": ""}), auditor="auditor")
    for body, place in (
        ({"code": code, "message": "records.jsonl:7: too long"}, {}),
        ({"code": "records_of_mrs_smith", "message": ""}, {}),
        # Only the auditor speaks to one site.
        ({"code": code, "message": "patient 17"}, {"to": "site-b"}),
        ({"code": code, "message": ""}, {"to": "auditor"}),
    ):
        with pytest.raises(PeerError, match="expected a known code, no message and no") as refused:
            check_told(_message(kind, body, **place), auditor="auditor")
        assert refused.value.reason == "malformed"


@pytest.mark.parametrize("place", [{"round_id": 3}, {"purpose": "training"}])
def test_a_plan_is_refused_as_a_whole_and_by_the_codes_of_that(place: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="at no place of it"):
        check_told(
            _message(Kind.REFUSAL, {"code": "policy", "message": ""}, **place), auditor="auditor"
        )
    with pytest.raises(PeerError, match="expected a known code"):
        check_told(_message(Kind.REFUSAL, {"code": "disk", "message": ""}), auditor="auditor")
    check_told(_message(Kind.FAILED, {"code": "disk", "message": ""}, **place), auditor="auditor")


def test_what_the_auditor_says_of_a_ledger_or_a_sum_keeps_its_words() -> None:
    said = {"code": "ledger_behind", "message": "put the newest ledger file back"}
    check_told(_message(Kind.OPENING_REFUSED, said), auditor="auditor")
    check_told(_message(Kind.REFUSAL, said, sender="auditor", to="site-a"), auditor="auditor")


def test_a_code_without_a_word_is_read_by_its_meaning() -> None:
    assert fault_of(_message(Kind.REFUSAL, {"code": "disk", "message": ""})) == (
        FailureCode.DISK.meaning
    )
    assert fault_of(_message(Kind.REFUSAL, {"code": "unheard_of", "message": ""})) == "unheard_of"
