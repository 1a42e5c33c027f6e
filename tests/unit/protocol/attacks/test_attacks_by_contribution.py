"""Contributions under other keys and parameters, masks that do not cancel, values out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_world import make_cast, make_participant, make_plan
from sealed_sums import add_sealed
from simulated_parties import (
    World,
    bring_together,
    make_auditor,
    make_world,
    never_opened,
    notes,
    refusal,
)
from simulated_site import ROUND_0, THREE, Outgoing

from lada_clients.auditor.opening import claim_opening
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.secure_aggregation import (
    purpose_length,
    purpose_parameters,
    site_bound_of,
)
from lada_protocol.rounds.tasks import GiveUp
from lada_secure.canonical import sha256_hex
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.masks import MaskKey
from lada_secure.encryption.parameters import aggregation_parameters
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import ParameterError, PeerError
from lada_secure.method.plan import DEMAND, STATISTICS


def _with_payload(world: World, site: str, make: Any) -> None:
    """Let a site seal its contribution its own way."""

    def tamper(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.CONTRIBUTION:
            return outgoing
        return make(outgoing)

    world.sites[site].tamper = tamper


def test_a_contribution_that_names_other_parameters_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    other = aggregation_parameters(length=purpose_length(world.plan, STATISTICS), sum_bound=7)
    key = AggregateKey.generate(other)

    def seal_elsewhere(outgoing: Outgoing) -> Outgoing:
        sealed = seal(
            parse_public_key(key.public_bytes, other), other, np.zeros(other.length, np.int64)
        )
        return Outgoing(body={**outgoing.body, "parameters_digest": other.digest}, payload=sealed)

    _with_payload(world, "site-a", seal_elsewhere)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites, payload=b"whatever")

    assert refusal(world, ROUND_0).code == "wrong_parameters"
    never_opened(world)


def test_a_sealed_vector_under_other_parameters_than_it_names_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agreed = purpose_parameters(world.plan, STATISTICS)
    other = aggregation_parameters(length=agreed.length, sum_bound=agreed.sum_bound - 1)
    assert other.sealed_bytes == agreed.sealed_bytes
    key = AggregateKey.generate(other)

    def seal_elsewhere(outgoing: Outgoing) -> Outgoing:
        sealed = seal(
            parse_public_key(key.public_bytes, other), other, np.zeros(other.length, np.int64)
        )
        return Outgoing(body=outgoing.body, payload=sealed)

    _with_payload(world, "site-a", seal_elsewhere)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites, payload=b"whatever")

    assert refusal(world, ROUND_0).code == "wrong_parameters"
    never_opened(world)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda raw: b"", "wrong_length"),
        (lambda raw: raw[:-1], "wrong_length"),
        (lambda raw: b"XXXX" + raw[4:], "wrong_format"),
        (lambda raw: raw[:36] + b"\xff" * (len(raw) - 36), "coefficient_range"),
        (lambda raw: raw[:36] + bytes(len(raw) - 36), "transparent"),
    ],
    ids=["empty", "cut", "another format", "coefficients too large", "not encrypted"],
)
def test_a_sealed_vector_that_is_not_one_is_refused(tmp_path: Path, spoil: Any, code: str) -> None:
    world = make_world(tmp_path)
    _with_payload(world, "site-b", lambda one: Outgoing(body=one.body, payload=spoil(one.payload)))
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites, payload=b"whatever")

    assert refusal(world, ROUND_0).code == code
    never_opened(world)


def _out_of_range_ends_it(world: World, attempt: Attempt) -> None:
    """The auditor saw the range, told a count and nothing else, and will open nothing more."""
    refused = refusal(world, attempt)
    assert refused.code == "out_of_range"
    index = world.auditor.participant.index
    assert index.at(Kind.OPENED, attempt, sender="auditor") is None
    for name, site in world.sites.items():
        for value in site.vector(attempt).tolist():
            assert abs(value) < 1000 or str(abs(value)) not in refused.message, name
    task = world.coordinator.step()
    assert isinstance(task, GiveUp)
    assert task.code == "opening_refused"
    # The claim stays: the same round and purpose can never be opened with another sum.
    with pytest.raises(PeerError) as caught:
        claim_opening(world.auditor.opening.notes, world.plan.study_id, attempt, "f" * 64)
    assert caught.value.reason == "already_opened"


def test_a_contribution_under_a_key_shown_in_the_auditors_place_is_refused(
    tmp_path: Path,
) -> None:
    """The message says which key it was sealed under, so nothing has to be opened to see it."""
    world = make_world(tmp_path)
    parameters = purpose_parameters(world.plan, STATISTICS)
    foreign = AggregateKey.generate(parameters)

    def seal_under_foreign(outgoing: Outgoing) -> Outgoing:
        sealed = seal(
            parse_public_key(foreign.public_bytes, parameters),
            parameters,
            np.ones(parameters.length, np.int64),
        )
        shown = sha256_hex(foreign.public_bytes)
        return Outgoing(body={**outgoing.body, "opening_key": shown}, payload=sealed)

    _with_payload(world, "site-b", seal_under_foreign)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    refused = refusal(world, ROUND_0)
    assert refused.code == "wrong_opening_key"
    assert "site-b" in refused.message
    never_opened(world)


def test_a_contribution_that_lies_about_its_key_shows_in_the_range(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    parameters = purpose_parameters(world.plan, STATISTICS)
    foreign = AggregateKey.generate(parameters)

    def seal_under_foreign(outgoing: Outgoing) -> Outgoing:
        sealed = seal(
            parse_public_key(foreign.public_bytes, parameters),
            parameters,
            np.ones(parameters.length, np.int64),
        )
        return Outgoing(body=outgoing.body, payload=sealed)

    _with_payload(world, "site-b", seal_under_foreign)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    _out_of_range_ends_it(world, ROUND_0)


def _seal_without_masks(world: World, site: str) -> None:
    """A site that masks with a key nobody else knows: its masks cancel with nobody's."""
    one = world.sites[site]

    def spoil(outgoing: Outgoing) -> Outgoing:
        honest = one.mask_keys[ROUND_0]
        one.mask_keys[ROUND_0] = MaskKey.generate()
        _, sealed = one.seal_for(ROUND_0, tuple(world.sites), one.vector(ROUND_0))
        one.mask_keys[ROUND_0] = honest
        return Outgoing(body=outgoing.body, payload=sealed)

    _with_payload(world, site, spoil)


def test_uncancelled_masks_show_in_the_range_and_expose_nobody(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    _seal_without_masks(world, "site-c")
    due = world.to_sum()
    total = world.coordinator.add_up(ROUND_0, due.sites)

    _out_of_range_ends_it(world, ROUND_0)

    # What the auditor decrypted is the sum plus masks that it does not know.
    key = world.auditor.opening.key(STATISTICS)
    garbage = key.open(world.board.payload(total.message_hash))
    true_sum = np.sum([one.vector(ROUND_0) for one in world.sites.values()], axis=0)
    parameters = purpose_parameters(world.plan, STATISTICS)
    leftover = np.mod(garbage - true_sum, parameters.plain_modulus)
    assert np.count_nonzero(leftover) == leftover.size
    assert len(set(leftover.tolist())) == leftover.size


def test_demand_above_the_quota_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    greedy = world.sites["site-a"]
    vector = greedy.vector
    everything = np.ones(world.plan.pool_size, dtype=np.int64)
    greedy.vector = lambda attempt: (  # type: ignore[method-assign]
        everything if attempt.purpose == DEMAND else vector(attempt)
    )
    due = world.to_sum(DEMAND)
    world.coordinator.add_up(due.attempt, due.sites)

    refused = refusal(world, due.attempt)

    assert refused.code == "over_quota"


def test_negative_demand_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    for site in world.sites.values():
        vector = site.vector
        site.vector = lambda attempt, vector=vector: (  # type: ignore[method-assign, misc]
            -vector(attempt) if attempt.purpose == DEMAND else vector(attempt)
        )
    due = world.to_sum(DEMAND)
    world.coordinator.add_up(due.attempt, due.sites)

    assert refusal(world, due.attempt).code == "out_of_range"


@pytest.mark.parametrize(
    "vector",
    [
        np.full(12, 10**6, dtype=np.int64),
        np.full(12, np.nan),
        np.zeros(0, dtype=np.int64),
        np.zeros(11, dtype=np.int64),
    ],
    ids=["out of bound", "NaN", "empty", "another length"],
)
def test_a_vector_that_breaks_its_bound_is_refused_at_the_sender(
    tmp_path: Path, vector: np.ndarray
) -> None:
    world = make_world(tmp_path)
    assert purpose_length(world.plan, STATISTICS) == 12
    assert site_bound_of(world.plan, STATISTICS) < 10**6
    world.sites["site-a"].vector = lambda _attempt: vector  # type: ignore[method-assign]

    with pytest.raises(ParameterError):
        world.run()

    assert world.coordinator.index.at(Kind.CONTRIBUTION, ROUND_0, sender="site-a") is None


def test_a_wrong_sum_of_honest_contributions_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    sent = world.coordinator.index.all_at(Kind.CONTRIBUTION, ROUND_0)
    parameters = purpose_parameters(world.plan, STATISTICS)
    twice = [world.board.payload(sent[one].message_hash) for one in ("site-a", "site-a", "site-b")]
    world.coordinator.add_up(ROUND_0, due.sites, payload=add_sealed(parameters, twice))

    assert refusal(world, ROUND_0).code == "wrong_sum"
    never_opened(world)


def test_an_auditor_refuses_a_plan_outside_its_settings(tmp_path: Path) -> None:
    cast_ = make_cast()
    world = make_world(tmp_path, cast_=cast_, plan=make_plan(min_cohort=3))
    strict = make_auditor(cast_, world.board, tmp_path / "strict", min_cohort=4)

    assert strict._refused_plan() == "min_cohort 3 is below 4"

    task = world.coordinator.next()
    assert isinstance(task, GiveUp)
    assert task.code == "refused"
    # What the settings say stays with the auditor; a code travels.
    assert task.message == f"auditor refuses the plan: {FailureCode.POLICY.meaning}"
    assert make_participant(cast_, world.board, "site-a", tmp_path / "x").party == "site-a"


def test_after_a_sum_out_of_range_the_key_opens_nothing_more(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    _seal_without_masks(world, "site-c")
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)
    assert refusal(world, ROUND_0).code == "out_of_range"
    # A coordinator that does not give up goes on with the next round, everybody honest.
    world.sites["site-c"].tamper = lambda _kind, outgoing: outgoing
    later = Attempt(round_id=1, purpose=STATISTICS, number=0)
    world.coordinator.post_at(Kind.COHORT, later, {"sites": list(THREE)})
    bring_together(world, later, THREE)
    world.coordinator.add_up(later, THREE)

    assert refusal(world, later).code == "key_retired"
    assert notes(world) == ["study-1-0-statistics"]
