"""Noise drawn ahead: fresh, used at most once, thrown away when in doubt."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
import torch
from trainer_doubles import example, opened_trainer, small_model, units_of_sizes

from lada_secure.dpsgd import noise as noise_module
from lada_secure.dpsgd import trainer as trainer_module
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.dpsgd.noise_ahead import NoiseAhead
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.state import encode_state
from lada_secure.dpsgd.trainer import drawn_noise
from lada_secure.errors import ParameterError, TrainingFailed
from lada_secure.models.adapters import AdapterSettings, attach_adapters

CPU = torch.device("cpu")
PRIVACY = DpSgdParameters(
    noise_multiplier=2.0,
    l2_clip_norm=0.5,
    sampling_probability=1e-12,
    expected_units=2.0,
    steps=9,
    pool_gradients="public",
)


class Drawn:
    """Counts what is drawn and keeps it; may be held up or fail."""

    def __init__(self, count=64):
        self.vectors = []
        self.threads = []
        self.error = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._draw = partial(drawn_noise, count, CPU)

    def __call__(self):
        self.threads.append(threading.current_thread())
        assert self.may_go_on.wait(30.0)
        if self.error is not None:
            raise self.error
        self.vectors.append(self._draw())
        return self.vectors[-1]


@pytest.fixture
def drawn():
    return Drawn()


@pytest.fixture
def ahead(drawn):
    opened = NoiseAhead(drawn)
    yield opened
    drawn.may_go_on.set()
    opened.close()


def open_trainer(**changes):
    lm = attach_adapters(small_model(), AdapterSettings(rank=2))
    return opened_trainer(
        lm,
        units_of_sizes(1, 2, 1),
        pool=[example(50), example(51)],
        privacy=PRIVACY,
        settings=TrainerSettings(**{"noise": "ahead", "pool_batch_size": 2, **changes}),
    )


@pytest.fixture
def trainer():
    opened = open_trainer()
    yield opened
    opened.close()


def heard(trainer):
    """The noised gradients of the steps to come: nobody joins, so they are the noise alone."""
    found = []
    update = trainer.update

    def noted(gradient):
        found.append(gradient.clone())
        update(gradient)

    trainer.update = noted
    return found


def all_differ(vectors):
    return len({tuple(one[:16].tolist()) for one in vectors}) == len(vectors)


def test_a_vector_is_drawn_while_the_one_before_is_in_use_and_no_more_than_one(drawn, ahead):
    ahead.take()
    ahead._next._thread.join()
    assert len(drawn.vectors) == 2
    drawn.may_go_on.clear()
    # Not held up by the third, which is on its way.
    assert torch.equal(ahead.take(), drawn.vectors[1])
    drawn.may_go_on.set()
    ahead._next._thread.join()
    assert len(drawn.vectors) == 3
    assert drawn.threads[0] is threading.current_thread()
    assert all(one is not threading.current_thread() for one in drawn.threads[1:])


def test_no_vector_is_handed_out_twice(drawn, ahead):
    taken = [ahead.take() for _ in range(20)]
    assert all_differ(taken)
    assert all(a is b for a, b in zip(taken, drawn.vectors, strict=False))


def test_what_was_thrown_away_is_not_handed_out(drawn, ahead):
    ahead.take()
    ahead.discard()
    lost = drawn.vectors[1]
    later = [ahead.take() for _ in range(3)]
    assert all(one is not lost for one in later)
    assert all_differ([*later, lost])


def test_closing_leaves_no_thread_and_may_happen_twice(drawn, ahead):
    ahead.take()
    ahead.close()
    ahead.close()
    assert not any(one.is_alive() for one in drawn.threads[1:])


def test_a_process_that_was_forked_off_does_not_use_the_vector_of_its_parent(ahead):
    ahead.take()
    ahead._next._thread.join()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, ahead.take()[:8].numpy().tobytes())
        finally:
            os._exit(0)
    raw = os.read(ours, 64)
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)
    assert len(raw) == 64
    assert ahead.take()[:8].numpy().tobytes() != raw


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError("no entropy"), SystemError()])
def test_a_failure_of_the_thread_is_told_by_the_step_that_needed_the_vector(drawn, ahead, error):
    drawn.error = error
    with pytest.raises(TrainingFailed, match="the step was not taken"):
        ahead.take()
    drawn.error = None
    ahead.take()
    ahead._next._thread.join()
    drawn.error = error
    ahead.take()
    with pytest.raises(TrainingFailed, match=type(error).__name__):
        ahead.take()
    drawn.error = None
    assert all_differ([ahead.take(), ahead.take(), *drawn.vectors[:2]])


def test_steps_with_noise_ahead_add_noise_of_the_stated_strength_that_never_repeats(trainer):
    found = heard(trainer)
    for _ in range(6):
        trainer.step()
    assert all_differ(found)
    # n = 6 x 672 catches an error of 8% at ALPHA = 1e-6; the sampler itself is tested elsewhere.
    assert float(torch.stack(found).std()) == pytest.approx(2.0 * 0.5 / 2.0, rel=0.08)
    assert trainer.steps_done == 6


def test_a_step_whose_noise_failed_samples_nobody_and_changes_nothing(trainer, monkeypatch):
    trainer.step()
    trainer._noise._next._thread.join()

    def broken(_):
        raise MemoryError

    monkeypatch.setattr(trainer_module, "DiscreteGaussian", broken)
    trainer.step()
    before = [one.detach().clone() for one in trainer.parameters]
    monkeypatch.setattr(trainer, "draw", lambda: pytest.fail("a unit was sampled"))
    with pytest.raises(TrainingFailed, match="could not be drawn"):
        trainer.step()
    assert trainer.steps_done == 2
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_after_an_exception_in_a_step_neither_its_noise_nor_the_next_is_used(trainer, monkeypatch):
    given = []
    take = trainer._noise.take

    def noted():
        given.append(take())
        # What will be the next one, were it not for the exception.
        trainer._noise._next._thread.join()
        given.append(trainer._noise._next._vector)
        return given[-2]

    monkeypatch.setattr(trainer._noise, "take", noted)
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    assert trainer._noise._next is None
    monkeypatch.setattr(trainer, "update", update)
    found = heard(trainer)
    trainer.step()
    trainer.step()
    unit = PRIVACY.l2_clip_norm / PRIVACY.clip_steps / PRIVACY.expected_units
    assert all_differ([*(one * unit for one in given[:2]), *found])


def test_a_restored_state_is_followed_by_fresh_noise_and_holds_none(trainer):
    trainer.step()
    trainer._noise._next._thread.join()
    lost = trainer._noise._next._vector
    state = trainer.state("binding")
    assert {name.partition(".")[2] for name in state.tensors} == {
        "value", "step", "exp_avg", "exp_avg_sq"
    }  # fmt: skip
    assert lost.numpy().tobytes()[:64] not in encode_state(state)
    trainer.restore(state)
    assert trainer._noise._next is None
    found = heard(trainer)
    trainer.step()
    unit = PRIVACY.l2_clip_norm / PRIVACY.clip_steps / PRIVACY.expected_units
    assert not torch.equal(found[0], lost * unit)


@pytest.mark.parametrize("how", ["ahead", "in_line"])
def test_what_replaces_the_noise_from_outside_is_what_steps_get(monkeypatch, how):
    words = noise_module.system_words
    asked = []

    def noted(count):
        asked.append(count)
        return words(count)

    monkeypatch.setattr(noise_module, "system_words", noted)
    monkeypatch.setattr(trainer_module, "DiscreteGaussian", lambda std: DiscreteGaussian(std / 8))
    trainer = open_trainer(noise=how)
    found = heard(trainer)
    for _ in range(4):
        trainer.step()
    trainer.close()
    assert float(torch.stack(found).std()) == pytest.approx(2.0 * 0.5 / 2.0 / 8, rel=0.15)
    assert len(asked) >= 8


def test_on_a_cpu_noise_is_drawn_in_line_unless_asked_for(monkeypatch):
    trainer = open_trainer(noise="auto")
    assert trainer._noise is None
    trainer.close()
    with pytest.raises(ParameterError, match="noise"):
        TrainerSettings(noise="never")
