"""The whole benchmark: worlds prepared, arms simulated in parallel processes, results gathered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from lada_lab.arms.arms import Arm, arms_named
from lada_lab.arms.results import tabulate
from lada_lab.arms.simulation import Laboratory, Outcome, prepare
from lada_lab.arms.study import LabSettings
from lada_secure.errors import ParameterError

# Worlds from here on are for choosing settings; results are reported from worlds below.
FIRST_VALIDATION_SEED = 10_000
MAX_SEEDS = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """Arms that share one world's releases: those of one seed and one epsilon."""

    seed: int
    epsilon: float
    arms: tuple[Arm, ...]
    settings: LabSettings
    cache_dir: Path


def plan_tasks(
    arms: Sequence[Arm],
    *,
    seeds: Sequence[int],
    epsilons: Sequence[float],
    settings: LabSettings,
    cache_dir: Path,
) -> list[BenchTask]:
    """One task per seed and epsilon; ablations at the largest epsilon alone.

    Raises: ParameterError: no seeds, a negative one, or no epsilon.
    """
    if not seeds or min(seeds) < 0 or len(seeds) > MAX_SEEDS:
        raise ParameterError(f"seeds: expected 1 to {MAX_SEEDS} numbers >= 0, got {len(seeds)}")
    if not epsilons or not all(0.0 < one < float("inf") for one in epsilons):
        raise ParameterError(
            f"epsilon: expected at least one number, all above 0, got {list(epsilons)}"
        )
    largest = max(epsilons)
    groups = [
        (budget, tuple(arm for arm in arms if budget == largest or not arm.ablation))
        for budget in sorted(set(epsilons), reverse=True)
    ]
    return [
        BenchTask(seed=seed, epsilon=epsilon, arms=some, settings=settings, cache_dir=cache_dir)
        for seed in seeds
        for epsilon, some in groups
        if some
    ]


def run_task(task: BenchTask) -> list[Outcome]:
    """Simulate the arms of one task, one after the other; a line of progress per round."""
    prepared = prepare(task.settings, seed=task.seed, cache_dir=task.cache_dir)
    laboratory = Laboratory.open(prepared, task.settings)
    return [laboratory.simulate(arm, epsilon=task.epsilon, progress=_tell) for arm in task.arms]


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
    # Processes that share the cores must not start threads of their own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as workers:
        for done in as_completed([workers.submit(function, *some) for some in arguments]):
            yield done.result()


def _prepare(settings: LabSettings, seed: int, cache_dir: Path) -> int:
    prepare(settings, seed=seed, cache_dir=cache_dir)
    return seed


def run_allocation(
    *,
    conditions: Sequence[str],
    seeds: Sequence[int],
    epsilons: Sequence[float],
    settings: LabSettings,
    cache_dir: Path,
    jobs: int,
    progress: Callable[[str], None],
    keep: Callable[[Sequence[Outcome]], None] = lambda _outcomes: None,
) -> tuple[list[Outcome], dict[str, Any]]:
    """Run everything.

    Args: jobs: worlds at a time, >= 1, each computed on one thread. keep: called with all outcomes
        so far whenever a world ends, so that hours of work outlive an interruption.
    Returns: the outcomes, and the report as JSON.
    Raises: ParameterError: unknown conditions, or numbers out of range.
    """
    if jobs < 1:
        raise ParameterError(f"jobs: expected at least 1, got {jobs}")
    tasks = plan_tasks(
        arms_named(conditions),
        seeds=seeds,
        epsilons=epsilons,
        settings=settings,
        cache_dir=cache_dir,
    )
    for number, seed in enumerate(
        _each(_prepare, [(settings, seed, cache_dir) for seed in seeds], jobs=jobs), start=1
    ):
        progress(f"world {seed} is ready ({number} of {len(seeds)})")
    outcomes: list[Outcome] = []
    for number, found in enumerate(_each(run_task, [(one,) for one in tasks], jobs=jobs), start=1):
        outcomes += found
        keep(outcomes)
        told = ", ".join(f"{one.condition} {one.accuracy:.1%}" for one in found)
        at = f"seed {found[0].seed}, epsilon {found[0].epsilon:g}"
        progress(f"{at} ({number} of {len(tasks)}): {told}")
    order = {name: number for number, name in enumerate(conditions)}
    outcomes.sort(key=lambda one: (-one.epsilon, order[one.condition], one.seed))
    outcomes.sort(key=lambda one: order[one.condition])
    report = {
        "seeds": sorted(seeds),
        "validation": min(seeds) >= FIRST_VALIDATION_SEED,
        "epsilons": sorted(set(epsilons)),
        "settings": {
            "plan": settings.plan.model_dump(mode="json"),
            "noise_rate": settings.noise_rate,
            "batch_size": settings.batch_size,
            "world": asdict(settings.world),
        },
        "total_cpu_s": round(sum(one.cpu_s for one in outcomes), 1),
        **tabulate(outcomes, largest=max(epsilons)),
    }
    return outcomes, report
