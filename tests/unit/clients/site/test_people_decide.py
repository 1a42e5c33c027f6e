"""What people at a site decide about a plan: waited for, bound to it, and told as a code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from protocol_world import (
    NOW,
    make_cast,
    signed,
    statistics_spec,
)
from reviewing_site import PLAN, Reviewing, SiteWithoutModel, reviewing
from slm_files import write_weights

from lada_clients.net.outcomes import Outdated
from lada_protocol.kinds import Kind
from lada_protocol.rounds.tasks import Post
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import LedgerError
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry


class Clock:
    """Ten seconds later at every look; something may happen just before one of them."""

    def __init__(self, happens: Mapping[int, Callable[[], object]]) -> None:
        self.looks = 0
        self._happens = happens

    def __call__(self) -> datetime:
        self.looks += 1
        self._happens.get(self.looks, lambda: None)()
        return NOW + timedelta(seconds=10 * self.looks)


def _person(found: Reviewing, decision: Decision, *, by: str = "A. Meyer, DPO") -> None:
    """Another process of the site records what a person has decided."""
    found.book.decide(
        decision,
        study_id=PLAN.study_id,
        plan_hash=PLAN.hash,
        expires=NOW + timedelta(days=30),
        decided_by=by,
    )


def _asking_people(folder: Path, **happens: Callable[[Reviewing], object]) -> Reviewing:
    """A site that waits for a person. Args: happens: at_N, before look N of its clock."""
    found = reviewing(folder, cap=8.0)
    found.site.policy = found.site.policy.model_copy(update={"approval": "person"})
    at = {int(name.removeprefix("at_")): act for name, act in happens.items()}
    found.site.now = Clock({look: lambda act=act: act(found) for look, act in at.items()})
    return found


def _decisions(found: Reviewing) -> list[tuple[str, str]]:
    entries = found.book.entries()
    return [(one.decision, one.decided_by) for one in entries if isinstance(one, DecisionEntry)]


def test_a_site_waits_until_another_process_has_approved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = _asking_people(tmp_path, at_5=lambda one: _person(one, "approve"))
    found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is not None
    assert found.posted(Kind.REFUSAL) is None
    # The policy adds no decision of its own.
    assert _decisions(found) == [("approve", "A. Meyer, DPO")]
    assert "study study-1 waits for a person here until" in caplog.text
    assert "`lada site refuse study-1`" in caplog.text


def test_a_policy_that_people_change_while_they_decide_is_read_before_anything_is_promised(
    tmp_path: Path,
) -> None:
    found = _asking_people(tmp_path, at_5=lambda one: _person(one, "approve"))
    found.site.outdated = lambda: _decisions(found) != []
    with pytest.raises(Outdated, match="while people here decided"):
        found.site._review()
    # Nobody was told anything, and the decision stands for whoever begins again.
    assert found.posted(Kind.ACCEPTANCE) is found.posted(Kind.REFUSAL) is None
    assert found.book.promised(now=NOW, besides="") == ()
    assert _decisions(found) == [("approve", "A. Meyer, DPO")]


def test_an_approval_that_was_there_before_is_not_waited_for(tmp_path: Path) -> None:
    found = _asking_people(tmp_path)
    _person(found, "approve")
    found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is not None
    # Policy and budget are looked at, and nothing after them.
    assert found.site.now.looks == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("approval", ["person", "policy"])
def test_a_person_s_refusal_is_told_as_a_code_under_either_policy(
    tmp_path: Path, approval: str
) -> None:
    found = _asking_people(tmp_path, at_4=lambda one: _person(one, "refuse"))
    if approval == "policy":
        found.site.policy = found.site.policy.model_copy(update={"approval": "policy"})
        _person(found, "refuse")
    with pytest.raises(StudyFailed, match="a person there decided against the plan"):
        found.site._review()
    assert found.posted(Kind.REFUSAL) == {
        "code": "refused_by_person",
        "message": "",
    }
    assert found.posted(Kind.ACCEPTANCE) is None
    assert _decisions(found) == [("refuse", "A. Meyer, DPO")]
    assert found.reservations() == 0


def test_a_deadline_without_a_decision_is_a_refusal_in_the_ledger_and_on_the_board(
    tmp_path: Path,
) -> None:
    found = _asking_people(tmp_path)
    with pytest.raises(StudyFailed, match="site-a takes no part: nobody there decided in time"):
        found.site._review()
    body = found.posted(Kind.REFUSAL)
    assert body is not None
    assert body["code"] == "undecided"
    assert _decisions(found) == [("refuse", "policy-of-site-a")]
    last = found.book.entries()[-1]
    assert isinstance(last, DecisionEntry)
    assert last.statement.startswith("nobody had decided by 20")
    assert found.reservations() == 0


def test_an_approval_at_the_last_moment_wins_over_the_deadline(tmp_path: Path) -> None:
    found = _asking_people(tmp_path)
    decide = found.book.decide

    def slower(*arguments: object, **more: object) -> object:
        # Between the look at the clock and the ledger's own lock a person has decided.
        found.book.decide = decide  # type: ignore[method-assign]
        _person(found, "approve")
        return decide(*arguments, **more)  # type: ignore[arg-type]

    found.book.decide = slower  # type: ignore[assignment]
    found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is not None
    assert _decisions(found) == [("approve", "A. Meyer, DPO")]


def test_a_study_that_ends_while_people_are_waited_for_is_neither_accepted_nor_refused(
    tmp_path: Path,
) -> None:
    def give_up(found: Reviewing) -> None:
        cast = make_cast()
        body = {"code": "timeout", "message": "the coordinator gave up"}
        key = cast.keys["coordinator"]
        found.board.post(signed(cast.roster, key, PLAN, Kind.FAILED, "coordinator", body))

    found = _asking_people(tmp_path, at_4=give_up)
    with pytest.raises(StudyFailed, match="the coordinator gave up"):
        found.site.run()
    assert found.posted(Kind.ACCEPTANCE) is None
    assert found.posted(Kind.REFUSAL) is None
    assert _decisions(found) == []


def test_a_plan_that_the_policy_refuses_is_not_asked_about(tmp_path: Path) -> None:
    found = _asking_people(tmp_path)
    found.site.policy = found.site.policy.model_copy(update={"epsilon_cap_per_study": 1.0})
    with pytest.raises(StudyFailed, match="the policy allows"):
        found.site._review()
    assert found.site.now.looks == 1  # type: ignore[attr-defined]


def _withdrawn(found: Reviewing) -> dict[str, object]:
    return {
        "code": "withdrawn",
        "message": "",
    }


def test_a_withdrawal_is_told_with_the_next_task_and_nothing_else_is_sent(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)
    found.site._review()
    posted = len(found.board.rows)
    _person(found, "withdraw")
    # A model that was swapped meanwhile must not keep a site from leaving.
    write_weights(tmp_path / "slm" / "model.safetensors", b"others")
    with pytest.raises(StudyFailed, match="a person there withdrew it from the study"):
        found.site.run()
    assert found.posted(Kind.REFUSAL) == _withdrawn(found)
    assert len(found.board.rows) == posted + 1
    with pytest.raises(StudyFailed, match="a person there withdrew it"):
        found.site.run()
    assert len(found.board.rows) == posted + 1


def test_a_withdrawal_between_two_steps_that_spend_is_no_ledger_fault(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)
    found.site._review()

    class Training(SiteWithoutModel):
        def _next_task(self) -> Post:
            return Post(kind=Kind.TRAINED)

        def _distil(self, round_id: int) -> None:
            _person(found, "withdraw")
            self.book.reserve(statistics_spec(PLAN, round_id))

    found.site.__class__ = Training
    with pytest.raises(StudyFailed, match="a person there withdrew it"):
        found.site.run()
    assert found.posted(Kind.REFUSAL) == _withdrawn(found)
    assert found.reservations() == 0


def test_a_fault_of_the_ledger_itself_stays_one(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)
    found.site._review()

    class Broken(SiteWithoutModel):
        def _next_task(self) -> Post:
            raise LedgerError("it is damaged")

    found.site.__class__ = Broken
    with pytest.raises(LedgerError, match="it is damaged"):
        found.site.run()
    assert found.posted(Kind.REFUSAL) is None


@pytest.mark.parametrize("decision", ["refuse", "withdraw"])
def test_what_a_person_decides_while_the_budget_is_promised_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: Decision
) -> None:
    found = _asking_people(tmp_path)
    found.site.policy = found.site.policy.model_copy(update={"approval": "policy"})
    plain = found.site.book.promise

    def promised(*events: Any, **plan: Any) -> None:
        plain(*events, **plan)
        if decision == "withdraw":
            _person(found, "approve")
        _person(found, decision)

    monkeypatch.setattr(
        type(found.site.book), "promise", lambda _, *some, **more: promised(*some, **more)
    )
    with pytest.raises(StudyFailed, match="takes no part"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None
    assert _decisions(found)[-1] == (decision, "A. Meyer, DPO")


def test_a_refusal_of_the_policy_that_a_crash_left_is_not_told_as_undecided(tmp_path: Path) -> None:
    found = _asking_people(tmp_path)
    # The policy has changed since.
    _person(found, "refuse", by="policy-of-site-a")
    with pytest.raises(StudyFailed, match="takes no part"):
        found.site._review()
    assert found.posted(Kind.REFUSAL) == {"code": "policy", "message": ""}
