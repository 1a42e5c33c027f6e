"""Uplink: the plan's section, the split of the pool, the forms of question and answer."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import UPLINK, make_plan

from lada_protocol.plan import MAX_PLAN_BYTES, StudyPlan, parse_plan
from lada_protocol.rounds.llm_transfer import (
    SiteRationale,
    inquiry_bytes,
    parse_inquiry,
    parse_site_rationales,
    site_rationales_bytes,
)
from lada_protocol.rounds.secure_aggregation import (
    check_opened_range,
    purpose_length,
    purpose_parameters,
    purposes_of,
    site_bound_of,
)
from lada_protocol.wire.messages import InquiryBody
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LocalProtocolError, PeerError
from lada_secure.method.holdout import HoldoutScore, holdout_agrees
from lada_secure.method.plan import (
    CONFIDENCE_EXCESS,
    DEMAND,
    STATISTICS,
    TransferPlan,
    split_pool,
    transfer_of,
)

PLAN = make_plan(uplink=UPLINK)
SPLIT = split_pool(PLAN)


def with_section(**changes: Any) -> bytes:
    """The bytes of a plan whose LLM transfer section has other values."""
    plan: Any = parse_canonical_json(PLAN.to_bytes(), max_bytes=MAX_PLAN_BYTES)
    plan["uplink"].update(changes)
    return canonical_json(plan)


def test_a_plan_without_uplink_has_the_bytes_that_it_always_had() -> None:
    plan = make_plan()
    assert b"uplink" not in plan.to_bytes()
    assert parse_plan(plan.to_bytes()).uplink is None
    assert purposes_of(plan) == (STATISTICS, DEMAND)
    with pytest.raises(LocalProtocolError):
        transfer_of(plan)


def test_an_uplink_that_is_null_is_another_spelling_and_refused() -> None:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    with pytest.raises(PeerError) as caught:
        parse_plan(canonical_json({**plan, "uplink": None}))
    assert caught.value.reason == "bad_plan"


def test_a_plan_with_uplink_reads_back_and_opens_a_third_purpose() -> None:
    assert parse_plan(PLAN.to_bytes()) == PLAN
    assert parse_plan(PLAN.to_bytes()).hash == PLAN.hash != make_plan().hash
    assert purposes_of(PLAN) == (STATISTICS, DEMAND, CONFIDENCE_EXCESS)


@pytest.mark.parametrize(
    "changes",
    [
        {"bar": 1.0},
        {"bar": -0.1},
        {"clip": 0.0},
        {"clip": 1.1},
        {"clip": 0.05},
        {"integer_scale": 0},
        {"integer_scale": 1_000_001},
        {"holdout": 0},
        {"holdout": 9},
        {"candidates": 0},
        {"budget": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"replay_batch_size": -1},
        {"learning_rate": 0.0},
        {"contrastive_weight": -0.1},
        {"contrastive_form": "other"},
        {"first_round": -1},
        {"last_round": 1},
        {"adapter_rank": 0},
        {"adapter_layers": 0},
        {"adapter_targets": "q_proj"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_section_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        parse_plan(with_section(**changes))
    assert caught.value.reason == "bad_plan"


@pytest.mark.parametrize(
    ("first", "last", "rounds_with"),
    [(0, True, [0, 1]), (0, False, [0]), (1, True, [1]), (1, False, []), (5, True, [])],
)
def test_first_and_last_round_say_when_there_is_an_uplink(
    first: int, last: bool, rounds_with: list[int]
) -> None:
    plan = make_plan(uplink=UPLINK.model_copy(update={"first_round": first, "last_round": last}))
    assert [one for one in range(plan.rounds) if plan.transfer_in(one) is not None] == rounds_with


def test_the_split_is_fixed_by_the_pool_and_its_parts_are_disjoint() -> None:
    assert len(SPLIT.holdout) == UPLINK.holdout
    assert len(SPLIT.candidates) == UPLINK.candidates
    assert not set(SPLIT.holdout) & set(SPLIT.candidates)
    assert split_pool(make_plan(uplink=UPLINK, seed=99, rounds=7)) == SPLIT
    other = make_plan(uplink=UPLINK, pool_sha256="3" * 64)
    assert split_pool(other) != SPLIT
    # The three smallest of SHA-256("lada/1/uplink/" "1"*64 "/" index), worked out by hand.
    assert SPLIT.holdout == (1, 3, 5)


def test_a_small_pool_gives_all_that_is_left_as_candidates() -> None:
    plan = make_plan(uplink=UPLINK.model_copy(update={"candidates": 1_000}))
    split = split_pool(plan)
    assert sorted((*split.holdout, *split.candidates)) == list(range(plan.pool_size))


def test_the_bounds_of_advantages_follow_from_the_plan() -> None:
    assert purpose_length(PLAN, CONFIDENCE_EXCESS) == PLAN.pool_size
    assert site_bound_of(PLAN, CONFIDENCE_EXCESS) == 5
    assert purpose_parameters(PLAN, CONFIDENCE_EXCESS).sum_bound == 5 * PLAN.max_cohort


def opened_with(**values: int) -> list[int]:
    """An opened sum that is zero but at a candidate and at a held-out sample."""
    vector = [0] * PLAN.pool_size
    vector[SPLIT.candidates[1]] = values.get("candidate", 0)
    vector[SPLIT.holdout[1]] = values.get("holdout", 0)
    return vector


def test_opened_advantages_in_range_pass() -> None:
    check_opened_range(opened_with(candidate=15), PLAN, CONFIDENCE_EXCESS, 3)


@pytest.mark.parametrize("values", [{"candidate": 16}, {"candidate": -1}, {"holdout": 1}], ids=str)
def test_opened_advantages_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(PeerError) as caught:
        check_opened_range(opened_with(**values), PLAN, CONFIDENCE_EXCESS, 3)
    assert caught.value.reason == "out_of_range"


OPENED = opened_with(candidate=4)
ASKABLE = SPLIT.candidates[1]


def asked(raw: bytes, samples: int, plan: StudyPlan = PLAN) -> tuple[int, ...]:
    """Parse an inquiry."""
    body = InquiryBody(opened="5" * 64, samples=samples)
    return parse_inquiry(raw, body, plan=plan, opened=OPENED)


def test_an_inquiry_reads_back() -> None:
    assert asked(inquiry_bytes([ASKABLE]), 1) == (ASKABLE,)
    assert asked(inquiry_bytes([]), 0) == ()


@pytest.mark.parametrize(
    ("raw", "samples", "reason"),
    [
        (b"{}", 0, "malformed"),
        (b'["1"]', 1, "malformed"),
        (b"[true]", 1, "malformed"),
        (b"[2,1]", 2, "malformed"),
        (b"[1,1]", 2, "malformed"),
        (b"[ ]", 0, "malformed"),
        (b"[]", 1, "malformed"),
        (b"[-1]", 1, "bad_inquiry"),
        (b"[999]", 1, "bad_inquiry"),
        (inquiry_bytes([SPLIT.holdout[0]]), 1, "bad_inquiry"),
        (inquiry_bytes([SPLIT.candidates[0]]), 1, "bad_inquiry"),
        (inquiry_bytes(SPLIT.candidates[:3]), 3, "bad_inquiry"),
    ],
)
def test_an_inquiry_of_another_form_is_refused(raw: bytes, samples: int, reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        asked(raw, samples)
    assert caught.value.reason == reason


def test_site_paths_read_back_in_pool_order() -> None:
    paths = [SiteRationale(sample=5, path="b"), SiteRationale(sample=2, path="a")]
    assert parse_site_rationales(site_rationales_bytes(paths), asked=(2, 3, 5)) == (
        paths[1],
        paths[0],
    )
    assert parse_site_rationales(site_rationales_bytes([]), asked=(2,)) == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"[1]",
        b'[{"path":"a"}]',
        b'[{"path":"a","sample":2,"x":1}]',
        b'[{"path":"a","sample":9}]',
        b'[{"path":"a","sample":"2"}]',
        b'[{"path":"","sample":2}]',
        b'[{"path":1,"sample":2}]',
        b'[{"path":"a","sample":2},{"path":"b","sample":2}]',
        b'[{"path":"a","sample":5},{"path":"b","sample":2}]',
        canonical_json([{"path": "a" * 8193, "sample": 2}]),
        b'[{"path":"a","sample":true}]',
    ],
)
def test_site_paths_of_another_form_are_refused(raw: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        parse_site_rationales(raw, asked=(2, 5))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((3, 100), (4, 101), True),
        ((3, 100), (3, 101), True),
        ((3, 100), (4, 100), False),
        ((3, 100), (3, 100), False),
        ((3, 100), (2, 900), False),
        ((3, 100), (4, 99), False),
    ],
)
def test_the_hold_out_s_rule(before: tuple[int, int], after: tuple[int, int], kept: bool) -> None:
    scores = [HoldoutScore(right=one[0], confidence=one[1]) for one in (before, after)]
    assert holdout_agrees(*scores) is kept


def test_a_clip_below_one_step_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="every advantage would be 0"):
        TransferPlan(**{**UPLINK.model_dump(), "clip": 0.05})
