"""Checks of the secure aggregation that messages alone can show, and the ranges of sums."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import (
    check_aggregate_request,
    check_cohort,
    check_mask_keys,
    check_opened_range,
    keys_digest,
    mask_context,
    opened_values,
    purpose_length,
    purpose_parameters,
    site_bound_of,
)
from lada_protocol.wire.envelope import Envelope
from lada_secure.canonical import canonical_json
from lada_secure.encryption.masks import MaskKey
from lada_secure.errors import PeerError
from lada_secure.method.plan import DEMAND, STATISTICS

SITES = ("site-a", "site-b", "site-c", "site-d")
CAST, PLAN = make_cast(SITES), make_plan()
ATTEMPT = Attempt(round_id=0, purpose=STATISTICS, number=0)
KEYS = {site: MaskKey.generate().public_bytes.hex() for site in SITES}


def _message(kind: Kind, sender: str, body: dict[str, Any] | None = None, **place: Any) -> Envelope:
    return signed(
        CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, purpose=STATISTICS, **place
    )


def _cohort(*sites: str) -> Envelope:
    return _message(Kind.COHORT, "coordinator", {"sites": list(sites)})


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (("site-a", "site-b"), "cohort_too_small"),
        (("site-a", "site-b", "site-x"), "unknown_party"),
        (("auditor", "site-a", "site-b"), "unknown_party"),
        (("coordinator", "site-a", "site-b"), "unknown_party"),
        (("site-b", "site-a", "site-c"), "malformed"),
        (("site-a", "site-a", "site-b"), "malformed"),
    ],
)
def test_a_cohort_is_refused(sites: tuple[str, ...], reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        check_cohort(_cohort(*sites), plan=PLAN, roster=CAST.roster)
    assert caught.value.reason == reason


def test_a_cohort_above_the_plan_is_refused() -> None:
    plan = make_plan(max_cohort=3)
    with pytest.raises(PeerError) as caught:
        check_cohort(_cohort(*SITES), plan=plan, roster=CAST.roster)
    assert caught.value.reason == "cohort_too_large"


def test_a_cohort_inside_the_plan_passes() -> None:
    assert check_cohort(_cohort(*SITES), plan=PLAN, roster=CAST.roster) == SITES


def test_the_first_missing_key_is_named() -> None:
    keys = {
        one: _message(Kind.MASK_KEY, one, {"public_key": KEYS[one]}) for one in ("site-a", "site-c")
    }
    with pytest.raises(PeerError, match="site-b") as caught:
        check_mask_keys(SITES, keys, ATTEMPT)
    assert caught.value.reason == "missing_key"


def _complete(**changes: Any) -> MessageIndex:
    """An index with all that a sum needs; `changes` leave out or replace messages."""
    index = MessageIndex(PLAN, CAST.roster)
    opening_key = _message(
        Kind.OPENING_KEY,
        "auditor",
        {"parameters_digest": purpose_parameters(PLAN, STATISTICS).digest, "certificate": "PEM"},
    )
    cohort = _cohort(*SITES)
    clusters = signed(CAST.roster, CAST.keys["coordinator"], PLAN, Kind.CLUSTERS, "coordinator")
    keys = {site: _message(Kind.MASK_KEY, site, {"public_key": KEYS[site]}) for site in SITES}
    digest = keys_digest(keys)
    sent = {}
    for site in SITES:
        body = {
            "keys_digest": digest,
            "opening_key": opening_key.message_hash,
            "paid_by": "e" * 64,
            "parameters_digest": purpose_parameters(PLAN, STATISTICS).digest,
            "rests_on": clusters.message_hash,
            **changes.get(site, {}),
        }
        sent[site] = _message(Kind.CONTRIBUTION, site, body)
    total = _message(
        Kind.SUM,
        "coordinator",
        {"contributions": {site: one.message_hash for site, one in sent.items()}},
    )
    groups: dict[str, list[Envelope]] = {
        "opening_key": [opening_key],
        "clusters": [clusters],
        "cohort": [cohort],
        "keys": list(keys.values()),
        "contributions": list(sent.values()),
        "sum": [total],
    }
    for name, messages in groups.items():
        for message in messages:
            if changes.get(f"without_{name}") not in (True, message.header.sender):
                index.add(message)
    return index


def _check(index: MessageIndex) -> Any:
    return check_aggregate_request(index, ATTEMPT)


def test_a_complete_request_passes() -> None:
    request = _check(_complete())
    assert request.cohort == SITES
    assert set(request.paid_by.values()) == {"e" * 64}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"without_cohort": True}, "missing_message"),
        ({"without_sum": True}, "missing_message"),
        ({"without_keys": "site-b"}, "missing_key"),
        ({"without_contributions": "site-b"}, "missing_contribution"),
        ({"site-c": {"keys_digest": "0" * 64}}, "different_keys"),
        ({"site-c": {"rests_on": "0" * 64}}, "wrong_basis"),
        ({"without_clusters": True}, "missing_message"),
        ({"site-c": {"parameters_digest": "0" * 64}}, "wrong_parameters"),
        ({"without_opening_key": True}, "missing_message"),
        ({"site-c": {"opening_key": "0" * 64}}, "wrong_opening_key"),
        ({"site-c": {"paid_by": "nothing"}}, "malformed"),
    ],
)
def test_a_request_is_refused(changes: dict[str, Any], reason: str) -> None:
    index = _complete(**changes)
    before = len(index)
    with pytest.raises(PeerError) as caught:
        _check(index)
    assert caught.value.reason == reason
    assert len(index) == before


def test_the_keys_digest_follows_sites_and_messages_not_their_order() -> None:
    keys = {site: _message(Kind.MASK_KEY, site, {"public_key": KEYS[site]}) for site in SITES}
    assert keys_digest(keys) == keys_digest(dict(reversed(keys.items())))
    assert keys_digest(keys) != keys_digest({site: keys[site] for site in SITES[:3]})


def test_the_mask_context_names_every_part_of_its_use() -> None:
    base = mask_context(PLAN, CAST.roster, ATTEMPT, "0" * 64)
    others = [
        mask_context(make_plan(seed=2), CAST.roster, ATTEMPT, "0" * 64),
        mask_context(make_plan(study_id="study-2"), CAST.roster, ATTEMPT, "0" * 64),
        mask_context(PLAN, make_cast().roster, ATTEMPT, "0" * 64),
        mask_context(PLAN, CAST.roster, ATTEMPT, "1" * 64),
        *(
            mask_context(PLAN, CAST.roster, other, "0" * 64)
            for other in (
                Attempt(round_id=1, purpose=STATISTICS, number=0),
                Attempt(round_id=0, purpose=DEMAND, number=0),
                Attempt(round_id=0, purpose=STATISTICS, number=1),
            )
        ),
    ]
    assert len({base, *others}) == len(others) + 1


def test_bounds_and_lengths_follow_the_plan() -> None:
    assert purpose_length(PLAN, STATISTICS) == 12
    assert purpose_length(PLAN, DEMAND) == 9
    assert site_bound_of(PLAN, DEMAND) == 1
    assert purpose_parameters(PLAN, DEMAND).sum_bound == 6
    assert purpose_parameters(PLAN, STATISTICS).sum_bound == 6 * site_bound_of(PLAN, STATISTICS)


@pytest.mark.parametrize("edge", [1, -1])
def test_statistics_at_the_bound_pass_and_one_beyond_does_not(edge: int) -> None:
    bound = 4 * site_bound_of(PLAN, STATISTICS)
    check_opened_range([0, edge * bound], PLAN, STATISTICS, 4)
    with pytest.raises(PeerError, match="1 of 2") as caught:
        check_opened_range([0, edge * (bound + 1)], PLAN, STATISTICS, 4)
    assert caught.value.reason == "out_of_range"


@pytest.mark.parametrize(
    ("values", "reason"),
    [([5] + [0] * 8, "out_of_range"), ([-1] + [0] * 8, "out_of_range"), ([2] * 7, "over_quota")],
)
def test_demand_beyond_sites_or_quota_is_refused(values: list[int], reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        check_opened_range(values, PLAN, DEMAND, 4)
    assert caught.value.reason == reason


def test_demand_at_the_quota_passes() -> None:
    check_opened_range([4, 4, 4], PLAN, DEMAND, 4)


@pytest.mark.parametrize(
    "value", [[0] * 11, [0] * 13, {}, [0.0] * 12, [True] * 12, ["0"] * 12, None]
)
def test_an_opened_sum_of_another_form_is_refused(value: Any) -> None:
    with pytest.raises(PeerError) as caught:
        opened_values(canonical_json(value), PLAN, STATISTICS)
    assert caught.value.reason == "malformed"
