"""`lada bench memory`: what a model takes in a process of its own, beside what was forecast.

The forecast is made in that process before a weight is loaded, as the gates make it; measured is
the most of its resident memory afterwards. Work is done by the product's own functions, with the
C library's allocator as it is.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from lada_secure.errors import ParameterError
from lada_secure.models.placement import Placement

Work: TypeAlias = Literal["step", "tuning", "scores", "writing"]
WORKS: Final[tuple[Work, ...]] = get_args(Work)
_TIMEOUT_S: Final = 1800.0
_STEPS: Final = 2
# Enough tokens of any tokenizer for a row of any length that is measured.
_WORDS: Final = "It may be a cold, or a cough that lasts. " * 400


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCase:
    """What is measured.

    folder: of the model. work: "step", a private step; "tuning", a step on public examples;
    "scores" of paths; "writing" of `length` / 2 tokens after prompts of as many. rank: of adapters
    on every layer.
    """

    folder: Path
    placement: Placement
    work: Work
    batch: int
    length: int
    rank: int = 8
    threads: int = 1


def measure_memory(case: MemoryCase) -> dict[str, Any]:
    """Measure in a process of its own.

    Returns: JSON-ready: forecast and measured bytes, and how far apart they are: "at_work", once
        the model is loaded, and "whole", over loading and work; the parts; and CPU seconds.
    Raises: ParameterError: no Linux /proc, no such work, or what the process says.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ParameterError("bench memory: memory is read from Linux's /proc, which is not here")
    if case.work not in WORKS:
        raise ParameterError(f"--work: expected one of {', '.join(WORKS)}, got {case.work!r}")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, case), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise ParameterError(f"bench memory: no answer within {_TIMEOUT_S:.0f} s")
        good, answer = ours.recv()
    except EOFError as error:
        raise ParameterError("bench memory: its process died; was memory short?") from error
    finally:
        child.kill()
        child.join()
    if not good:
        raise ParameterError(f"bench memory: {answer}")
    found: dict[str, Any] = answer
    return found


def _answer(pipe: Connection, case: MemoryCase) -> None:
    try:
        pipe.send((True, _measured(case)))
    # The parent tells it; nothing here is worth a traceback of a process that nobody sees.
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


def _measured(case: MemoryCase) -> dict[str, Any]:
    import torch

    from lada_secure.models.adapters import AdapterSettings, attach_adapters
    from lada_secure.models.loading import load_folder, open_texts

    torch.set_num_threads(case.threads)
    place = replace(case, placement=case.placement.on_this_machine())
    texts = open_texts(case.folder, name="measured")
    forecast = _forecast(place)
    del texts
    _reset_peak()
    lm = load_folder(case.folder, name="measured", placement=place.placement)
    lm = attach_adapters(lm, AdapterSettings(rank=case.rank))
    loaded = _status_bytes("VmHWM")
    _reset_peak()
    before = time.process_time()
    _work(case, replace(lm, max_tokens=case.length))
    seconds = time.process_time() - before
    working = _status_bytes("VmHWM")
    return {
        "at_work": _compared(forecast.working, working),
        "whole": _compared(forecast.peak, max(loaded, working)),
        "cpu_s": round(seconds, 2),
        "lasting": dict(forecast.lasting),
        "passing": dict(forecast.passing),
        "loading": forecast.loading,
    }


def _reset_peak() -> None:
    """Let the peak of the resident set be what is resident now (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _compared(forecast: int, measured: int) -> dict[str, Any]:
    return {
        "forecast_bytes": forecast,
        "measured_bytes": measured,
        "error_percent": round(100 * (forecast / measured - 1), 1),
    }


def _forecast(case: MemoryCase) -> Any:
    from lada_secure.dpsgd.rehearsal import step_peak
    from lada_secure.dpsgd.trainer import FROZEN_CACHE_BYTES
    from lada_secure.models.adapters import AdapterSettings
    from lada_secure.models.memory import (
        MemoryBudget,
        generation_peak,
        scoring_peak,
        tuning_peak,
    )
    from lada_secure.models.rehearsal import Rehearsal

    rehearsal = Rehearsal(case.folder, case.placement, AdapterSettings(rank=case.rank))
    budget = MemoryBudget(folder=case.folder, rehearsal=rehearsal)
    rows, length, half = case.batch, case.length, case.length // 2
    together = 1 if case.placement.dtype == "bfloat16" else rows
    found = {
        "step": lambda: step_peak(
            rehearsal,
            rows=together,
            length=length,
            privacy=_privacy(rows),
            cache_bytes=FROZEN_CACHE_BYTES,
        ),
        "tuning": lambda: tuning_peak(rehearsal, rows=rows, length=length, cache_bytes=0),
        "scores": lambda: scoring_peak(rehearsal, rows=rows, length=length, target=half),
        "writing": lambda: generation_peak(rehearsal, rows=rows, prompt=half, written=half),
    }[case.work]()
    budget.add(f"{case.work} of {rows} x {length} tokens", found)
    return budget.forecast()


def _privacy(units: int) -> Any:
    from lada_secure.dpsgd.parameters import DpSgdParameters

    return DpSgdParameters(
        noise_multiplier=1.0,
        l2_clip_norm=0.5,
        sampling_probability=1.0,
        expected_units=float(units),
        steps=2,
        pool_gradients="public",
    )


def _examples(case: MemoryCase, lm: Any) -> list[Any]:
    """As many examples as a batch, each of about `length` tokens, half of them path."""
    from lada_secure.models.examples import RationaleExample

    words, half = lm.tokens_of(_WORDS), case.length // 2
    prompt, path = lm.decode(words[: half - 2]), lm.decode(words[: half - 1])
    return [
        RationaleExample(example_id=str(at), prompt=f"{at} {prompt}", path=path, rejected=None)
        for at in range(case.batch)
    ]


def _work(case: MemoryCase, lm: Any) -> None:
    examples = _examples(case, lm)
    if case.work == "step":
        _private_steps(case, lm, examples)
    elif case.work == "tuning":
        from lada_secure.models.tuning import TuningSettings, tune_on_rationales

        settings = TuningSettings(
            steps=_STEPS, batch_size=case.batch, replay_batch_size=0, learning_rate=1e-4
        )
        tune_on_rationales(lm, examples, (), settings)
    else:
        from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities

        prompts, size = [one.prompt for one in examples], case.batch
        if case.work == "scores":
            paths = [one.path for one in examples]
            rationale_log_probabilities(lm, prompts, paths, batch_size=size)
        else:
            greedy_rationales(lm, prompts, batch_size=size, max_new_tokens=case.length // 2)


def _private_steps(case: MemoryCase, lm: Any, examples: list[Any]) -> None:
    from lada_secure.dpsgd.parameters import TrainerSettings
    from lada_secure.dpsgd.trainer import Trainer
    from lada_secure.models.examples import PrivateUnit

    settings = TrainerSettings(physical_batch_size=case.batch, pool_batch_size=0)
    trainer = Trainer(lm, pool=(), privacy=_privacy(case.batch), settings=settings)
    trainer.take_units([PrivateUnit(unit_id=one.example_id, examples=(one,)) for one in examples])
    for _ in range(_STEPS):
        trainer.step()
    trainer.close()


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def run_memory(case: MemoryCase) -> dict[str, Any]:
    """`measure_memory`, with what it was measured on."""
    from lada_lab.machine import machine

    cores, system, python = machine()
    return {
        **measure_memory(case),
        "model": case.folder.name,
        "work": case.work,
        "batch": case.batch,
        "length": case.length,
        "dtype": case.placement.dtype,
        "gradient_checkpointing": case.placement.gradient_checkpointing,
        "machine": f"{cores} cores, {system}, Python {python}",
    }
