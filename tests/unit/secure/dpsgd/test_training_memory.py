"""Memory of training: a batch that really does not fit, and SmolLM2 in what the page states."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import re
import resource
import traceback
from pathlib import Path

import pytest
import torch
from rich.console import Console
from trainer_doubles import (
    PLAN_HASH,
    approved_ledger,
    grid_sum,
    opened_trainer,
    paid,
    small_model,
    units_of_sizes,
)

from lada_clients.site.training_display import TrainingDisplay
from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import load_language_model

PAGE = (Path(__file__).parents[4] / "docs" / "dp-sgd.md").read_text(encoding="utf-8")
WEIGHTS = Path(os.environ.get("LADA_CACHE_DIR", Path.home() / ".cache" / "lada-secure"))
PRIVACY = DpSgdParameters(
    noise_multiplier=2.0,
    l2_clip_norm=0.5,
    sampling_probability=0.9,
    expected_units=8.0,
    steps=2,
    pool_gradients="public",
)

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc"
)


def status_bytes(field):
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def in_a_process_of_its_own(work):
    """What `work` returns; its limits and its memory are not this process's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, work), daemon=True)
    child.start()
    theirs.close()
    try:
        good, answer = ours.recv()
    finally:
        child.join(30.0)
        if child.is_alive():
            child.kill()
            child.join()
    assert good, answer
    return answer


def _answer(pipe, work):
    try:
        pipe.send((True, work()))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise


def train_with_little_memory():
    """A clipped sum with all memory there is, then with 0.6 of what that took."""
    torch.set_num_threads(1)
    lm = attach_adapters(small_model(layers=2), AdapterSettings(rank=2))
    trainer = opened_trainer(
        lm,
        units_of_sizes(*(1,) * 1024),
        pool=(),
        privacy=PRIVACY,
        settings=TrainerSettings(physical_batch_size=1024),
    )

    def total():
        return grid_sum(trainer).integers().double()

    grid_sum(trainer, trainer._units[:2])
    before = status_bytes("VmSize")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    idle = status_bytes("VmRSS")
    whole = total()
    needed = status_bytes("VmHWM") - idle
    resource.setrlimit(resource.RLIMIT_AS, (int(before + 0.6 * needed),) * 2)
    halved = total()
    away = float((halved - whole).norm() / whole.norm())
    return needed, trainer.source.physical_batch_size, away


@pytest.mark.slow
def test_a_batch_that_does_not_fit_goes_in_halves_and_gives_the_same_sum(monkeypatch):
    # Left to itself the C library keeps freed blocks, and the second sum finds room in them.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    needed, size, away = in_a_process_of_its_own(train_with_little_memory)
    assert needed > 100 * 2**20
    assert size in (512, 256, 128)
    assert away < 1e-3


def train_smollm2():
    """Two steps of eight units of about 128 tokens each; peak bytes of the process, and the bar."""
    torch.set_num_threads(2)
    lm = load_language_model("smollm2-135m", cache_dir=WEIGHTS)
    lm = dataclasses.replace(lm, max_tokens=128)
    lm = attach_adapters(lm, AdapterSettings(rank=8))
    examples = [
        RationaleExample(
            example_id=str(at),
            prompt=f"A patient, {20 + at} years old, coughs. What is it?",
            path="It may be a cold, " * 20,
            rejected=None,
        )
        for at in range(10)
    ]
    rows = [
        len(lm.encode_prompt(one.prompt)) + len(lm.encode_rationale(one.path)) for one in examples
    ]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    with TrainingDisplay(console, epsilon_cap=400.0) as display:
        result = distil(
            lm,
            units=paid(
                [PrivateUnit(unit_id=one.example_id, examples=(one,)) for one in examples[:8]]
            ),
            pool=examples[8:],
            privacy=PRIVACY,
            settings=TrainerSettings(physical_batch_size=8, pool_batch_size=2),
            book=approved_ledger(),
            spec=training_spec(PRIVACY, study_id="study", plan_hash=PLAN_HASH, round_id=1),
            progress=lambda report: display.show(1, report),
        )
    assert len(result.public_losses) == 2
    return max(rows), status_bytes("VmHWM"), out.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(
    not (WEIGHTS / "smollm2-135m").is_dir(),
    reason="the weights of SmolLM2 are not in the cache; `make setup` puts them there",
)
def test_smollm2_trains_in_the_memory_that_the_page_states_with_a_bar():
    longest, peak, bar = in_a_process_of_its_own(train_smollm2)
    stated = re.search(r"\| SmolLM2-135M.*\| 8 x 128 tokens \| ([0-9.]+) GB \|", PAGE)
    assert stated is not None
    assert longest >= 115
    # A twentieth for other versions of the libraries, which are part of the process.
    assert peak <= 1.05 * float(stated[1]) * 1e9
    for part in ("round 1 training", "2/2", "public loss", "epsilon", "of 400", "left"):
        assert part in bar
