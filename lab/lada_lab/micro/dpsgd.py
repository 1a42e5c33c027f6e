"""`lada bench dpsgd`: what a DP-SGD step costs beside plain LoRA training.

Every variant runs in a process of its own, and the processes take turns, one step at a time, so
that whatever the machine does besides meets all of them. Seconds are medians of CPU time (on a GPU:
of wall time between synchronisations). Noise, clipping and the optimiser are part of every private
step.

Peak memory of a CPU is measured apart, in processes whose C allocator gives large blocks back as
soon as they are freed: left to itself it keeps them in an order that depends on all steps before,
and the same step of the same variant differs by a fifth. Then it is the resident memory at the
step's peak above the idle process. On a GPU it is torch's own count of the timed steps.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lada_lab.micro.dpsgd_models import BenchModel, BenchPlace
from lada_lab.micro.dpsgd_variants import VARIANTS, Measured, Variant, serve, update_gap
from lada_secure.dpsgd.engine import ENGINES
from lada_secure.errors import ParameterError

_START_TIMEOUT_S = 300.0
_STEP_TIMEOUT_S = 1800.0

# glibc's names (mallopt(3)); other C libraries do not know them. From this size on a block is
# mapped for itself and unmapped when it is freed; by default glibc raises the size as it goes.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
_FIRST_STEP = (8, 2)


@contextmanager
def _blocks_given_back() -> Iterator[None]:
    """Processes started meanwhile give large freed blocks back to the system at once."""
    before = dict(os.environ)
    os.environ.update(_ALLOCATOR)
    try:
        yield
    finally:
        for name in _ALLOCATOR.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _Worker:
    """One variant in its own process."""

    def __init__(self, variant: Variant, shape: BenchModel, place: BenchPlace) -> None:
        context = multiprocessing.get_context("spawn")
        self.variant = variant
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=serve, args=(theirs, variant, shape, place), daemon=True
        )
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> int:
        """Returns: how many parameters are trained."""
        return int(self._answer(_START_TIMEOUT_S))

    def step(self, sequence_length: int, batch_size: int) -> Measured:
        self._pipe.send((sequence_length, batch_size))
        answer = self._answer(_STEP_TIMEOUT_S)
        if not isinstance(answer, Measured):
            raise ParameterError(f"bench: process {self.variant!r} answered out of turn")
        return answer

    def close(self) -> None:
        if self._process.is_alive():
            try:
                self._pipe.send(None)
            except OSError:
                self._process.kill()
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self, timeout_s: float) -> Any:
        try:
            if self._pipe.poll(timeout_s):
                return self._pipe.recv()
        except EOFError as error:
            raise ParameterError(
                f"bench: process {self.variant!r} ended early; is there enough memory?"
            ) from error
        raise ParameterError(f"bench: process {self.variant!r} gave no answer in {timeout_s:.0f} s")


def run_dpsgd(
    *,
    sequence_lengths: Sequence[int] = (128, 256),
    batch_sizes: Sequence[int] = (16, 32),
    repetitions: int = 5,
    model: BenchModel | None = None,
    variants: Sequence[Variant] | None = None,
    place: BenchPlace | None = None,
    report_case: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure all variants on all shapes, interleaved.

    Args: sequence_lengths: tokens per row, >= 2. batch_sizes: rows per step, >= 1.
    repetitions: >= 1, after one step of each shape that is not counted.
    variants: None is all that can run so; "plain" is always among them. place: CPU with one thread
    unless given.
    report_case: told the name of every shape before it is timed, and "peak memory" before that is
    measured.
    Returns: a JSON object: "ratio" (median over shapes of plain's time over the variant's; above 1
    is faster than plain), "ratio_to_fused_nonprivate", "memory_ratio" (the variant's peak over
    plain's; below 1 is less), "noise_share" (drawing the noise over the whole step), all with
    their "worst" shape, and "cases" with seconds and bytes for "<length>x<batch>". With a base in
    bfloat16 or checkpointing also "update_gap": see `update_gap`, for the first shape.
    Raises: ParameterError: a value out of range, no such device, no Linux /proc, or a worker that
    died.
    """
    if repetitions < 1 or min(sequence_lengths, default=0) < 2 or min(batch_sizes, default=0) < 1:
        raise ParameterError(
            "bench dpsgd: expected repetitions >= 1, sequence lengths >= 2 and batch sizes >= 1, "
            f"got {repetitions}, {tuple(sequence_lengths)} and {tuple(batch_sizes)}"
        )
    shape, where = model or BenchModel(), place or BenchPlace()
    shapes = list(dict.fromkeys((a, b) for a in sequence_lengths for b in batch_sizes))
    tell = report_case or (lambda _: None)
    device = where.torch_device()
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise ParameterError("bench dpsgd: peak memory is read from Linux's /proc; none here")
    names = _names(variants, where)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(closing(_Worker(name, shape, where))) for name in names]
        trainable = [worker.wait_until_ready() for worker in workers]
        cases: dict[str, dict[str, dict[str, float]]] = {}
        for length, batch in shapes:
            tell(f"{length}x{batch}")
            cases[f"{length}x{batch}"] = _case(workers, length, batch, repetitions)
    if device.type == "cpu":
        tell("peak memory")
        peaks = {name: _peaks(name, shape, where, shapes) for name in names}
        for at, case in enumerate(cases.values()):
            case["peak_bytes"] = {name: float(found[at]) for name, found in peaks.items()}
    gaps: dict[str, dict[str, float]] = {}
    if where.dtype != "float32" or where.gradient_checkpointing:
        tell("updates beside those of a float32 base without checkpointing")
        length, batch = shapes[0]
        gaps["update_gap"] = {
            engine: update_gap(engine, shape, where, sequence_length=length, batch_size=batch)
            for engine in ENGINES
            if engine in names
        }
    for case in cases.values():
        plain = case["peak_bytes"]["plain"]
        case["memory_ratio"] = {name: peak / plain for name, peak in case["peak_bytes"].items()}
    return {
        "model": {**shape.described(), "trainable_parameters": trainable[0]},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": where.dtype,
        "gradient_checkpointing": where.gradient_checkpointing,
        "clock": "wall" if device.type == "cuda" else "cpu",
        "threads": where.threads,
        "repetitions": repetitions,
        "cases": cases,
        **gaps,
        **_summary(cases),
    }


def _names(variants: Sequence[Variant] | None, place: BenchPlace) -> tuple[Variant, ...]:
    """The variants to measure, plain first. Raises: ParameterError: one that cannot run."""
    can = tuple(one for one in VARIANTS if one != "ghost" or not place.gradient_checkpointing)
    unknown = sorted(set(variants or ()) - set(can))
    if unknown:
        raise ParameterError(
            f"bench dpsgd: no variant is called {', '.join(unknown)}, or it has no gradient "
            f"checkpointing; there are {', '.join(can)}"
        )
    return tuple(dict.fromkeys(("plain", *(can if variants is None else variants))))


def _peaks(
    variant: Variant, model: BenchModel, place: BenchPlace, shapes: Sequence[tuple[int, int]]
) -> list[int]:
    """Peak bytes of one step of every shape, in a process of its own."""
    with _blocks_given_back():
        started = _Worker(variant, model, place)
    with closing(started) as worker:
        worker.wait_until_ready()
        # The first step makes what stays: the optimiser's moments, the noise's tables.
        worker.step(*_FIRST_STEP)
        return [worker.step(length, batch).peak_bytes for length, batch in shapes]


def _case(
    workers: Sequence[_Worker], length: int, batch: int, repetitions: int
) -> dict[str, dict[str, float]]:
    found: dict[str, list[Measured]] = {worker.variant: [] for worker in workers}
    for repetition in range(repetitions + 1):
        # Turn the order around: whoever comes second meets warmer caches of the machine.
        for worker in workers if repetition % 2 else reversed(workers):
            measured = worker.step(length, batch)
            if repetition:
                found[worker.variant].append(measured)

    def over(
        fold: Callable[[Iterable[float]], float], figure: Callable[[Measured], float]
    ) -> dict[str, float]:
        return {name: float(fold(map(figure, steps))) for name, steps in found.items()}

    seconds = over(statistics.median, lambda step: step.step_s)
    noise = over(statistics.median, lambda step: step.noise_s)
    case: dict[str, dict[str, float]] = {
        "step_s": seconds,
        "peak_bytes": over(statistics.median, lambda step: step.peak_bytes),
        "process_bytes": over(max, lambda step: step.process_bytes),
        "noise_share": {name: noise[name] / step_s for name, step_s in seconds.items()},
        "ratio": {name: seconds["plain"] / step_s for name, step_s in seconds.items()},
    }
    if "fused_nonprivate" in seconds:
        case["ratio_to_fused_nonprivate"] = {
            name: seconds["fused_nonprivate"] / step_s for name, step_s in seconds.items()
        }
    return case


# Whether the worst shape is the smallest or the largest figure.
_WORST = {
    "ratio": min,
    "ratio_to_fused_nonprivate": min,
    "memory_ratio": max,
    "noise_share": max,
}


def _summary(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    first = next(iter(cases.values()))

    def over(fold: Callable[[Iterable[float]], float], kind: str) -> dict[str, float]:
        return {
            name: round(fold(case[kind][name] for case in cases.values()), 4)
            for name in first[kind]
        }

    kinds = [kind for kind in _WORST if kind in first]
    return {
        **{kind: over(statistics.median, kind) for kind in kinds},
        "worst": {kind: over(_WORST[kind], kind) for kind in kinds},
    }
