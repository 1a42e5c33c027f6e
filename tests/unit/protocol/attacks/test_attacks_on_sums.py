"""Sums that are none, invented sites, second opened sums: refused before anything is
opened.

The auditor is the real one; the coordinator and the sites do whatever the test wants.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_world import make_cast, make_plan, signed
from simulated_parties import bring_together, make_auditor, make_world, never_opened, notes, refusal
from simulated_site import FOUR, ROUND_0, ROUND_0_AGAIN, THREE

from lada_clients.auditor.opening import claim_opening
from lada_protocol.kinds import Kind
from lada_protocol.party_files import read_roster
from lada_protocol.rounds.tasks import Post
from lada_protocol.wire.envelope import parse_envelope
from lada_secure.encryption.masks import MaskKey
from lada_secure.errors import ParameterError, PeerError
from lada_secure.method.plan import STATISTICS


def test_one_site_s_ciphertext_presented_as_the_sum_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    victim = world.coordinator.index.at(Kind.CONTRIBUTION, ROUND_0, sender="site-a")
    assert victim is not None
    alone = world.board.payload(victim.message_hash)

    world.coordinator.add_up(ROUND_0, due.sites, payload=alone)

    assert refusal(world, ROUND_0).code == "wrong_sum"
    never_opened(world)


def test_a_sum_that_leaves_a_site_out_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    index = world.coordinator.index
    sent = index.all_at(Kind.CONTRIBUTION, ROUND_0)
    names = {site: sent[site].message_hash for site in THREE}

    world.coordinator.add_up(ROUND_0, THREE, names=names)

    assert refusal(world, ROUND_0).code == "wrong_cohort"
    never_opened(world)


def test_a_sum_counting_one_site_twice_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    sent = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    names = {site: sent[site].message_hash for site in due.sites}
    names["site-b"] = names["site-a"]

    world.coordinator.add_up(ROUND_0, due.sites, names=names)

    assert refusal(world, ROUND_0).code == "missing_contribution"
    never_opened(world)


def test_a_cohort_of_one_is_refused_by_the_site_and_by_the_auditor(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.admit_all()
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": ["site-a"]})

    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()

    assert caught.value.reason == "cohort_too_small"
    world.coordinator.post_at(Kind.SUM, ROUND_0, {"contributions": {}}, payload=b"sum")
    assert refusal(world, ROUND_0).code == "cohort_too_small"
    never_opened(world)


def test_a_roster_of_one_real_and_many_invented_sites_is_not_the_pinned_one(
    tmp_path: Path,
) -> None:
    agreed = make_cast(THREE)
    invented = make_cast(("site-a", "ghost-1", "ghost-2"))
    path = tmp_path / "roster.json"
    path.write_bytes(invented.roster.to_bytes())

    with pytest.raises(ParameterError, match="roster_sha256 pins"):
        read_roster(path, pinned=agreed.roster.hash)


def test_a_message_under_an_invented_roster_is_refused(tmp_path: Path) -> None:
    agreed = make_cast(THREE)
    invented = make_cast(("site-a", "ghost-1", "ghost-2"))
    plan = make_plan()
    cohort = signed(
        invented.roster,
        agreed.keys["coordinator"],
        plan,
        Kind.COHORT,
        "coordinator",
        {"sites": ["ghost-1", "ghost-2", "site-a"]},
        purpose=STATISTICS,
    )

    with pytest.raises(PeerError) as caught:
        parse_envelope(cohort.header_bytes, cohort.signature, roster=agreed.roster)

    assert caught.value.reason == "wrong_roster"


def test_a_cohort_with_invented_sites_is_refused_by_the_site_and_by_the_auditor(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    world.admit_all()
    ghosts = ["ghost-1", "ghost-2", "site-a"]
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": ghosts})

    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()

    assert caught.value.reason == "unknown_party"
    assert world.coordinator.index.at(Kind.MASK_KEY, ROUND_0, sender="site-a") is None
    names = dict.fromkeys(ghosts, "0" * 64)
    world.coordinator.post_at(Kind.SUM, ROUND_0, {"contributions": names}, payload=b"sum")
    assert refusal(world, ROUND_0).code == "unknown_party"
    never_opened(world)


def test_a_cohort_that_names_one_site_many_times_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.admit_all()
    world.coordinator.post_at(Kind.COHORT, ROUND_0, {"sites": ["site-a"] * 3})

    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()

    assert caught.value.reason == "malformed"


def test_invented_sites_that_share_one_mask_key_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=0, purpose=STATISTICS)
        )
    )
    # The board now holds honest keys; in a second attempt two colluding sites use one key.
    world.coordinator.post_at(Kind.ABORT, ROUND_0, {"code": "timeout", "message": "again"})
    world.coordinator.post_at(Kind.COHORT, ROUND_0_AGAIN, {"sites": list(THREE)})
    shared = MaskKey.generate()
    for name in ("site-b", "site-c"):
        world.sites[name].mask_keys[ROUND_0_AGAIN] = shared
    for name in THREE:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.MASK_KEY, attempt=ROUND_0_AGAIN, sites=THREE))

    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()

    assert caught.value.reason == "repeated_key"


def test_a_site_sends_nothing_to_an_attempt_after_the_opening(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    world.coordinator.step()
    assert world.answer(ROUND_0).kind is Kind.OPENED
    world.coordinator.post_at(Kind.COHORT, ROUND_0_AGAIN, {"sites": list(THREE)})

    with pytest.raises(PeerError) as caught:
        world.sites["site-a"].step()

    assert caught.value.reason == "already_opened"
    assert world.coordinator.index.at(Kind.MASK_KEY, ROUND_0_AGAIN, sender="site-a") is None


@pytest.mark.parametrize("restarted", [False, True], ids=["same process", "after a restart"])
def test_a_second_opening_for_a_subset_is_refused(tmp_path: Path, restarted: bool) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    world.coordinator.step()
    assert world.answer(ROUND_0).kind is Kind.OPENED
    before = notes(world)
    world.coordinator.post_at(Kind.COHORT, ROUND_0_AGAIN, {"sites": list(THREE)})
    bring_together(world, ROUND_0_AGAIN, THREE)
    world.coordinator.add_up(ROUND_0_AGAIN, THREE)
    if restarted:
        world.auditor = make_auditor(world.cast, world.board, tmp_path / "auditor")

    refused = refusal(world, ROUND_0_AGAIN)

    assert refused.code == "already_opened"
    assert notes(world) == before


def test_an_opening_that_was_claimed_before_a_crash_opens_the_same_sum_only(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    total = world.coordinator.add_up(ROUND_0, due.sites)
    claim_opening(world.auditor.opening.notes, world.plan.study_id, ROUND_0, total.message_hash)

    assert world.answer(ROUND_0).kind is Kind.OPENED


def test_the_claim_of_another_sum_is_final_even_before_anything_was_opened(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    claim_opening(world.auditor.opening.notes, world.plan.study_id, ROUND_0, "f" * 64)

    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == "already_opened"
