"""Contributions that nobody paid for: forged, missing, rewritten or too cheap ledger entries."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from protocol_world import NOW, make_ledger, statistics_spec
from simulated_parties import World, make_world, never_opened, refusal
from simulated_site import ROUND_0, Outgoing

from lada_protocol.kinds import Kind
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.method.plan import DEMAND, STATISTICS
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.entries import format_ledger_lines, sign_entry
from lada_secure.privacy.ledger.terms import BudgetCaps


def _tampered_ledger(world: World, site: str, change: Any) -> None:
    """Let one site post a ledger of another content once it was admitted; `change` maps entries."""
    victim = world.sites[site]

    def tamper(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.LEDGER or outgoing.body["first_index"] == 0:
            return outgoing
        first = int(outgoing.body["first_index"])
        entries = change(list(victim.book.entries()))
        body = {
            "first_index": first,
            "head_index": len(entries) - 1,
            "head_hash": entries[-1].entry_hash,
        }
        return Outgoing(body=body, payload=format_ledger_lines(tuple(entries[first:])))

    victim.tamper = tamper


def _ledger_refusal(world: World, site: str) -> FaultBody:
    index = world.auditor.participant.index
    found = index.find(Kind.REFUSAL, sender="auditor", to=site, round_id=0, purpose=STATISTICS)
    assert found is not None, "the auditor countersigned the ledger"
    return parse_body(found, FaultBody)


def test_a_missing_ledger_is_unpaid(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    site = world.sites["site-b"]
    show = site.post_ledger
    site.post_ledger = lambda *which: None if which[1] else show(*which)  # type: ignore[method-assign]
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    refused = refusal(world, ROUND_0)

    assert refused.code == "unpaid"
    assert "site-b" in refused.message
    never_opened(world)


def test_a_contribution_that_names_an_entry_nobody_has_is_unpaid(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def invent(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.CONTRIBUTION:
            return outgoing
        return Outgoing(body={**outgoing.body, "paid_by": "e" * 64}, payload=outgoing.payload)

    world.sites["site-a"].tamper = invent
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == "unpaid"
    never_opened(world)


def test_an_entry_of_another_round_does_not_pay(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    site = world.sites["site-a"]

    def pay_with_round_0(kind: Kind, outgoing: Outgoing) -> Outgoing:
        if kind is not Kind.CONTRIBUTION:
            return outgoing
        paid_by = site.reservation(0).entry_hash
        return Outgoing(body={**outgoing.body, "paid_by": paid_by}, payload=outgoing.payload)

    site.tamper = pay_with_round_0
    due = world.to_sum(round_id=1)
    world.coordinator.add_up(due.attempt, due.sites)

    refused = refusal(world, due.attempt)
    assert refused.code == "unpaid"
    assert "another round" in refused.message


def _without_commit(entries: list[Any]) -> list[Any]:
    return [one for one in entries if one.kind != "commit"]


def test_a_reservation_without_an_output_does_not_pay(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    _tampered_ledger(world, "site-c", _without_commit)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    refused = refusal(world, ROUND_0)

    assert refused.code == "unpaid"
    assert "nothing was committed" in refused.message
    never_opened(world)


def _cheaper(world: World, site: str, **changes: Any) -> Any:
    """The same ledger with a reservation that claims to have cost less, signed by the site."""
    key = world.cast.keys[site]

    def change(entries: list[Any]) -> list[Any]:
        forged: list[Any] = []
        for entry in entries:
            if entry.kind == "reserve":
                entry = replace(entry, **changes)
            if entry.kind == "commit":
                entry = replace(entry, reserve_hash=forged[-1].entry_hash)
            if forged:
                entry = replace(entry, previous_hash=forged[-1].entry_hash)
            forged.append(sign_entry(entry, key))
        return forged

    return change


def test_a_forged_cost_is_not_countersigned_and_does_not_pay(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    forge = _cheaper(
        world, "site-b", epsilon_after=0.001, study_epsilon_after=0.001, epsilon_rdp_after=0.002
    )
    _tampered_ledger(world, "site-b", forge)
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    refused = refusal(world, ROUND_0)

    fault = _ledger_refusal(world, "site-b")
    assert fault.code == "bad_ledger"
    assert "recomputed" in fault.message
    assert refused.code == "unpaid"
    never_opened(world)


def test_an_entry_signed_by_somebody_else_is_not_countersigned_and_does_not_pay(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    stranger = world.cast.keys["site-c"]
    _tampered_ledger(
        world, "site-b", lambda entries: [*entries[:-1], sign_entry(entries[-1], stranger)]
    )
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    refused = refusal(world, ROUND_0)

    assert _ledger_refusal(world, "site-b").code == "bad_ledger"
    assert "the signature is not the site's" in _ledger_refusal(world, "site-b").message
    assert refused.code == "unpaid"
    never_opened(world)


@pytest.mark.parametrize("body", [{}, {"first_index": "0"}, {"first_index": []}])
def test_a_ledger_message_that_cannot_be_read_is_refused_and_stops_nobody(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    world = make_world(tmp_path)

    def spoil(kind: Kind, outgoing: Outgoing) -> Outgoing:
        later = kind is Kind.LEDGER and outgoing.body["first_index"] > 0
        return Outgoing(body=body, payload=b"x") if later else outgoing

    world.sites["site-b"].tamper = spoil
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == "unpaid"
    assert _ledger_refusal(world, "site-b").code == "malformed"


def test_a_ledger_that_was_rewritten_later_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum(round_id=0, purpose=DEMAND)
    copies, body_of = world.auditor.ledgers, "site-a"
    before = copies.raw(body_of, "patients")
    fresh = make_ledger(world.cast, body_of)
    site = world.sites[body_of]
    for entry in site.book.entries()[:1]:
        fresh.decide(
            "approve",
            study_id=world.plan.study_id,
            plan_hash=world.plan.hash,
            expires=NOW + timedelta(days=30),
            decided_by="somebody-else",
            statement=entry.kind,
        )
    entries = fresh.entries()
    body = {"first_index": 0, "head_index": 1, "head_hash": entries[1].entry_hash}
    site.me.post(
        Kind.LEDGER,
        body,
        lambda: format_ledger_lines(entries),
        round_id=0,
        purpose="training",
    )

    world.coordinator.add_up(due.attempt, due.sites)

    assert world.answer(due.attempt).kind is Kind.OPENED
    refused = world.auditor.participant.index.find(
        Kind.REFUSAL, sender="auditor", to=body_of, round_id=0, purpose="training"
    )
    assert refused is not None
    assert parse_body(refused, FaultBody).code == "bad_ledger"
    assert copies.raw(body_of, "patients") == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"event": GaussianEvent(1.0), "parameters": None}, "wrong_noise"),
        ({"parameters": {"l2_sensitivity": 1.0, "std": 16.0}}, "wrong_noise"),
    ],
    ids=["less noise", "smaller sensitivity"],
)
def test_a_release_with_less_noise_than_the_plan_s_does_not_pay(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    world = make_world(tmp_path)
    honest = dict(statistics_spec(world.plan, 0).parameters)
    site = world.sites["site-b"]
    pay = site.pay
    found = {name: one if one is not None else honest for name, one in changes.items()}
    site.pay = lambda round_id: pay(round_id, **found)  # type: ignore[method-assign]
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == code
    never_opened(world)


@pytest.mark.parametrize(
    "caps",
    [
        BudgetCaps(target_delta=1e-3, total_epsilon=50.0, study_epsilon=8.0),
        BudgetCaps(target_delta=1e-5, total_epsilon=200.0, study_epsilon=100.0),
    ],
    ids=["a larger delta", "more than the plan's cap"],
)
def test_a_ledger_over_the_plan_s_budget_does_not_pay(tmp_path: Path, caps: BudgetCaps) -> None:
    world = make_world(tmp_path)
    site = world.sites["site-b"]
    site.book = make_ledger(world.cast, "site-b", caps=caps)
    pay = site.pay

    def spend_first(round_id: int) -> str:
        if caps.study_epsilon > 8.0:
            much = {"event": GaussianEvent(0.5), "purpose": "something_else"}
            parameters = {"l2_sensitivity": 100.0, "std": 50.0}
            site.book.reserve(statistics_spec(world.plan, round_id, parameters=parameters, **much))
        return pay(round_id)

    site.pay = spend_first  # type: ignore[method-assign]
    due = world.to_sum()
    world.coordinator.add_up(ROUND_0, due.sites)

    assert refusal(world, ROUND_0).code == "over_budget"
    never_opened(world)
