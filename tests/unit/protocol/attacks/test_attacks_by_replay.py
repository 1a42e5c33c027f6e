"""Messages moved elsewhere, swapped keys, two views of one attempt: refused before opening."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed
from simulated_parties import World, bring_together, make_world, never_opened, refusal
from simulated_site import FOUR, ROUND_0, ROUND_0_AGAIN, THREE, Outgoing

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.tasks import Post
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_secure.encryption.masks import MaskKey
from lada_secure.errors import PeerError
from lada_secure.method.plan import DEMAND, STATISTICS


def test_a_contribution_of_another_attempt_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    old = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    world.coordinator.post_at(Kind.ABORT, ROUND_0, {"code": "timeout", "message": "again"})
    world.coordinator.post_at(Kind.COHORT, ROUND_0_AGAIN, {"sites": list(FOUR)})
    bring_together(world, ROUND_0_AGAIN, FOUR)
    new = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0_AGAIN)
    names = {site: new[site].message_hash for site in FOUR}
    names["site-a"] = old["site-a"].message_hash

    world.coordinator.add_up(ROUND_0_AGAIN, FOUR, names=names)

    assert refusal(world, ROUND_0_AGAIN).code == "missing_contribution"
    never_opened(world)


def test_a_contribution_of_another_round_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum(round_id=1)
    old = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    new = world.coordinator.index.all_at(Kind.CONTRIBUTION, due.attempt)
    names = {site: new[site].message_hash for site in THREE}
    names["site-b"] = old["site-b"].message_hash

    world.coordinator.add_up(due.attempt, due.sites, names=names)

    assert refusal(world, due.attempt).code == "missing_contribution"


def test_a_contribution_of_another_purpose_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum(DEMAND)
    old = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    new = world.coordinator.index.all_at(Kind.CONTRIBUTION, due.attempt)
    names = {site: new[site].message_hash for site in THREE}
    names["site-c"] = old["site-c"].message_hash

    world.coordinator.add_up(due.attempt, due.sites, names=names)

    assert refusal(world, due.attempt).code == "missing_contribution"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"study_id": "study-2"}, "wrong_study"), ({"title": "Another plan"}, "wrong_plan")],
)
def test_a_message_of_another_study_or_plan_is_refused(
    changed: dict[str, Any], reason: str
) -> None:
    cast_, plan = make_cast(), make_plan()
    other = make_plan(**changed)
    index = MessageIndex(plan, cast_.roster)
    message = signed(cast_.roster, cast_.keys["site-a"], other, Kind.CONTRIBUTION, "site-a")

    with pytest.raises(PeerError) as caught:
        index.add(parse_envelope(message.header_bytes, message.signature, roster=cast_.roster))

    assert caught.value.reason == reason
    assert len(index) == 0


@pytest.mark.parametrize(
    "moved",
    [{"round_id": 1}, {"attempt": 1}, {"purpose": DEMAND}, {"study_id": "study-2"}],
    ids=["round", "attempt", "purpose", "study"],
)
def test_a_header_moved_to_another_place_loses_its_signature(moved: dict[str, Any]) -> None:
    cast_, plan = make_cast(), make_plan()
    message = signed(
        cast_.roster, cast_.keys["site-a"], plan, Kind.MASK_KEY, "site-a", purpose=STATISTICS
    )
    elsewhere = signed(
        cast_.roster,
        cast_.keys["site-a"],
        plan,
        Kind.MASK_KEY,
        "site-a",
        **{"purpose": STATISTICS, **moved},
    )

    with pytest.raises(PeerError) as caught:
        parse_envelope(elsewhere.header_bytes, message.signature, roster=cast_.roster)

    assert caught.value.reason == "bad_signature"


def test_other_bytes_under_a_signed_header_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    sent = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    other = world.board.payload(sent["site-b"].message_hash)
    world.board.replace(sent["site-a"], other)

    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == "payload_mismatch"
    never_opened(world)


def test_a_mask_key_that_the_coordinator_swapped_has_no_signature() -> None:
    cast_, plan = make_cast(), make_plan()
    ours = MaskKey.generate().public_bytes.hex()
    swapped = signed(
        cast_.roster,
        cast_.keys["coordinator"],
        plan,
        Kind.MASK_KEY,
        "site-a",
        {"public_key": ours},
        purpose=STATISTICS,
    )

    with pytest.raises(PeerError) as caught:
        parse_envelope(swapped.header_bytes, swapped.signature, roster=cast_.roster)

    assert caught.value.reason == "bad_signature"


def _other_key(world: World, site: str) -> Envelope:
    """A second mask key that a colluding site signs for the same attempt."""
    return signed(
        world.cast.roster,
        world.cast.keys[site],
        world.plan,
        Kind.MASK_KEY,
        site,
        {"public_key": MaskKey.generate().public_bytes.hex()},
        purpose=STATISTICS,
    )


def test_a_reader_that_sees_both_keys_of_a_site_refuses_the_second(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run(
        until=lambda one: len(one.coordinator.index.all_at(Kind.MASK_KEY, ROUND_0)) == len(THREE)
    )
    second = _other_key(world, "site-c")
    me = world.sites["site-a"].me
    me.sync()
    known = len(me.index)

    with pytest.raises(PeerError) as caught:
        me.index.add(second)

    assert caught.value.reason == "equivocation"
    assert caught.value.peer == "site-c"
    assert len(me.index) == known


def test_a_swapped_key_shown_to_one_site_only_is_found_before_the_opening(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.settle_auditor()
    for site in world.sites.values():
        site.step()
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": list(THREE)})
    for name in THREE:
        world.sites[name].carry_out(Post(kind=Kind.MASK_KEY, attempt=ROUND_0, sites=THREE))
    swapped = _other_key(world, "site-c")
    # Only site-a is shown the other key, in place of the true one.
    victim = world.sites["site-a"]
    for envelope, _ in world.board.rows:
        if (envelope.kind, envelope.header.sender) != (Kind.MASK_KEY, "site-c"):
            victim.me.index.add(envelope)
    victim.me.index.add(swapped)
    victim.carry_out(Post(kind=Kind.CONTRIBUTION, attempt=ROUND_0, sites=THREE))
    for name in ("site-b", "site-c"):
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.CONTRIBUTION, attempt=ROUND_0, sites=THREE))
    world.coordinator.sync()
    world.settle_auditor()

    world.coordinator.add_up(ROUND_0, THREE)

    refused = refusal(world, ROUND_0)
    assert refused.code == "different_keys"
    assert "site-a" in refused.message
    never_opened(world)


def test_two_different_cohorts_shown_to_two_sites_are_found_before_the_opening(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.settle_auditor()
    for site in world.sites.values():
        site.step()
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": list(FOUR)})
    for name in FOUR:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.MASK_KEY, attempt=ROUND_0, sites=FOUR))
    for name in FOUR:
        world.sites[name].me.sync()
        shown = THREE if name == "site-a" else FOUR
        world.sites[name].carry_out(Post(kind=Kind.CONTRIBUTION, attempt=ROUND_0, sites=shown))
    world.coordinator.sync()
    world.settle_auditor()

    world.coordinator.add_up(ROUND_0, FOUR)

    assert refusal(world, ROUND_0).code == "different_keys"
    never_opened(world)


def test_two_different_rosters_shown_to_two_sites_are_found_before_the_opening(
    tmp_path: Path,
) -> None:
    agreed = make_cast(THREE)
    shown_to_b = replace(
        agreed.roster, parties=tuple(one for one in agreed.roster.parties if one.id != "site-c")
    )
    message = signed(
        shown_to_b,
        agreed.keys["site-b"],
        make_plan(),
        Kind.MASK_KEY,
        "site-b",
        {"public_key": MaskKey.generate().public_bytes.hex()},
        purpose=STATISTICS,
    )

    with pytest.raises(PeerError) as caught:
        parse_envelope(message.header_bytes, message.signature, roster=agreed.roster)

    assert caught.value.reason == "wrong_roster"
    assert caught.value.peer == "site-b"


def test_a_mask_key_of_small_order_is_refused_before_it_is_used(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def small(kind: Kind, outgoing: Outgoing) -> Outgoing:
        return Outgoing(body={"public_key": "00" * 32}) if kind is Kind.MASK_KEY else outgoing

    world.sites["site-c"].tamper = small

    with pytest.raises(PeerError) as caught:
        world.run()

    assert caught.value.reason == "malformed"
    assert caught.value.peer == "site-c"
    assert "small order" in str(caught.value)
