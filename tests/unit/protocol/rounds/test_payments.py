"""Whether a contribution was paid for, from a copy of the site's ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from protocol_world import NOW, make_cast, make_ledger, make_plan, statistics_spec, training_spec

from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.payments import check_payment
from lada_secure.errors import PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.ledger.memory import MemoryLedger

PLAN = make_plan()


def _ledger(plan: StudyPlan = PLAN) -> MemoryLedger:
    ledger = make_ledger(make_cast(), "site-a")
    ledger.decide(
        "approve",
        study_id=plan.study_id,
        plan_hash=plan.hash,
        expires=NOW.replace(year=2027),
        decided_by="policy",
    )
    return ledger


def _reason(ledger: MemoryLedger, paid_by: str, *, round_id: int = 0) -> str:
    attempt = Attempt(round_id=round_id, purpose=STATISTICS, number=0)
    with pytest.raises(PeerError) as caught:
        check_payment(ledger.entries(), paid_by, plan=PLAN, attempt=attempt, site="site-a")
    assert caught.value.peer == "site-a"
    return caught.value.reason


@pytest.mark.parametrize("purpose", [STATISTICS, DEMAND])
def test_a_committed_reservation_of_the_round_pays_for_both_purposes(purpose: str) -> None:
    ledger = _ledger()
    paid = ledger.reserve(statistics_spec(PLAN, 0))
    ledger.commit(paid, b"noised")
    attempt = Attempt(round_id=0, purpose=purpose, number=3)
    check_payment(ledger.entries(), paid.entry_hash, plan=PLAN, attempt=attempt, site="site-a")


def test_an_empty_ledger_does_not_pay() -> None:
    assert _reason(make_ledger(make_cast(), "site-a"), "0" * 64) == "unpaid"


def test_the_hash_of_the_commit_is_not_the_reservation() -> None:
    ledger = _ledger()
    commit = ledger.keep(ledger.reserve(statistics_spec(PLAN, 0)), b"noised")
    assert _reason(ledger, commit.entry_hash) == "unpaid"


def test_a_reservation_alone_does_not_pay() -> None:
    ledger = _ledger()
    assert _reason(ledger, ledger.reserve(statistics_spec(PLAN, 0)).entry_hash) == "unpaid"


def test_another_round_does_not_pay() -> None:
    ledger = _ledger()
    paid = ledger.reserve(statistics_spec(PLAN, 0))
    ledger.commit(paid, b"noised")
    assert _reason(ledger, paid.entry_hash, round_id=1) == "unpaid"


def test_another_plan_does_not_pay() -> None:
    other = make_plan(seed=2)
    ledger = _ledger(other)
    paid = ledger.reserve(statistics_spec(other, 0))
    ledger.commit(paid, b"noised")
    assert _reason(ledger, paid.entry_hash) == "unpaid"


def test_training_does_not_pay_for_statistics() -> None:
    ledger = _ledger()
    paid = ledger.reserve(training_spec(PLAN, 0))
    ledger.commit(paid, b"adapters")
    assert _reason(ledger, paid.entry_hash) == "unpaid"


@pytest.mark.parametrize(
    "changes",
    [
        {"event": GaussianEvent(7.9)},
        {"parameters": {"l2_sensitivity": 20.0, "std": 181.1}},
    ],
)
def test_less_noise_than_the_plan_s_is_named(changes: dict[str, Any]) -> None:
    ledger = _ledger()
    paid = ledger.reserve(statistics_spec(PLAN, 0, **changes))
    ledger.commit(paid, b"noised")
    assert _reason(ledger, paid.entry_hash) == "wrong_noise"


ADVANTAGES = Attempt(round_id=0, purpose=CONFIDENCE_EXCESS, number=0)


def _trained(**changes: Any) -> tuple[MemoryLedger, str]:
    """A ledger with one committed reservation of round 0's training."""
    ledger = _ledger()
    paid = ledger.reserve(replace(training_spec(PLAN, 0), **changes))
    ledger.commit(paid, b"adapters")
    return ledger, paid.entry_hash


def test_training_pays_for_advantages_and_for_nothing_else() -> None:
    ledger, paid = _trained()
    check_payment(ledger.entries(), paid, plan=PLAN, attempt=ADVANTAGES, site="site-a")
    assert _reason(ledger, paid) == "unpaid"


def test_statistics_do_not_pay_for_advantages() -> None:
    ledger = _ledger()
    paid = ledger.reserve(statistics_spec(PLAN, 0))
    ledger.commit(paid, b"noised")
    with pytest.raises(PeerError) as caught:
        check_payment(
            ledger.entries(), paid.entry_hash, plan=PLAN, attempt=ADVANTAGES, site="site-a"
        )
    assert caught.value.reason == "unpaid"


@pytest.mark.parametrize(
    "event",
    [
        DpSgdEvent(noise_multiplier=1.9, sampling_probability=0.05, steps=5),
        DpSgdEvent(noise_multiplier=2.0, sampling_probability=0.06, steps=5),
    ],
    ids=["less noise", "larger samples"],
)
def test_training_with_less_noise_than_the_plan_s_does_not_pay_for_advantages(event: Any) -> None:
    ledger, paid = _trained(event=event)
    with pytest.raises(PeerError) as caught:
        check_payment(ledger.entries(), paid, plan=PLAN, attempt=ADVANTAGES, site="site-a")
    assert caught.value.reason == "wrong_noise"


def test_training_of_another_round_does_not_pay_for_advantages() -> None:
    ledger, paid = _trained(round_id=1)
    with pytest.raises(PeerError) as caught:
        check_payment(ledger.entries(), paid, plan=PLAN, attempt=ADVANTAGES, site="site-a")
    assert caught.value.reason == "unpaid"


def _chunked(*steps: int, commit: tuple[bool, ...] = ()) -> tuple[MemoryLedger, list[str]]:
    """A ledger in which round 0's training was paid for in chunks of so many steps."""
    ledger = _ledger()
    paid = []
    for chunk, count in enumerate(steps):
        event = DpSgdEvent(noise_multiplier=2.0, sampling_probability=0.05, steps=count)
        reservation = ledger.reserve(replace(training_spec(PLAN, 0), chunk=chunk, event=event))
        if not commit or commit[chunk]:
            ledger.commit(reservation, b"adapters %d" % chunk)
        paid.append(reservation.entry_hash)
    return ledger, paid


def test_all_chunks_of_a_round_together_pay_for_advantages() -> None:
    ledger, paid = _chunked(2, 2, 1)
    check_payment(ledger.entries(), paid[-1], plan=PLAN, attempt=ADVANTAGES, site="site-a")


@pytest.mark.parametrize(
    ("steps", "commit", "named", "sentence"),
    [
        ((4,), (), -1, "4 steps were paid for and committed, the plan has 5"),
        ((2, 2, 2), (), -1, "6 steps were paid for and committed, the plan has 5"),
        ((2, 2, 1), (True, False, True), -1, "chunk 1 of its steps has no committed output"),
        ((2, 2, 1), (False, True, True), -1, "chunk 0 of its steps has no committed output"),
        ((2, 2, 1), (), 0, "not that of the last chunk"),
    ],
)
def test_a_round_whose_steps_are_not_all_paid_for_is_unpaid(
    steps: tuple[int, ...], commit: tuple[bool, ...], named: int, sentence: str
) -> None:
    ledger, paid = _chunked(*steps, commit=commit)
    with pytest.raises(PeerError, match=sentence) as caught:
        check_payment(ledger.entries(), paid[named], plan=PLAN, attempt=ADVANTAGES, site="site-a")
    assert caught.value.reason == "unpaid"


def test_less_noise_in_an_early_chunk_is_named_though_the_last_one_is_as_planned() -> None:
    ledger = _ledger()
    for chunk, (noise, steps) in enumerate([(0.5, 4), (2.0, 1)]):
        event = DpSgdEvent(noise_multiplier=noise, sampling_probability=0.05, steps=steps)
        paid = ledger.reserve(replace(training_spec(PLAN, 0), chunk=chunk, event=event))
        ledger.commit(paid, b"adapters")
    with pytest.raises(PeerError) as caught:
        check_payment(
            ledger.entries(), paid.entry_hash, plan=PLAN, attempt=ADVANTAGES, site="site-a"
        )
    assert caught.value.reason == "wrong_noise"
