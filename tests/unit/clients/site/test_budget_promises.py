"""Studies side by side over one population: one budget, and each gets what it was promised."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ledger_store_world import CAPS, PUBLIC, SITE_KEY, TIME_STEP_S, approve, now, open_ledger, spec
from protocol_world import make_plan

from lada_clients.site.ledger.population import LedgerReplaced
from lada_clients.site.ledger.promised import promised_until_over
from lada_protocol.plan import parse_time
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import LedgerError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent, PrivacyEvent
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import LedgerIdentity, new_ledger_id, parse_ledger_lines
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.promises import BudgetPromise, parse_promise
from lada_secure.privacy.ledger.terms import DP_SGD, BudgetCaps, ReleaseSpec
from lada_secure.privacy.ledger.verification import verify_ledger

FORK = multiprocessing.get_context("fork")
Opened = Callable[[], LedgerBook]
STATISTICS = GaussianEvent(8.0)
STEPS = DpSgdEvent(noise_multiplier=2.0, sampling_probability=0.05, steps=4)
ROUNDS = 3
# What a study of so many rounds reserves, and what its plan says of it.
RELEASES = [(purpose, at) for at in range(ROUNDS) for purpose in ("statistics", "training")]
WHOLE: tuple[PrivacyEvent, ...] = (
    GaussianEvent(8.0, count=ROUNDS),
    DpSgdEvent(noise_multiplier=2.0, sampling_probability=0.05, steps=4 * ROUNDS),
)
TWO = epsilon([*WHOLE, *WHOLE], target_delta=1e-6)
THREE = epsilon([*WHOLE, *WHOLE, *WHOLE], target_delta=1e-6)
CAP = BudgetCaps(target_delta=1e-6, total_epsilon=(TWO + THREE) / 2, study_epsilon=(TWO + THREE))


def plan_hash(study: str) -> str:
    return study[-1] * 64


def release(study: str, purpose: str, round_id: int) -> ReleaseSpec:
    base = spec(round_id, study_id=study, noise=8.0)
    if purpose == "statistics":
        values = {name: getattr(base, name) for name in base.__dataclass_fields__}
        return ReleaseSpec(**(values | {"plan_hash": plan_hash(study)}))
    return ReleaseSpec(
        study_id=study,
        plan_hash=plan_hash(study),
        round_id=round_id,
        purpose="training",
        mechanism=DP_SGD,
        event=STEPS,
        parameters={"l2_clip_norm": 1.0, "expected_units": 10.0, "noise": "discrete_gaussian"},
    )


def promise(book: LedgerBook, study: str, *, days: float = 1.0) -> None:
    book.promise(
        WHOLE,
        study_id=study,
        plan_hash=plan_hash(study),
        expires=now() + timedelta(days=days),
    )


def join(book: LedgerBook, study: str) -> None:
    """As a site does: the promise first, then the decision, then the acceptance."""
    promise(book, study)
    book.decide(
        "approve",
        study_id=study,
        plan_hash=plan_hash(study),
        expires=now() + timedelta(days=1),
        decided_by="policy",
    )


def spend_all(book: LedgerBook, asked: Callable[[int], ReleaseSpec]) -> None:
    """Reserve until it is refused."""
    for at in range(1000):
        book.reserve(asked(at))


@pytest.fixture(params=["file", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """The ledger as every process of the site sees it."""
    if request.param == "file":
        return lambda: open_ledger(tmp_path / "ledger.sqlite", caps=CAP)
    book = MemoryLedger(
        identity=LedgerIdentity(
            site="hospital-a", population="patients", ledger_id=new_ledger_id()
        ),
        signing_key=SITE_KEY,
        caps=CAP,
        clock=now,
        time_step_s=TIME_STEP_S,
    )
    return lambda: book


@pytest.mark.parametrize("order", [("s-1", "s-2", "s-3"), ("s-3", "s-1", "s-2")])
def test_a_third_study_is_refused_in_whatever_order_they_come(
    opened: Opened, order: tuple[str, str, str]
) -> None:
    first, second, third = order
    join(opened(), first)
    join(opened(), second)
    before = opened().entries()
    with pytest.raises(PrivacyBudgetExceeded, match=r"with what is promised to s-\d, s-\d epsilon"):
        promise(opened(), third)
    assert opened().entries() == before
    assert [one.study_id for one in opened().promised(now=now())] == sorted((first, second))


@pytest.mark.parametrize("seed", range(4))
def test_both_studies_reach_their_ends_in_any_interleaving(opened: Opened, seed: int) -> None:
    books = {"s-1": opened(), "s-2": opened()}
    for study, book in books.items():
        join(book, study)
    left = {study: list(RELEASES) for study in books}
    chosen = random.Random(seed)
    while any(left.values()):
        study = chosen.choice([one for one, rest in left.items() if rest])
        purpose, round_id = left[study].pop(0)
        books[study].commit(books[study].reserve(release(study, purpose, round_id)), b"noised")
        # Whoever looks meanwhile finds no room for a third one.
        with pytest.raises(PrivacyBudgetExceeded):
            promise(opened(), "s-3")
    assert opened().epsilon_spent(1e-6) == pytest.approx(TWO)
    assert opened().epsilon_spent(1e-6) <= CAP.total_epsilon


def test_a_release_that_was_promised_to_nobody_does_not_take_from_others(opened: Opened) -> None:
    join(opened(), "s-1")
    join(opened(), "s-2")
    # A study that an earlier version joined: it is approved and was promised nothing.
    approve(opened(), "early")  # type: ignore[arg-type]
    with pytest.raises(PrivacyBudgetExceeded, match="promised to s-1, s-2"):
        spend_all(opened(), lambda at: spec(at, study_id="early", noise=4.0))
    # A study that needs more than its plan said is no better off.
    for round_id in range(ROUNDS):
        opened().reserve(release("s-1", "statistics", round_id))
    with pytest.raises(PrivacyBudgetExceeded, match="promised to s-2"):
        spend_all(opened(), lambda at: release("s-1", "statistics", ROUNDS + at))
    for study in ("s-1", "s-2"):
        for purpose, round_id in RELEASES:
            opened().reserve(release(study, purpose, round_id))


def test_a_promise_ends_with_the_study(opened: Opened) -> None:
    join(opened(), "s-1")
    join(opened(), "s-2")
    opened().reserve(release("s-1", "statistics", 0))
    opened().end_promise(plan_hash("s-1"))
    join(opened(), "s-3")
    told = {one.study_id: one.events for one in opened().promised(now=now())}
    assert told == {"s-2": WHOLE, "s-3": WHOLE}
    assert [one.study_id for one in opened().promised(now=now(), besides=plan_hash("s-2"))] == [
        "s-3"
    ]


@pytest.mark.parametrize("decision", ["withdraw", "refuse"])
def test_a_decision_against_a_study_ends_its_promise(opened: Opened, decision: str) -> None:
    join(opened(), "s-1")
    join(opened(), "s-2")
    opened().decide(
        decision,  # type: ignore[arg-type]
        study_id="s-1",
        plan_hash=plan_hash("s-1"),
        expires=now() + timedelta(days=1),
        decided_by="dr-meyer",
    )
    join(opened(), "s-3")
    # Joined again, as after a change of mind: there is no room any more.
    with pytest.raises(PrivacyBudgetExceeded):
        promise(opened(), "s-1")


def test_a_promise_ends_when_the_plan_expires(opened: Opened) -> None:
    promise(opened(), "s-1", days=1e-9)
    join(opened(), "s-2")
    join(opened(), "s-3")
    later = datetime.now(UTC) + timedelta(days=2)
    assert len(opened().promised(now=now())) == 2
    assert opened().promised(now=later) == ()


def test_promising_again_changes_nothing(opened: Opened) -> None:
    join(opened(), "s-1")
    join(opened(), "s-2")
    for purpose, round_id in RELEASES[:3]:
        opened().reserve(release("s-1", purpose, round_id))
    before = [one.events for one in opened().promised(now=now())]
    for study in ("s-1", "s-2"):
        promise(opened(), study)
    assert [one.events for one in opened().promised(now=now())] == before


def test_the_stricter_delta_of_two_studies_counts(tmp_path: Path) -> None:
    strict = BudgetCaps(target_delta=1e-9, total_epsilon=CAP.total_epsilon, study_epsilon=20.0)
    with open_ledger(tmp_path / "ledger.sqlite", caps=strict) as book:
        alone = epsilon(WHOLE, target_delta=1e-9)
        assert alone <= CAP.total_epsilon < epsilon([*WHOLE, *WHOLE], target_delta=1e-9)
        join(book, "s-1")
    with (
        open_ledger(tmp_path / "ledger.sqlite", caps=CAP) as book,
        pytest.raises(PrivacyBudgetExceeded, match="at delta 1e-09"),
    ):
        promise(book, "s-2")


def test_promises_stand_in_no_entry_and_no_export(opened: Opened) -> None:
    approve(opened())  # type: ignore[arg-type]
    before = opened().export_lines()
    promise(opened(), "s-1")
    opened().end_promise(plan_hash("s-1"))
    opened().end_promise(plan_hash("s-1"))
    promise(opened(), "s-2")
    assert opened().export_lines() == before
    verify_ledger(parse_ledger_lines(before), public_key=PUBLIC, caps=CAPS)


def test_a_promise_is_kept_exactly_and_damage_is_told() -> None:
    kept = BudgetPromise(
        study_id="s-1",
        plan_hash=plan_hash("s-1"),
        expires="2026-11-30T12:00:00Z",
        made_at=3,
        target_delta=1e-6,
        events=WHOLE,
    )
    assert parse_promise(kept.line()) == kept
    for damaged in (b"", b"{}", kept.line()[:-1], kept.line().replace(b"1e-06", b'"a"')):
        with pytest.raises(LedgerError, match="promise beside the ledger is damaged"):
            parse_promise(damaged)


def _study(path: str, study: str, joined: object, outcome: object) -> None:
    """One process of the site: joins a study, and reserves all of it beside others."""
    with open_ledger(Path(path), caps=CAP) as book:
        try:
            join(book, study)
        except PrivacyBudgetExceeded:
            outcome.put((study, "refused"))  # type: ignore[attr-defined]
            joined.wait()  # type: ignore[attr-defined]
            return
        joined.wait()  # type: ignore[attr-defined]
        for purpose, round_id in RELEASES:
            book.commit(book.reserve(release(study, purpose, round_id)), b"noised")
        outcome.put((study, "finished"))  # type: ignore[attr-defined]


def test_three_processes_over_one_ledger_two_finish_and_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    joined, outcome = FORK.Barrier(3), FORK.Queue()
    studies = ("s-1", "s-2", "s-3")
    processes = [
        FORK.Process(target=_study, args=(str(path), one, joined, outcome)) for one in studies
    ]
    for process in processes:
        process.start()
    ended = dict(outcome.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(ended.values()) == ["finished", "finished", "refused"]
    with open_ledger(path, caps=CAP) as book:
        summary = verify_ledger(book.entries(), public_key=PUBLIC, caps=CAP)
    assert summary.epsilon == pytest.approx(TWO)
    assert summary.epsilon <= CAP.total_epsilon
    assert summary.reservations == 2 * len(RELEASES)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_ledger_that_was_replaced_is_its_own_fault_whatever_was_decided(
    opened: Opened, replaced: bool
) -> None:
    book, plan = opened(), make_plan()
    error = LedgerReplaced("an old copy") if replaced else LedgerError("not approved any more")
    ends = LedgerReplaced if replaced else StudyFailed
    late = parse_time(plan.expires) + timedelta(days=1)
    with (
        pytest.raises(ends),
        promised_until_over(book, plan, now=lambda: late, over=(StudyFailed,)),
    ):
        raise error
