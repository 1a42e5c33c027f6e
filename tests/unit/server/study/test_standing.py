"""How a party stands: the state, the code with what it means, and what the others do next."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_world import make_cast, make_plan, signed

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import Envelope
from lada_server.study.standing import Standing, StudyMessages, standing_of, study_code

CAST, PLAN = make_cast(), make_plan()
UNTIL = "2026-02-01T12:10:00Z"


def fault(kind: Kind, sender: str, code: str, **place: Any) -> Envelope:
    body = {"code": code, "message": ""}
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, **place)


def standing(
    party: str,
    *faults: Envelope,
    rounds: dict[tuple[str, str], frozenset[int]] | None = None,
    newest: dict[str, str] | None = None,
    awaited: tuple[str, ...] = (),
    over: bool = False,
) -> Standing:
    sent = {one.header.sender: str(one.kind) for one in faults}
    return standing_of(
        CAST.roster.party(party),
        StudyMessages(newest={**sent, **(newest or {})}, faults=faults, rounds=rounds or {}),
        plan=PLAN,
        awaited=awaited,
        until=UNTIL if party in awaited else None,
        over=over,
    )


def test_a_site_of_which_nothing_was_heard_has_no_word() -> None:
    assert standing("site-a") == Standing(state="no word")
    assert standing("site-a", newest={"site-a": "acceptance"}) == Standing(state="taking part")


def test_whoever_is_waited_for_is_waited_for_until_a_time() -> None:
    found = standing("site-a", newest={"site-a": "acceptance"}, awaited=("site-a",))
    assert found.state == "awaited"
    assert found.next is not None
    assert f"until {UNTIL}, then goes on without it in this round" in found.next
    assert "fewer than 3 sites are left" in found.next
    auditor = standing("auditor", newest={"auditor": "opened"}, awaited=("auditor",))
    assert auditor.next == f"the coordinator waits for it until {UNTIL}, then ends the study"


@pytest.mark.parametrize("code", FailureCode)
def test_an_ending_is_told_with_its_meaning_and_what_mends_it(code: FailureCode) -> None:
    found = standing("site-a", fault(Kind.FAILED, "site-a", str(code)), awaited=("site-a",))
    assert (found.state, found.code, found.meaning) == ("ended", code, code.meaning)
    assert found.next is not None
    assert found.next.endswith(code.mend)
    assert UNTIL in found.next


def test_a_code_that_nobody_knows_is_untold() -> None:
    found = standing("site-a", fault(Kind.FAILED, "site-a", "records_of_mrs_smith"))
    assert found.code == FailureCode.UNTOLD


def test_whoever_goes_on_after_its_end_has_not_ended() -> None:
    earlier = fault(Kind.FAILED, "site-a", "disk")
    assert standing("site-a", earlier, newest={"site-a": "mask_key"}).state == "taking part"
    # Of two ends the last one counts.
    later = fault(Kind.FAILED, "site-a", "ledger", attempt=1)
    assert standing("site-a", earlier, later).code == "ledger"


def test_a_refusal_counts_whoever_made_it() -> None:
    own = standing("site-a", fault(Kind.REFUSAL, "site-a", "over_budget"))
    assert (own.state, own.code) == ("refused", "over_budget")
    assert own.next is not None
    assert own.next.startswith("the study goes on without it if 3 sites or more take part")
    auditors = fault(Kind.REFUSAL, "auditor", "ledger_behind", to="site-a")
    refused = standing("site-a", auditors)
    assert (refused.state, refused.code) == ("refused", "ledger_behind")
    assert standing("auditor", auditors).state == "taking part"
    # A refused part of a ledger refuses no site.
    part = fault(Kind.REFUSAL, "auditor", "bad_ledger", to="site-a", purpose="statistics")
    assert standing("site-a", part, newest={"site-a": "ledger"}).state == "taking part"
    ends = standing("auditor", fault(Kind.REFUSAL, "auditor", "policy"))
    assert ends.next is not None
    assert ends.next.startswith("the study ends")


def test_a_round_that_went_on_without_a_site_is_told_until_it_trains_again() -> None:
    closed = {(str(Kind.TRANSCRIPT), "coordinator"): frozenset({0})}
    missed = standing("site-a", newest={"site-a": "mask_key"}, rounds=closed)
    assert (missed.state, missed.code) == ("missed round", "missed_round")
    assert missed.meaning is not None
    assert missed.meaning.startswith("round 1: the others went through a round without it")
    again = {
        (str(Kind.TRANSCRIPT), "coordinator"): frozenset({0, 1}),
        (str(Kind.TRAINED), "site-a"): frozenset({1}),
    }
    assert standing("site-a", newest={"site-a": "close"}, rounds=again).state == "taking part"
    # At the end it counts that there was one at all.
    over = {**again, (str(Kind.FINISHED), "coordinator"): frozenset({0})}
    found = standing("site-a", newest={"site-a": "close"}, rounds=over, over=True)
    assert (found.state, found.next) == ("missed round", "the study is over")
    whole = {**over, (str(Kind.TRAINED), "site-a"): frozenset({0, 1})}
    done = standing("site-a", newest={"site-a": "close"}, rounds=whole, over=True)
    assert done.state == "done"


def test_the_study_has_the_code_with_which_its_coordinator_ended_it() -> None:
    ended = fault(Kind.FAILED, "coordinator", "withdrawn")
    assert study_code(StudyMessages(faults=(ended,)), "coordinator") == "withdrawn"
    assert (
        study_code(StudyMessages(faults=(fault(Kind.FAILED, "site-a", "disk"),)), "coordinator")
        is None
    )
