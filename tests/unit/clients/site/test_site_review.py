"""A site's review: what it accepts with, and what it refuses before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from protocol_world import (
    NOW,
    make_plan,
)
from reviewing_site import ATTEMPT, PLAN, SiteWithoutModel, reviewing
from slm_files import write_weights

from lada_clients.site.gates.files import RecordsChanged
from lada_clients.site.gates.policy import study_caps
from lada_clients.site.gates.slm import ModelChanged
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.run_loop import StudyFailed
from lada_protocol.wire.messages import AcceptanceBody, FaultBody, parse_body
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import planned_epsilon, planned_events
from lada_secure.models.identity import SlmPlan
from lada_secure.privacy.ledger.entries import DecisionEntry
from lada_secure.privacy.ledger.memory import MemoryLedger


def test_a_new_site_accepts_with_the_head_of_its_new_ledger(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)
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
    found = reviewing(tmp_path, cap=8.0, earlier_rounds=1)
    found.site._review()
    body = found.posted(Kind.ACCEPTANCE)
    assert body is not None
    assert body["new_ledger"] is False


def test_a_plan_that_would_pass_the_budget_over_all_studies_is_refused_with_the_numbers(
    tmp_path: Path,
) -> None:
    alone = planned_epsilon(PLAN)
    fits = reviewing(tmp_path / "fits", cap=alone + 1e-6)
    fits.site._review()
    assert fits.posted(Kind.ACCEPTANCE) is not None

    spent = reviewing(tmp_path / "spent", cap=alone + 1e-6, earlier_rounds=1)
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
    found = reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
    found.site._review()
    (promise,) = found.book.promised(now=NOW)
    assert promise.plan_hash == PLAN.hash
    assert promise.events == tuple(planned_events(PLAN).values())
    assert found.reservations() == 0


def test_what_another_running_study_may_still_spend_is_not_there_for_this_one(
    tmp_path: Path,
) -> None:
    found = reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
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
    found = reviewing(tmp_path, cap=planned_epsilon(PLAN) + 1e-6)
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
    found = reviewing(tmp_path, cap=0.1)
    found.site.policy = found.site.policy.model_copy(update={"epsilon_cap_per_study": 1.0})
    with pytest.raises(StudyFailed, match=r"its epsilon cap is 8\.0"):
        found.site._review()
    body = found.posted(Kind.REFUSAL)
    assert body is not None
    assert body["code"] == "policy"


def test_records_that_change_pause_the_site_before_it_reserves_anything(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)
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
    found = reviewing(tmp_path, cap=8.0)
    found.site.policy = found.site.policy.model_copy(
        update={"model": SlmPlan(families=("GPT2LMHeadModel",))}
    )
    with pytest.raises(ParameterError, match="its architecture is LlamaForCausalLM, allowed are"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None
    assert found.posted(Kind.REFUSAL) is None
    assert found.reservations() == 0


def test_weights_that_change_while_the_gate_loads_them_are_not_signed_for(tmp_path: Path) -> None:
    found = reviewing(tmp_path, cap=8.0)

    class Swapping(SiteWithoutModel):
        def _check_with_model(self) -> None:
            write_weights(tmp_path / "slm" / "model.safetensors", b"others")

    found.site.__class__ = Swapping
    with pytest.raises(ModelChanged, match="weights_sha256 was"):
        found.site._review()
    assert found.posted(Kind.ACCEPTANCE) is None


@pytest.mark.parametrize("step", ["restart", "statistics"])
def test_other_weights_are_refused_before_anything_is_reserved(tmp_path: Path, step: str) -> None:
    found = reviewing(tmp_path, cap=8.0)
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
