"""What goes wrong inside a step ends nothing and shows nothing: memory, and single units."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from trainer_doubles import (
    float_sum,
    grid_sum,
    opened_trainer,
)
from training_runs import POOL, UNITS, adapted, parameters, settings

from lada_secure.dpsgd.batching import PoissonSampler
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.gradient import is_out_of_memory
from lada_secure.errors import ParameterError

OUT_OF_MEMORY = {
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "a CPU's": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "a CUDA library's": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."),
    "Python's": MemoryError(),
}


def short_of_memory(trainer, limit, error, *, after_backward=False):
    """Make every pass over more than `limit` examples end as if memory were full."""
    collect = trainer.source._gradients

    def limited(batch):
        if sum(map(len, batch)) <= limit:
            return collect(batch)
        if after_backward:
            collect(batch)
        raise error

    trainer.source._gradients = limited


def open_trainer(pool=()):
    return opened_trainer(adapted(), UNITS, pool=pool, privacy=parameters(), settings=settings())


def test_the_cpu_s_own_error_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("after_backward", [False, True], ids=["before", "after backward"])
@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_physical_batch_and_changes_nothing_else(
    kind, after_backward, caplog
):
    def total(limit):
        trainer = open_trainer()
        short_of_memory(trainer, limit, OUT_OF_MEMORY[kind], after_backward=after_backward)
        found = float_sum(trainer)
        # The next step starts with the smaller size, and units larger than it still fit.
        again = float_sum(trainer)
        trainer.close()
        torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-6)
        return found, trainer.source.physical_batch_size

    (full, size), (halved, smaller) = total(99), total(3)
    assert (size, smaller) == (6, 2)
    torch.testing.assert_close(full, halved, rtol=1e-4, atol=1e-6)
    assert "going on with" in caplog.text
    # Not even the unit of three fits: it goes record by record.
    alone, _ = total(2)
    torch.testing.assert_close(full, alone, rtol=1e-4, atol=1e-6)


def test_a_batch_counts_once_though_memory_ran_out_while_it_was_clipped(monkeypatch):
    trainer = open_trainer()
    expected = float_sum(trainer)
    cut, calls = ClippedSum._cut_to_grid, []

    def runs_out_once(self, flat, factor):
        found = cut(self, flat, factor)
        calls.append(len(factor))
        if len(calls) == 1:
            raise MemoryError
        return found

    monkeypatch.setattr(ClippedSum, "_cut_to_grid", runs_out_once)
    total = grid_sum(trainer)
    trainer.close()
    assert len(calls) > 2
    scaled = total.integers() * (0.5 / parameters().clip_steps)
    torch.testing.assert_close(scaled.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_in_the_pool_s_stream_halves_as_well(kind, caplog):
    def gradient(limit):
        trainer = open_trainer(POOL)
        short_of_memory(trainer, limit, OUT_OF_MEMORY[kind])
        found = trainer.source.public_gradient(trainer._public)
        trainer.close()
        return found, trainer.source.physical_batch_size

    ((full, full_loss), _), ((halved, halved_loss), size) = gradient(99), gradient(2)
    assert size == 1
    assert "going on with" in caplog.text
    torch.testing.assert_close(halved_loss, full_loss, rtol=1e-5, atol=0.0)
    for a, b in zip(full, halved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ParameterError, match=r"one example of .* tokens does not fit"):
        gradient(0)


def test_out_of_memory_before_training_halves_as_well():
    trainer = open_trainer(POOL)
    expected = trainer.source.losses(trainer._public)
    score = trainer.source._loss

    def limited(examples):
        if len(examples) > 2:
            raise torch.OutOfMemoryError("no room")
        return score(examples)

    trainer.source._loss = limited
    found = trainer.source.losses(trainer._public)
    trainer.close()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), KeyError("a name"), OverflowError(), MemoryError()]
)
def test_whatever_one_unit_provokes_the_others_add_what_they_add_and_it_adds_zero(error):
    trainer = open_trainer()
    hostile, others = trainer._units[2], [trainer._units[at] for at in (0, 1, 3)]
    expected = float_sum(trainer, others)
    collect = trainer.source._gradients

    def fails(batch):
        if set(chain(*batch)) & set(hostile.examples):
            raise error
        return collect(batch)

    trainer.source._gradients = fails
    total = float_sum(trainer)
    # And a whole step: nothing ends it.
    trainer._sampler = PoissonSampler(4, sampling_probability=1.0)
    trainer.step()
    trainer.close()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_a_step_whose_sum_fails_as_a_whole_is_noise_alone(monkeypatch):
    trainer = open_trainer()

    def fails(*_args, **_options):
        raise RuntimeError("broken")

    monkeypatch.setattr(trainer.source, "clipped_sum", fails)
    pushed = []
    trainer.update = pushed.append
    for _ in range(5):
        trainer.step()
    trainer.close()
    assert float(torch.stack(pushed).std()) == pytest.approx(2.0 * 0.5 / 2.0, rel=0.1)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_person_can_still_end_a_step(stop):
    trainer = open_trainer()

    def ends(_batch):
        raise stop

    trainer.source._gradients = ends
    with pytest.raises(stop):
        grid_sum(trainer)
    trainer.close()


def test_a_gradient_that_stays_too_long_on_the_grid_is_zeroed_and_ends_nothing(monkeypatch):
    # As if rounding never helped: every length is measured far too long.
    monkeypatch.setattr(torch.linalg, "vecdot", lambda one, other: (one * other).sum(1) * 1e30)
    weight = torch.nn.Parameter(torch.zeros(3))
    total = ClippedSum([weight], parameters())
    total.add([torch.ones(2, 3)])
    assert not bool(total.integers().any())
