"""Several processes on one ledger: caps under contention, kill -9 everywhere, and speed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from ledger_store_world import (
    CAPS,
    NOISE,
    PUBLIC,
    approve,
    hammer,
    open_ledger,
    release_and_die,
    spec,
)

from lada_clients.site.ledger.store import SqliteLedger
from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.entries import parse_ledger_lines
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger

# Forked children start in milliseconds; each opens the ledger for itself.
FORK = multiprocessing.get_context("fork")


def verify(ledger: SqliteLedger) -> LedgerSummary:
    return verify_ledger(parse_ledger_lines(ledger.export_lines()), public_key=PUBLIC, caps=CAPS)


def test_eight_processes_hammering_one_budget_never_pass_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with open_ledger(path) as ledger:
        approve(ledger)
    workers = [FORK.Process(target=hammer, args=(str(path), number)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0] * 8
    with open_ledger(path) as ledger:
        summary = verify(ledger)
    assert summary.epsilon <= CAPS.total_epsilon
    # The budget is spent to the last release that fits, not merely kept.
    one_more = [GaussianEvent(NOISE)] * (summary.reservations + 1)
    assert epsilon(one_more, target_delta=1e-6) > CAPS.total_epsilon
    assert epsilon(one_more[1:], target_delta=1e-6) <= CAPS.total_epsilon


def test_eight_processes_create_one_ledger_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    workers = [FORK.Process(target=_open_and_head, args=(str(path),)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0] * 8


def _open_and_head(path: str) -> None:
    with open_ledger(Path(path)) as ledger:
        assert ledger.entries()[-1].index == 0


def _reserve_and_tell(path: str, start: Barrier, answers: Queue[str]) -> None:
    with open_ledger(Path(path)) as ledger:
        start.wait()
        answers.put(ledger.reserve(spec()).entry_hash)


def test_processes_that_reserve_one_key_at_once_pay_once_and_the_others_resume(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with open_ledger(path) as ledger:
        approve(ledger)
    start, answers = FORK.Barrier(4), FORK.Queue()
    workers = [
        FORK.Process(target=_reserve_and_tell, args=(str(path), start, answers)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    told = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(timeout=60)
    assert len(told) == 1, "all of them hold the same reservation"
    with open_ledger(path) as ledger:
        summary = verify(ledger)
        assert (summary.reservations, summary.resumes) == (1, 3)
        kinds = [entry.kind for entry in ledger.entries()]
        assert kinds == ["start", "decision", "reserve", "resume", "resume", "resume"]


def test_of_two_tries_at_once_one_output_is_committed_and_the_other_never_leaves(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with open_ledger(path) as first, open_ledger(path) as second:
        approve(first)
        mine, others = first.reserve(spec()), second.reserve(spec())
        assert mine == others
        first.commit(mine, b"one draw")
        with pytest.raises(LedgerError, match="committed another output already"):
            second.commit(others, b"another draw")
        assert second.reserve(spec()).stored_output == b"one draw"


def _run_until(path: Path, sent: Path, steps: int) -> bool:
    """Run one release that dies at a step; whether it was killed there."""
    child = FORK.Process(target=release_and_die, args=(str(path), str(sent), steps))
    child.start()
    child.join(timeout=60)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


def _check_after(path: Path, sent: Path) -> None:
    """What left the site is paid for, and the same bytes leave again."""
    left = sent.read_bytes() if sent.exists() else b""
    with open_ledger(path) as ledger:
        summary = verify(ledger)
        stored = ledger.stored_output(spec().key)
        # However often it died: the release was paid for once, and not again by the next try.
        assert summary.reservations <= 1
        assert ledger.epsilon_spent(1e-6) == pytest.approx(
            epsilon([GaussianEvent(NOISE)] * summary.reservations, target_delta=1e-6)
        )
        if left:
            assert summary.reservations >= 1
            assert left == stored, "what was sent is what the ledger holds"
        if stored is not None:
            assert summary.commits == 1
    assert not _run_until(path, sent, 10**9)
    again = sent.read_bytes()
    with open_ledger(path) as ledger:
        stored = ledger.stored_output(spec().key)
        assert stored is not None
        assert again == left + stored
        assert (verify(ledger).reservations, verify(ledger).commits) == (1, 1)


def _kill_everywhere(folder: Path, *, repeats: int, stride: int) -> int:
    """Kill at every `stride`-th step until a run has no more steps; returns the points hit."""
    for points, step in enumerate(range(1, 10_000, stride)):
        for repeat in range(repeats):
            path = folder / f"{step}-{repeat}.db"
            sent = folder / f"{step}-{repeat}.sent"
            with open_ledger(path) as ledger:
                approve(ledger)
            if not _run_until(path, sent, step):
                return points
            _check_after(path, sent)
    raise AssertionError("a release should not take 10,000 steps")


def test_killed_at_any_step_the_ledger_says_no_less_than_what_left(tmp_path: Path) -> None:
    assert _kill_everywhere(tmp_path, repeats=1, stride=1) >= 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_step_twenty_times_over(tmp_path: Path) -> None:
    assert _kill_everywhere(tmp_path, repeats=20, stride=1) >= 12


def test_a_process_killed_at_a_random_moment_leaves_a_whole_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with open_ledger(path) as ledger:
        approve(ledger)
    for delay_s in (0.05, 0.1, 0.2, 0.4):
        child = FORK.Process(target=hammer, args=(str(path), int(delay_s * 100)))
        child.start()
        time.sleep(delay_s)
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join(timeout=60)
        with open_ledger(path) as ledger:
            verify(ledger)


def _slower_by(path: Path, *, entries: int) -> float:
    """How many times the work of a reservation has grown by `entries` earlier ones, in medians.

    Two studies take turns. Work is processor time: a loaded machine waits longer, and does no more.
    The noise is so much that epsilon stays small: the accountant's work grows with it.
    """
    caps = BudgetCaps(target_delta=1e-6, total_epsilon=50.0, study_epsilon=50.0)
    first, timed = 20, 100
    times: list[float] = []
    with open_ledger(path, caps=caps) as ledger:
        for study in ("a", "b"):
            approve(ledger, study)
        for number in range(entries + timed):
            study = "ab"[number // 10 % 2]
            start = time.process_time()
            ledger.reserve(spec(number, study_id=study, noise=20_000.0))
            times.append(time.process_time() - start)
        assert len(ledger.entries()) == entries + timed + 3
    return statistics.median(times[entries:]) / statistics.median(times[first : first + timed])


def test_reserving_does_not_slow_down_with_the_ledgers_length(tmp_path: Path) -> None:
    # A reservation that read the whole ledger again would be several times the work by now.
    assert _slower_by(tmp_path / "ledger.db", entries=400) <= 2.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_reserving_after_10_000_entries_is_hardly_more_work(tmp_path: Path) -> None:
    times = _slower_by(tmp_path / "ledger.db", entries=10_000)
    print(f"{times:.2f} times the work of the first ones")
    assert times <= 2.0
