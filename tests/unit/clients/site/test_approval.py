"""What people at a site may decide about a plan, and until when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from protocol_world import make_plan

from lada_clients.site.approval import (
    DecisionRefused,
    approval_to_end,
    check_first_decision,
    deadline,
    decision_on,
    left_words,
    standing,
    wait_for_people,
)
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PLAN = make_plan(approve_by="2026-05-08T12:00:00Z")
WITHOUT_TIME = make_plan()
OTHER = "c" * 64


def decided(decision: Decision, plan_hash: str = PLAN.hash) -> DecisionEntry:
    return DecisionEntry(
        index=1,
        previous_hash="0" * 64,
        site="site-a",
        population="patients",
        time="2026-05-03T08:00:00.000000Z",
        signature="",
        study_id=PLAN.study_id,
        plan_hash=plan_hash,
        decision=decision,
        expires="2030-01-31T12:00:00.000000Z",
        decided_by="A. Meyer, DPO",
        statement="",
    )


@pytest.mark.parametrize(
    ("latest", "stands"),
    [
        pytest.param(None, "undecided", id="nobody has decided"),
        pytest.param(decided("approve"), "approved", id="this plan was approved"),
        pytest.param(decided("refuse"), "refused", id="this plan was refused"),
        pytest.param(decided("withdraw"), "withdrawn", id="the site has withdrawn"),
        pytest.param(decided("approve", OTHER), "undecided", id="another plan was approved"),
        pytest.param(decided("refuse", OTHER), "undecided", id="another plan was refused"),
    ],
)
def test_a_decision_is_about_one_plan(latest: DecisionEntry | None, stands: str) -> None:
    assert standing(latest, PLAN) == stands
    assert (decision_on(latest, PLAN) is None) == (stands == "undecided")


def test_a_plan_that_was_changed_can_be_decided_about_anew() -> None:
    check_first_decision(None, PLAN, now=NOW)
    check_first_decision(decided("refuse", OTHER), PLAN, now=NOW)


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (
            "approve",
            r"was approved by A\. Meyer, DPO on 2026-05-03\. .*`lada site withdraw study-1",
        ),
        ("refuse", r"was refused by A\. Meyer, DPO .* final for this plan"),
        ("withdraw", r"was withdrawn from by A\. Meyer, DPO .* final for this plan"),
    ],
)
def test_nobody_decides_twice(decision: Decision, words: str) -> None:
    with pytest.raises(DecisionRefused, match=words) as refused:
        check_first_decision(decided(decision), PLAN, now=NOW)
    assert "Nothing was recorded" in str(refused.value)
    assert refused.value.exit_status == 1


def test_the_last_second_counts_and_the_deadline_itself_does_not() -> None:
    ends = datetime(2026, 5, 8, 12, 0, tzinfo=UTC)
    check_first_decision(None, PLAN, now=ends - timedelta(seconds=1))
    with pytest.raises(DecisionRefused, match="time to decide ended at 2026-05-08T12:00:00Z"):
        check_first_decision(None, PLAN, now=ends)
    check_first_decision(None, WITHOUT_TIME, now=ends + timedelta(days=30))
    with pytest.raises(DecisionRefused, match="the plan expired at 2030-01-31"):
        check_first_decision(None, WITHOUT_TIME, now=datetime(2030, 1, 31, 12, tzinfo=UTC))


def test_a_site_withdraws_from_what_it_takes_part_in_alone() -> None:
    assert approval_to_end(decided("approve", OTHER), study="study-1").plan_hash == OTHER
    with pytest.raises(DecisionRefused, match=r"nobody here has decided .* `lada site refuse s"):
        approval_to_end(None, study="study-1")
    for decision in ("refuse", "withdraw"):
        with pytest.raises(DecisionRefused, match="nothing leaves under it"):
            approval_to_end(decided(decision), study="study-1")  # type: ignore[arg-type]


def test_people_have_until_the_plan_s_time_or_as_long_as_the_coordinator_waits_for_anybody() -> (
    None
):
    assert deadline(PLAN, since=NOW) == datetime(2026, 5, 8, 12, 0, tzinfo=UTC)
    assert deadline(WITHOUT_TIME, since=NOW) == NOW + timedelta(seconds=60)
    wait = wait_for_people("site-a", deadline(PLAN, since=NOW))
    assert (wait.parties, wait.until) == (("site-a",), PLAN.approve_by)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(days=6, hours=3, minutes=59), "6 d 3 h"),
        (timedelta(hours=3, minutes=5), "3 h 5 min"),
        (timedelta(minutes=5, seconds=59), "5 min"),
        (timedelta(seconds=59), "0 min"),
        (timedelta(0), "none"),
        (timedelta(days=-2), "none"),
    ],
)
def test_the_time_that_is_left_is_told_in_two_units(left: timedelta, words: str) -> None:
    assert left_words(NOW + left, now=NOW) == words
