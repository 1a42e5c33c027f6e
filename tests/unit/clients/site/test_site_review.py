"""A site's review: what it accepts with, and what it refuses before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from protocol_world import (
    NOW,
    Cast,
    MemoryBoard,
    make_cast,
    make_ledger,
    make_participant,
    make_plan,
    signed,
    statistics_spec,
)
from rich.console import Console
from slm_files import write_slm, write_weights

from lada_clients.net.outcomes import Outdated
from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.gates.files import RecordFiles, RecordsChanged, SiteFiles, file_digests
from lada_clients.site.gates.policy import study_caps
from lada_clients.site.gates.slm import ModelChanged
from lada_clients.site.memory import SiteMemory
from lada_clients.site.service import Site
from lada_clients.site.settings import SitePolicy, SiteSettings, SlmSettings
from lada_clients.site.training_display import TrainingDisplay
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.tasks import Post
from lada_protocol.run_loop import StudyFailed
from lada_protocol.wire.messages import AcceptanceBody, FaultBody, parse_body
from lada_secure.data.records import RecordFile
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.method.mechanisms import planned_epsilon, planned_events
from lada_secure.method.plan import STATISTICS
from lada_secure.models.identity import SlmPlan
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry, ReserveEntry
from lada_secure.privacy.ledger.memory import MemoryLedger

PLAN = make_plan(max_cohort=3)
ATTEMPT = Attempt(round_id=0, purpose=STATISTICS, number=0)


class SiteWithoutModel(Site):
    """The real service; nothing is measured with a model."""

    def _check_with_model(self) -> None:
        """The gate's second half has its own tests."""


@dataclass(kw_only=True)
class Reviewing:
    """A site that has joined a study, with a ledger that earlier studies have used."""

    site: SiteWithoutModel
    book: MemoryLedger
    board: MemoryBoard

    def posted(self, kind: Kind) -> dict[str, object] | None:
        """The body of what the site has posted of a kind."""
        found = self.site.participant.index.find(kind, sender="site-a")
        return None if found is None else dict(found.header.body)

    def reservations(self) -> int:
        """Payments in the ledger."""
        return sum(isinstance(one, ReserveEntry) for one in self.book.entries())


def _spend(book: MemoryLedger, plan: StudyPlan, rounds: int) -> None:
    book.decide(
        "approve",
        study_id=plan.study_id,
        plan_hash=plan.hash,
        expires=NOW + timedelta(days=30),
        decided_by="policy",
    )
    for round_id in range(rounds):
        book.commit(book.reserve(statistics_spec(plan, round_id)), b"noised")


def _reviewing(folder: Path, *, cap: float, earlier_rounds: int = 0) -> Reviewing:
    cast: Cast = make_cast()
    board = MemoryBoard(cast.roster)
    body = {"certificate": cast.certificates["coordinator"]}
    raw = PLAN.to_bytes()
    key = cast.keys["coordinator"]
    board.post(signed(cast.roster, key, PLAN, Kind.PLAN, "coordinator", body, raw), raw)
    me = make_participant(cast, board, "site-a", folder)
    me.join(wait_s=5.0)
    folder.mkdir(exist_ok=True)
    (folder / "records.jsonl").write_text("{}\n")
    write_slm(folder / "slm")
    settings = SiteSettings(
        party="site-a",
        coordinator="localhost:1",
        identity=folder,
        roster=folder,
        policy=folder,
        state_dir=folder,
        records=folder / "records.jsonl",
        cache_dir=folder,
        model=SlmSettings(slm="slm", licence="Apache-2.0"),
    )
    book = make_ledger(cast, "site-a")
    if earlier_rounds:
        _spend(book, make_plan(study_id="earlier", rounds=earlier_rounds), earlier_rounds)
    site = SiteWithoutModel(
        participant=me,
        settings=settings,
        policy=SitePolicy(
            roster_sha256=cast.roster.hash,
            population="patients",
            target_delta=1e-5,
            epsilon_cap_per_study=8.0,
            epsilon_cap_total=cap,
            max_records_per_unit=4,
        ),
        files=SiteFiles(
            records=RecordFile(name="records.jsonl", records=(), lines=(), faults=()),
            held_out=None,
        ),
        record_files=RecordFiles(
            settings=settings,
            digests=file_digests(settings),
            folder=me.open_folder(),
            key=b"k" * 32,
        ),
        book=book,
        secrets=SecretFolder(folder=folder / "secrets"),
        memory=SiteMemory(folder=me.open_folder()),
        now=lambda: NOW,
        outdated=lambda: False,
        display=TrainingDisplay(Console(quiet=True), epsilon_cap=0.0),
    )
    return Reviewing(site=site, book=book, board=board)


def test_a_new_site_accepts_with_the_head_of_its_new_ledger(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=8.0)
    found.site._review()
    head = found.book.entries()[-1]
    body = found.posted(Kind.ACCEPTANCE)
    assert body is not None
    assert AcceptanceBody.model_validate(body) == AcceptanceBody(
        certificate=found.site.participant.certificate,
        population="patients",
        ledger_id=found.book.identity.ledger_id,
        head_index=1,
        head_hash=head.entry_hash,
        new_ledger=True,
        slm=found.site._slm.identity(),
    )
    assert isinstance(found.book.entries()[-1], DecisionEntry)


def test_a_site_that_has_spent_does_not_say_that_its_ledger_is_new(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=8.0, earlier_rounds=1)
    found.site._review()
    body = found.posted(Kind.ACCEPTANCE)
    assert body is not None
    assert body["new_ledger"] is False


def test_a_plan_that_would_pass_the_budget_over_all_studies_is_refused_with_the_numbers(
    tmp_path: Path,
) -> None:
    alone = planned_epsilon(PLAN)
    fits = _reviewing(tmp_path / "fits", cap=alone + 1e-6)
    fits.site._review()
    assert fits.posted(Kind.ACCEPTANCE) is not None

    spent = _reviewing(tmp_path / "spent", cap=alone + 1e-6, earlier_rounds=1)
    paid = spent.reservations()
    with pytest.raises(StudyFailed) as caught:
        spent.site._review()

    assert spent.posted(Kind.ACCEPTANCE) is None
    message = spent.site.participant.index.find(Kind.REFUSAL, sender="site-a")
    assert message is not None
    fault = parse_body(message, FaultBody)
    assert fault.code == "over_budget"
    before = spent.book.epsilon_spent(1e-5)
    assert f"epsilon {before:.3f} of {alone + 1e-6:g} over all studies is spent on patients" in (
        str(caught.value)
    )
    assert "with the whole of this study it would be" in str(caught.value)
    # The numbers are for this site's screen and ledger; the others are told the code alone.
    assert fault.message == ""
    assert spent.reservations() == paid
    decision = spent.book.entries()[-1]
    assert isinstance(decision, DecisionEntry)
    assert decision.decision == "refuse"


def _promise(book: MemoryLedger, plan: StudyPlan) -> None:
    """Another process of the site has joined a study."""
    book.promise(
        tuple(planned_events(plan).values()),
        study_id=plan.study_id,
        plan_hash=plan.hash,
        expires=NOW + timedelta(days=30),
    )


def test_a_study_that_is_accepted_was_promised_its_whole_budget(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
    found.site._review()
    (promise,) = found.book.promised(now=NOW)
    assert promise.plan_hash == PLAN.hash
    assert promise.events == tuple(planned_events(PLAN).values())
    assert found.reservations() == 0


def test_what_another_running_study_may_still_spend_is_not_there_for_this_one(
    tmp_path: Path,
) -> None:
    found = _reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
    _promise(found.book, make_plan(study_id="beside", rounds=1))
    with pytest.raises(StudyFailed, match="whole of this study and what beside may still spend"):
        found.site._review()
    body = found.posted(Kind.REFUSAL)
    assert body is not None
    assert body["code"] == "over_budget"
    assert [one.study_id for one in found.book.promised(now=NOW)] == ["beside"]


def test_a_study_that_another_process_joins_while_this_one_is_looked_at_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
    found.book._caps = study_caps(PLAN, found.site.policy)
    beside = make_plan(study_id="beside", rounds=1)
    monkeypatch.setattr(
        SiteWithoutModel, "_check_with_model", lambda _: _promise(found.book, beside)
    )
    with pytest.raises(StudyFailed, match="what beside may still spend"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None
    decision = found.book.entries()[-1]
    assert isinstance(decision, DecisionEntry)
    assert decision.decision == "refuse"


def test_a_policy_s_own_faults_come_before_the_budget(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=0.1)
    found.site.policy = found.site.policy.model_copy(update={"epsilon_cap_per_study": 1.0})
    with pytest.raises(StudyFailed, match=r"its epsilon cap is 8\.0"):
        found.site._review()
    body = found.posted(Kind.REFUSAL)
    assert body is not None
    assert body["code"] == "policy"


def test_records_that_change_pause_the_site_before_it_reserves_anything(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=8.0)
    found.site._review()
    records = tmp_path / "records.jsonl"
    kept = records.read_bytes()
    records.write_bytes(kept + b"{}\n")
    posted = len(found.board.rows)

    with pytest.raises(RecordsChanged):
        found.site._contribute(ATTEMPT, ("site-a",))

    assert found.reservations() == 0
    assert len(found.board.rows) == posted
    records.write_bytes(kept)
    found.site.record_files.check()


def test_a_model_that_the_policy_does_not_allow_is_refused_before_anything_is_posted(
    tmp_path: Path,
) -> None:
    found = _reviewing(tmp_path, cap=8.0)
    found.site.policy = found.site.policy.model_copy(
        update={"model": SlmPlan(families=("GPT2LMHeadModel",))}
    )
    with pytest.raises(ParameterError, match="its architecture is LlamaForCausalLM, allowed are"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None
    assert found.posted(Kind.REFUSAL) is None
    assert found.reservations() == 0


def test_weights_that_change_while_the_gate_loads_them_are_not_signed_for(tmp_path: Path) -> None:
    found = _reviewing(tmp_path, cap=8.0)

    class Swapping(SiteWithoutModel):
        def _check_with_model(self) -> None:
            write_weights(tmp_path / "slm" / "model.safetensors", b"others")

    found.site.__class__ = Swapping
    with pytest.raises(ModelChanged, match="weights_sha256 was"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None


@pytest.mark.parametrize("step", ["restart", "statistics"])
def test_other_weights_are_refused_before_anything_is_reserved(tmp_path: Path, step: str) -> None:
    found = _reviewing(tmp_path, cap=8.0)
    found.site._review()
    kept = (tmp_path / "slm" / "model.safetensors").read_bytes()
    write_weights(tmp_path / "slm" / "model.safetensors", b"others")
    go_on: dict[str, Callable[[], None]] = {
        "restart": found.site.run,
        "statistics": lambda: found.site._contribute(ATTEMPT, ("site-a", "site-b", "site-c")),
    }
    with pytest.raises(ModelChanged, match=r"weights_sha256 was \w+ and is \w+"):
        go_on[step]()
    assert found.reservations() == 0
    (tmp_path / "slm" / "model.safetensors").write_bytes(kept)
    found.site._check_slm()


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
    found = _reviewing(folder, cap=8.0)
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
    found = _reviewing(tmp_path, cap=8.0)
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
    found = _reviewing(tmp_path, cap=8.0)
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
    found = _reviewing(tmp_path, cap=8.0)
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
