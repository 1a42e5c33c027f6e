"""The whole benchmark: worlds prepared, arms simulated in parallel processes, results gathered."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from contextlib import closing
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from lada_lab.arms.bench_plan import BenchPlan, BenchTask
from lada_lab.arms.grid import point_text
from lada_lab.arms.results import report_of
from lada_lab.arms.run_file import Releases, Runs
from lada_lab.arms.runs import Run
from lada_lab.arms.simulation import Laboratory, prepare
from lada_lab.arms.study import LabSettings
from lada_secure.errors import ParameterError

_POLL_S = 0.5

T = TypeVar("T")
# A run, and what its draw's arms share; None where the draw is complete.
Done: TypeAlias = tuple[Run, Releases | None]


def run_task(task: BenchTask) -> Iterator[Done]:
    """Simulate the arms of one task, one after the other; a line of progress per round."""
    prepared = prepare(task.settings, seed=task.seed, cache_dir=task.cache_dir)
    laboratory = Laboratory.open(prepared, task.settings).redrawn(task.draw.releases)
    arms = task.draw.arms
    for number, arm in enumerate(arms, start=1):
        outcome = laboratory.simulate(arm, epsilon=task.epsilon, progress=_tell)
        run = Run(point=task.point, draw=task.draw.number, outcome=outcome)
        yield run, laboratory.releases if number < len(arms) else None


def _tell(text: str) -> None:
    # A process of the benchmark shares its parent's standard error.
    print(text, file=sys.stderr, flush=True)


def _each(
    function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], *, jobs: int
) -> Iterator[T]:
    """Results as they come; in this process for one job, else in so many of their own."""
    if jobs == 1:
        for some in arguments:
            yield function(*some)
        return
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as workers:
        for done in as_completed([workers.submit(function, *some) for some in arguments]):
            yield done.result()


def _runs(tasks: Sequence[BenchTask], *, jobs: int) -> Generator[Done, None, None]:
    """Runs as they end; in this process for one job, else in so many of their own.

    Where a task fails, those that are under way are finished first; no other one is begun.
    """
    if jobs == 1:
        for task in tasks:
            yield from run_task(task)
        return
    context = get_context("spawn")
    queue: SimpleQueue[Done] = context.SimpleQueue()
    failure: BaseException | None = None
    others = set(active_children())
    with ProcessPoolExecutor(
        max_workers=jobs, mp_context=context, initializer=_start, initargs=(queue,)
    ) as workers:
        pending = {workers.submit(_send_runs, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                # A task ends after its last run was sent.
                while not queue.empty():
                    yield queue.get()
                for future in done:
                    found = None if future.cancelled() else future.exception()
                    if found is not None and failure is None:
                        failure = found
                        for later in pending:
                            later.cancel()
        finally:
            if pending:
                # Whoever takes the runs has given up; nobody reads the queue any more.
                for later in pending:
                    later.cancel()
                for process in set(active_children()) - others:
                    process.terminate()
    if failure is not None:
        raise failure


_QUEUE: list[SimpleQueue[Done]] = []


def _start(queue: SimpleQueue[Done]) -> None:
    """In a process of its own, before its first task."""
    _QUEUE.append(queue)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Without it a process whose parent was killed would go on, or wait for ever, beside the run
    # that goes on with the file.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _send_runs(task: BenchTask) -> None:
    for done in run_task(task):
        _QUEUE[0].put(done)


def _prepare(settings: LabSettings, seed: int, cache_dir: Path) -> int:
    prepare(settings, seed=seed, cache_dir=cache_dir)
    return seed


def run_allocation(
    plan: BenchPlan,
    *,
    runs: Runs,
    cache_dir: Path,
    jobs: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run what is left, and report on everything.

    Args: runs: what is there already, and where a run goes as soon as it ends. jobs: worlds at a
        time, >= 1, each computed on one thread.
    Returns: the report as JSON.
    Raises: ParameterError: numbers out of range.
    """
    if jobs < 1:
        raise ParameterError(f"jobs: expected at least 1, got {jobs}")
    tasks = plan.tasks(runs, cache_dir)
    left = sum(len(task.draw.arms) for task in tasks)
    if runs.known:
        progress(f"{len(runs.known)} runs are there already, {left} are left")
    if jobs > 1:
        # Processes that share the cores must not start threads of their own.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Settings of one world prepare the same, whatever else varies.
    worlds = {(task.settings.world, task.seed): task.settings for task in tasks}
    prepared = [(settings, seed, cache_dir) for (_, seed), settings in worlds.items()]
    for number, seed in enumerate(_each(_prepare, prepared, jobs=jobs), start=1):
        progress(f"world {seed} is ready ({number} of {len(worlds)})")
    # Closed at once, so that no process waits for a reader when the disk refuses a run.
    with closing(_runs(tasks, jobs=jobs)) as found:
        for number, (run, releases) in enumerate(found, start=1):
            runs.keep(run, releases)
            progress(f"{_told(run)} ({number} of {left})")
    runs.arrange(plan.order)
    return report_of(plan, list(runs.known.values()))


def _told(run: Run) -> str:
    one = run.outcome
    where = f"{point_text(run.point)}, " if run.point else ""
    return (
        f"{where}seed {one.seed}, epsilon {one.epsilon:g}, draw {run.draw}: "
        f"{one.condition} {one.accuracy:.1%}"
    )
